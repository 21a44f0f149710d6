"""A process for which no file system knows O_TMPFILE, or flock, as on NFS: a seccomp filter answers for the kernel."""

import ctypes
import errno
import platform
import struct

import prctl

_OPENAT = {"x86_64": 257, "aarch64": 56}
_FLOCK = {"x86_64": 73, "aarch64": 32}
_O_TMPFILE_BIT = 0o20000000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def forbid() -> None:
    """From now on, and for good: open with O_TMPFILE fails with EOPNOTSUPP (seccomp(2))."""
    _filter(
        (_LOAD, 0, 0, 0),  # the number of the call
        (_JUMP_EQUAL, 0, 3, _OPENAT[platform.machine()]),
        (_LOAD, 0, 0, 16 + 2 * 8),  # the low half of its third argument, the flags
        (_JUMP_SET, 0, 1, _O_TMPFILE_BIT),
        (_RETURN, 0, 0, _ERRNO | errno.EOPNOTSUPP),
        (_RETURN, 0, 0, _ALLOW),
    )


def forbid_locks(error: int) -> None:
    """The same of flock, with the error that a file system without it has: ENOLCK, EOPNOTSUPP."""
    _filter(
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, _FLOCK[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    )


def _filter(*program: tuple[int, int, int, int]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    prctl.set_no_new_privs(1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot install the filter")
