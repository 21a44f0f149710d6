"""The last thing that the child does: become the command."""

import errno
import os
import signal
from typing import Any, Protocol

from sandbox import dispositions
from sandbox.engine import attendance
from sandbox.engine import syscalls as sys
from sandbox.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CommandError, SandboxError, StepError, printable, reason


def restore_handlers() -> None:
    """Python's own changes undone."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def restore_signals(inherited: Any) -> None:
    """The command starts with the mask that the launcher was started with, and Python's own changes undone."""
    restore_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, inherited)


class Ready(Protocol):
    """What is to be executed, and what holds it."""

    argv: list[bytes]
    env: dict[bytes, bytes]
    executable: bytes | None
    fence: int
    filter: tuple[int, ...]
    audited: bool
    attend: int


def _confine(child: Ready) -> None:
    """What would be in the way of anything else."""
    if child.fence >= 0:
        sys.landlock_restrict(child.fence)
    if child.audited:
        listener = _install_filter(child, listen=True)
        attendance.hand_over(child.attend, attendance.LISTENER, [listener])
        os.close(listener)
    elif child.filter:
        _install_filter(child)


def _install_filter(child: Ready, *, listen: bool = False) -> int:
    try:
        return sys.install_seccomp(child.filter, listen=listen)
    except OSError as error:
        raise StepError(f"cannot install the seccomp filter: {reason(error)}") from None


def execute(child: Ready) -> SandboxError:
    """Become the command. Returns only when that fails."""
    name = child.argv[0]
    if child.executable is not None:
        candidates = [child.executable]
    elif b"/" in name:
        candidates = [name]
    else:
        path = child.env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
        candidates = [os.path.join(directory or b".", name) for directory in path.split(b":")]
    dispositions.give_back()
    _confine(child)
    failure: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, child.argv, child.env)
        except OSError as error:
            # As a shell does: what was found but cannot be executed is remembered, what was not found is not.
            if failure is None and os.path.lexists(candidate):
                failure = error
    if failure is None:
        return CommandError(f"cannot run {printable(name)}: command not found", exit_code=EXIT_NOT_FOUND)
    interpreter = failure.errno == errno.ENOENT
    why = "its interpreter does not exist" if interpreter else reason(failure)
    if failure.errno == errno.EACCES and os.path.isdir(failure.filename or b""):
        why = "it is a directory"
    return CommandError(f"cannot run {printable(name)}: {why}", exit_code=EXIT_NOT_EXECUTABLE)
