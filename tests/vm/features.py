"""Kernel features, each with the version said to have brought it and a probe: OSError says that it is not there."""

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from sandbox import trials
from sandbox.engine import syscalls

_LIBC = ctypes.CDLL(None, use_errno=True)
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_STATMOUNT = 457
_NOSYMFOLLOW = 0x00200000


def _call(number: int, *args: object) -> int:
    result = int(_LIBC.syscall(ctypes.c_long(number), *args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _private() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)


def _tmpfs(*options: tuple[bytes, bytes | None]) -> int:
    _private()
    return syscalls.make_mount(b"tmpfs", list(options), 0)


def _landlock(version: int) -> Callable[[], None]:
    def probe() -> None:
        if _call(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_LANDLOCK_VERSION)) < version:
            raise OSError(errno.ENOSYS, f"an older ABI than {version}")

    return probe


def _statmount() -> None:
    try:
        _call(_STATMOUNT, None, None, ctypes.c_size_t(0), ctypes.c_uint(0))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise


def _mount_setattr() -> None:
    syscalls.mount_setattr(_tmpfs(), set_attrs=_NOSYMFOLLOW, recursive=False)


def _cgroup_kill() -> None:
    where = Path("/sys/fs/cgroup/probe")
    where.mkdir()
    try:
        os.stat(where / "cgroup.kill")
    finally:
        where.rmdir()


def _xattr() -> None:
    os.fchdir(_tmpfs())
    trials._try_xattr()


def _userns_overlay() -> None:
    found: trials.Trial = {}
    trials.in_user_namespace(found)
    if failed := trials.failure(found, ("overlay",)):
        raise OSError(failed[1], failed[2])


# Name: the first kernel that has it, the probe.
PROBES: dict[str, tuple[tuple[int, int], Callable[[], None]]] = {
    "Landlock": ((5, 13), _landlock(1)),
    "mount_setattr with nosymfollow": ((5, 14), _mount_setattr),
    "cgroup.kill": ((5, 14), _cgroup_kill),
    "tmpfs noswap": ((6, 4), lambda: os.close(_tmpfs((b"noswap", None)))),
    "tmpfs user xattrs": ((6, 6), _xattr),
    "overlay in a user namespace": ((5, 11), _userns_overlay),
    "statmount": ((6, 8), _statmount),
    "Landlock scopes": ((6, 12), _landlock(6)),
}
