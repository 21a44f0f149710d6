"""-t: the job has a terminal of its own, and what happens on it and on the caller's is passed on.

Nothing of the job has the caller's terminal open: it can push no bytes into it, and leaves it in no odd state.
"""

import contextlib
import fcntl
import os
import select
import termios
import tty
from collections.abc import Callable

from sandbox.errors import UsageError

_CHUNK = 1 << 16
_SIZE = b"\0" * 8  # struct winsize


def check() -> None:
    """Raises UsageError where there is no terminal to pass on."""
    if not os.isatty(0):
        raise UsageError("-t: the standard input is not a terminal", hint="leave it out")


class Relay:
    """Between the caller's terminal, descriptors 0 and 1, and the one that the job has."""

    def __init__(self, main: int, log: Callable[[bytes], None] | None = None) -> None:
        self.main, self.log = main, log
        self.size = b""
        self.typed = b""
        self.mute = self.ended = False
        self.before = termios.tcgetattr(0)
        os.set_blocking(main, False)
        self.resize()
        tty.setraw(0)

    def resize(self) -> None:
        """The job's terminal is as large as the caller's; whoever uses it is told by the kernel."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, _SIZE)
            if size != self.size:
                fcntl.ioctl(self.main, termios.TIOCSWINSZ, size)
                self.size = size

    def wants(self) -> dict[int, int]:
        """Events to wait for, by descriptor: nothing is read that could not be passed on."""
        if self.ended:
            return {}
        if self.typed:
            return {self.main: select.POLLIN | select.POLLOUT}
        return {self.main: select.POLLIN} | ({} if self.mute else {0: select.POLLIN})

    def serve(self, fd: int) -> None:
        """Something can be read or written at `fd`."""
        if fd == 0:
            with contextlib.suppress(OSError):
                self.typed = os.read(0, 4096)
            self.mute = self.typed == b""
            return
        try:
            if self.typed:
                with contextlib.suppress(BlockingIOError):
                    self.typed = self.typed[os.write(self.main, self.typed) :]
            data = os.read(self.main, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other end open
            data = b""
        self.ended = data == b""
        if self.log is not None:
            self.log(data)
        _write_all(data)

    def finish(self) -> None:
        """The rest of what the job wrote, and the caller's terminal as it was."""
        self.typed = b""
        while not self.ended and select.select([self.main], [], [], 0)[0]:
            self.serve(self.main)
        termios.tcsetattr(0, termios.TCSADRAIN, self.before)
        os.close(self.main)


def _write_all(data: bytes) -> None:
    """To the caller; who does not listen gets no more of it."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            select.select([], [1], [])
        except OSError:
            return
