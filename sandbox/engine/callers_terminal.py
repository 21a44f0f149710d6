"""The caller's terminal: a job that has it open can leave it in any state."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.level_steps import Init, Terminal

if TYPE_CHECKING:
    from sandbox.plan import Plan


@contextlib.contextmanager
def as_it_was(plan: "Plan") -> Iterator[None]:
    """Behind an isolated command the first of descriptors 0 to 2 that is a terminal has its settings again, and all of
    them their flags, which whoever reads there next shares (fcntl(2)).

    With a terminal of its own the command has none of the caller's. A shell that has put this run into the background
    has settings of its own there.
    """
    kinds = {type(step) for step in plan.steps}
    if Init not in kinds or Terminal in kinds or (fd := next(filter(os.isatty, range(3)), -1)) < 0:
        yield
        return
    import fcntl
    import termios

    before = termios.tcgetattr(fd)
    flags = {}
    for number in range(3):
        with contextlib.suppress(OSError):  # it may be closed
            flags[number] = fcntl.fcntl(number, fcntl.F_GETFL)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            if is_ours(fd):
                fcntl.ioctl(fd, termios.TIOCNXCL)
                termios.tcsetattr(fd, termios.TCSANOW, before)
                for number, value in flags.items():
                    fcntl.fcntl(number, fcntl.F_SETFL, value)


def is_ours(fd: int) -> bool:
    """Whether this process is in the foreground of the terminal, or it is nobody's here."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True
