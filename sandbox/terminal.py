"""-t: the job has a terminal of its own, and what happens on it and on the caller's is passed on.

Nothing of the job has the caller's terminal open: it can push no bytes into it, and leaves it in no odd state.
"""

import contextlib
import fcntl
import os
import select
import stat
import termios
import time
import tty
from collections.abc import Callable

from sandbox.engine.callers_terminal import is_ours
from sandbox.errors import UsageError

_CHUNK = 1 << 16
# How long, in seconds, a caller that takes nothing may keep the end of a job waiting.
_PATIENCE = 10.0
_SIZE = b"\0" * 8  # struct winsize


def check() -> None:
    """Raises UsageError where there is no terminal to pass on."""
    if not os.isatty(0):
        raise UsageError("-t: the standard input is not a terminal", hint="leave it out")


class Relay:
    """Between the caller's terminal, descriptors 0 and 1, and the one that the job has."""

    def __init__(self, main: int, log: Callable[[bytes], None] | None = None, until: float | None = None) -> None:
        """`until` is when the job will have ended at the latest (CLOCK_MONOTONIC, seconds), if that is known."""
        self.main, self.log, self.until = main, log, until
        self.size = b""
        self.typed = self.printed = b""
        self.out = _without_waiting(1)
        self.mute = self.ended = False
        try:
            self.before = termios.tcgetattr(0)
            os.set_blocking(main, False)
            self.resize()
            tty.setraw(0)
            self.raw = termios.tcgetattr(0)
        except termios.error as error:
            raise OSError(*error.args) from None

    def resize(self) -> None:
        """The job's terminal is as large as the caller's; whoever uses it is told by the kernel."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, _SIZE)
            if size != self.size:
                fcntl.ioctl(self.main, termios.TIOCSWINSZ, size)
                self.size = size

    def stay(self) -> None:
        """Follow the caller's terminal in its size, and undo what a shell made of it while this was stopped."""
        self.resize()
        with contextlib.suppress(OSError, termios.error):
            if termios.tcgetattr(0) != self.raw and is_ours(0):
                termios.tcsetattr(0, termios.TCSANOW, self.raw)

    def wants(self) -> dict[int, int]:
        """Events to wait for, by descriptor: nothing is read that could not be passed on."""
        wanted = {self.out: select.POLLOUT} if self.printed else {}
        if self.ended:
            return wanted
        events = (0 if self.printed else select.POLLIN) | (select.POLLOUT if self.typed else 0)
        if not self.typed and not self.mute:
            wanted[0] = select.POLLIN
        return wanted | {self.main: events} if events else wanted

    def serve(self, fd: int) -> None:
        """Something can be read or written at `fd`."""
        if fd == self.out:
            self._print()
        elif fd == 0:
            with contextlib.suppress(OSError):
                self.typed = os.read(0, 4096)
            self.mute = self.typed == b""
        else:
            self._exchange()

    def _exchange(self) -> None:
        """With the job: what was typed goes in, and what it printed comes out, unless something is to be passed on."""
        try:
            if self.typed:
                with contextlib.suppress(BlockingIOError):
                    self.typed = self.typed[os.write(self.main, self.typed) :]
            if self.printed:
                return
            self.printed = os.read(self.main, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other end open
            self.printed = b""
        self.ended = self.printed == b""
        if self.log is not None:
            self.log(self.printed)
        self._print()

    def _print(self) -> None:
        """As much as the caller takes now; who does not listen any more gets none of it."""
        try:
            self.printed = self.printed[os.write(self.out, self.printed) :] if self.printed else b""
        except BlockingIOError:
            return
        except OSError:
            self.printed = b""

    def finish(self) -> None:
        """The rest of what the job wrote, if somebody takes it, and the caller's terminal as it was."""
        self.typed = b""
        left = _PATIENCE if self.until is None else self.until - time.monotonic()
        while self._rest(min(max(left, 0.0), _PATIENCE)):
            pass
        with contextlib.suppress(termios.error):  # it may be gone: no OSError says so
            termios.tcsetattr(0, termios.TCSANOW if self.printed else termios.TCSADRAIN, self.before)
        os.close(self.main)
        if self.out != 1:
            os.close(self.out)

    def _rest(self, patience: float) -> bool:
        """Pass on a piece of what is left; False when nothing is, or nobody has taken any for so many seconds."""
        if self.printed:
            ready = bool(select.select([], [self.out], [], patience)[1])
        else:
            ready = not self.ended and bool(select.select([self.main], [], [], 0)[0])
        if ready:
            self.serve(self.out if self.printed else self.main)
        return ready


def _without_waiting(fd: int) -> int:
    """The same terminal or pipe, opened once more so that writing never waits: whoever shares `fd` goes on as before.

    `fd` itself, where that cannot be, and for a file, where nothing waits.
    """
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return fd
