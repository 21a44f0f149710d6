"""A file in memory that is a sandboxed process's standard input: a job for it, and the place for its answer.

The answer is in the sandbox's hands: the file cannot grow beyond what it was made for, and it is read when everything
in the sandbox has ended.
"""

import fcntl
import os
import struct

_HEAD = struct.Struct("<QQ")
# fcntl(2); Python 3.11 knows none of them by name.
_ADD_SEALS, _SHRINK, _GROW, _NO_MORE = 1033, 2, 4, 1


class Mailbox:
    """Outside: `Mailbox.make(job, room)`, `take` afterwards, `close`. Inside: `Mailbox(0)`, `job`, `answer`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls, job: bytes, room: int) -> "Mailbox":
        """A new one, for an answer of at most `room` bytes; closed by the caller."""
        box = cls(os.memfd_create("sandbox-mail", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(box.fd, _HEAD.size + max(len(job), room))
        fcntl.fcntl(box.fd, _ADD_SEALS, _SHRINK | _GROW | _NO_MORE)
        box._write(_HEAD.pack(0, len(job)), 0)
        box._write(job, _HEAD.size)
        return box

    def job(self) -> bytes:
        return self._read(_HEAD.unpack(self._read(_HEAD.size, 0))[1], _HEAD.size)

    def answer(self, data: bytes) -> None:
        """Raises OSError (EPERM) for more than there is room for."""
        self._write(data, _HEAD.size)
        self._write(_HEAD.pack(len(data), 0), 0)

    def take(self) -> bytes:
        """The answer; empty when there is none."""
        length = min(_HEAD.unpack(self._read(_HEAD.size, 0))[0], os.fstat(self.fd).st_size)
        return self._read(length, _HEAD.size)

    def close(self) -> None:
        os.close(self.fd)

    def _read(self, length: int, at: int) -> bytes:
        parts = []
        while length and (part := os.pread(self.fd, length, at)):
            parts.append(part)
            at, length = at + len(part), length - len(part)
        return b"".join(parts)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, at)
            at, view = at + written, view[written:]
