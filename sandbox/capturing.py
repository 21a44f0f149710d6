"""--log: what a command writes to its standard output and error also goes to a file, which stays bounded.

The engine is a child of this process, and its descriptors 1 and 2 are pipes. What comes out of them is written to the
file first and then passed on, no faster than it is taken: a slow reader slows the command down, as it would without a
log, and one that has gone away ends it in the same way. Where both descriptors are one file, they share one pipe: what
was written in some order is passed on in that order.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
import threading

from sandbox import fsops
from sandbox.engine import Result
from sandbox.errors import EXIT_LAUNCHER_FAILED, EXIT_TIMED_OUT, UsageError, printable, reason, warn
from sandbox.outputs import OLD_LOG
from sandbox.report import check_replaceable

_CHUNK = 1 << 16
# How long a reader who takes nothing is waited for when the run was ended by force. Seconds.
_PATIENCE = 1.0
# What says that nobody reads any more: of a pipe or socket, and of a terminal that hung up.
_GONE = (errno.EPIPE, errno.ECONNRESET)


class Log:
    """A file that is added to. What would make it larger than `limit` bytes starts it anew, and the old one is FILE.1.

    Raises UsageError for what cannot be such a file, or is another run's.
    """

    def __init__(self, path: bytes, limit: int) -> None:
        self.path, self.limit = path, limit
        self.error = ""
        self._has_written = self._is_told = False
        self._lock = threading.Lock()
        parent, self._name = os.path.split(path)
        try:
            if self._name in (b"", b".", b".."):
                raise IsADirectoryError(21, os.strerror(21))
            self._parent = os.open(parent or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from None
        try:
            for name in (self._name, self._name + OLD_LOG):
                check_replaceable(self._parent, name, os.path.join(parent, name), "--log")
            self._is_new = not fsops.exists(self._parent, self._name)
            self._open()
        except BaseException as error:
            os.close(self._parent)
            if isinstance(error, OSError):
                raise self._refused(error) from None
            raise

    def _refused(self, error: OSError) -> UsageError:
        why = "another run writes to it" if isinstance(error, BlockingIOError) else reason(error)
        return UsageError(
            f"--log: cannot write {printable(self.path)}: {why}",
            hint="name a file in a directory that you may write to",
        )

    def _open(self) -> None:
        fd = fsops.open_to_append(self._parent, self._name, 0o666)
        try:
            # Two that turn the file over would each lose what the other wrote.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = _size_of_only(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Never raises: a log that cannot be written is told of, and does not end the command.

        Where nothing could be written at all, not at once: that may be the line of a launch that fails, and no more.
        """
        with self._lock:
            if self.error and data:
                self._tell()
            try:
                while data and not self.error:
                    data = self._write(data)
                    self._has_written = True
            except OSError as error:
                self.error = f"the log {printable(self.path)} is not complete: {reason(error)}"
                if self._has_written:
                    self._tell()

    def _tell(self) -> None:
        if not self._is_told:
            warn(self.error)
        self._is_told = True

    def finish(self, exit_code: int) -> None:
        """Say what is still to be said when all has ended so."""
        if self.error and exit_code != EXIT_LAUNCHER_FAILED:
            self._tell()

    def _write(self, data: bytes) -> bytes:
        """What is left to write."""
        if self._size and self._size + len(data) > self.limit:
            self._turn_over()
        written = os.write(self._fd, data[: self.limit])
        self._size += written
        return data[written:]

    def _turn_over(self) -> None:
        # Somebody else may have put it away: then there is only a new one to make.
        with contextlib.suppress(FileNotFoundError):
            if fsops.same_file(os.stat(self._name, dir_fd=self._parent, follow_symlinks=False), os.fstat(self._fd)):
                fsops.move_over(self._parent, self._name, self._name + OLD_LOG)
        old = self._fd
        self._open()
        os.close(old)

    def close(self, *, used: bool) -> None:
        """A new file that was not `used` goes: a launch that is refused leaves nothing."""
        if self._is_new and not used:
            with contextlib.suppress(OSError):
                fsops.delete_file(self._parent, self._name, expected=self._fd)
        os.close(self._fd)
        os.close(self._parent)


def _size_of_only(fd: int) -> int:
    """A command that may write here could give the log's name to a file that it may not write to."""
    status = os.fstat(fd)
    if status.st_nlink > 1:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
    return status.st_size


class _Stream:
    """A pipe, and what it is passed on to: `out`, or nobody (-1)."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers = numbers
        self.reader, self.writer = os.pipe()
        self.out = numbers[0] if _is_writable(numbers[0]) else -1
        self.gone = (*_GONE, errno.EIO) if os.isatty(numbers[0]) else _GONE
        self.waiting = b""
        self.error = ""

    def pass_on(self, log: bytes) -> None:
        """As much as can be written without waiting: what is said to be writable takes this much (pipe(7))."""
        try:
            count = os.write(self.out, self.waiting[: select.PIPE_BUF])
            self.waiting = self.waiting[count:]
        except BlockingIOError:
            pass
        except OSError as error:
            self.out, self.waiting = -1, b""
            if error.errno in self.gone:
                # The command is to notice, as it would without a log.
                self.stop()
                return
            name = "output" if len(self.numbers) == 2 else ("standard output", "standard error")[self.numbers[0] - 1]
            self.error = f"the {name} is in the log {printable(log)} alone: {reason(error)}"
            warn(self.error)

    def stop(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
        self.reader = -1


class Capture:
    """Of one run. In the engine's process `redirect`, in this one `start` after the fork, and `finish` in the end."""

    def __init__(self, log: Log) -> None:
        self.log = log
        same = os.path.samestat(os.fstat(1), os.fstat(2))
        self._streams = [_Stream((1, 2))] if same else [_Stream((1,)), _Stream((2,))]
        self._ended = os.eventfd(0)
        self._over = self._hurried = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def redirect(self) -> None:
        """From here on this process writes to the pipes, and so does what it starts."""
        for stream in self._streams:
            for number in stream.numbers:
                os.dup2(stream.writer, number)
            os.close(stream.writer)
            stream.stop()

    def start(self) -> None:
        for stream in self._streams:
            os.close(stream.writer)
        self._thread.start()

    def close(self) -> None:
        """Not while somebody is waited for who takes nothing: this process ends now."""
        if not self._thread.is_alive():
            self.log.close(used=self._thread.ident is not None)

    def hurry(self) -> None:
        """The run was asked to end: who takes nothing is not waited for."""
        self._hurried = True

    def finish(self, result: Result) -> Result:
        """After the end of all that wrote. What the log or the reader lacks is a failure, unless the command failed."""
        os.eventfd_write(self._ended, 1)
        self._hurried |= bool(result.signal or result.exit_code == EXIT_TIMED_OUT)
        self._thread.join(_PATIENCE if self._hurried else None)
        self.log.finish(result.exit_code)
        if result == Result(0) and (self.log.error or any(stream.error for stream in self._streams)):
            return Result(EXIT_LAUNCHER_FAILED)
        return result

    def _serve(self) -> None:
        while not self._over or any(stream.waiting for stream in self._streams):
            for fd in self._ready():
                if fd == self._ended:
                    self._over = True
                for stream in self._streams:
                    if fd == stream.reader:
                        self._read(stream)
                    elif fd == stream.out and stream.waiting:
                        stream.pass_on(self.log.path)
            if self._over:
                self._drain()

    def _ready(self) -> list[int]:
        poll = select.poll()
        if not self._over:
            poll.register(self._ended, select.POLLIN)
        for stream in self._streams:
            if stream.waiting:
                poll.register(stream.out, select.POLLOUT)
            elif stream.reader >= 0:
                poll.register(stream.reader, select.POLLIN)
        return [fd for fd, _events in poll.poll()]

    def _read(self, stream: _Stream) -> bool:
        """Whether there was something."""
        data = os.read(stream.reader, _CHUNK)
        self.log.write(data)
        if stream.out >= 0:
            stream.waiting += data
        if not data:
            stream.stop()
        return data != b""

    def _drain(self) -> None:
        """What is still in the pipes belongs into the log, whether or not somebody takes it."""
        for stream in self._streams:
            if stream.reader < 0:
                continue
            # Somebody who could not be ended may have the other end open.
            os.set_blocking(stream.reader, False)
            with contextlib.suppress(BlockingIOError):
                while self._read(stream):
                    pass
            stream.stop()


def _is_writable(fd: int) -> bool:
    """Not where the caller had closed it: something else that nobody writes to has its number then."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        return False
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
