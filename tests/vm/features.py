"""Kernel features, each with the version said to have brought it and a probe: OSError says that it is not there."""

import contextlib
import ctypes
import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox import trials
from sandbox.engine import isolation, syscalls

_LIBC = ctypes.CDLL(None, use_errno=True)
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_STATMOUNT = 457
_FSOPEN, _FSCONFIG, _FSCONFIG_SET_FD = 430, 431, 5
_RDONLY, _NOSYMFOLLOW = 0x1, 0x00200000
_OTHERS = b"0 100000 65536\n"


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


def _mount_setattr(attribute: int) -> Callable[[], None]:
    return lambda: syscalls.mount_setattr(_tmpfs(), set_attrs=attribute, recursive=False)


def _be_on_tmpfs() -> None:
    tmpfs = _tmpfs()
    syscalls.move_mount(tmpfs, os.open("/mnt", os.O_PATH))
    os.fchdir(tmpfs)


def _show_as_others(mount: int) -> int:
    """The same mount, id-mapped; it must be nowhere yet."""
    userns = isolation._mapping_namespace(_OTHERS, _OTHERS)
    syscalls.mount_setattr(mount, set_attrs=syscalls.MOUNT_ATTR_IDMAP, userns=userns, recursive=False)
    return mount


def _idmapped_layer() -> None:
    _be_on_tmpfs()
    for name in ("lower", "upper", "work"):
        os.mkdir(name)
    # Of the root: on ext4, which can be id-mapped as long as there are id-mapped mounts.
    layer = _show_as_others(syscalls.clone_mount(os.open("/etc", os.O_PATH), recursive=False))
    syscalls.move_mount(layer, os.open("lower", os.O_PATH))
    syscalls.make_mount(b"overlay", [(b"lowerdir", b"lower"), (b"upperdir", b"upper"), (b"workdir", b"work")], 0)


@contextlib.contextmanager
def _image(*command: str) -> Iterator[str]:
    """Of a directory, made by this program; on a disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as where:
        Path(where, "tree").mkdir()
        places = {"image": f"{where}/image", "tree": f"{where}/tree"}
        made = subprocess.run([word.format(**places) for word in command], capture_output=True, check=False)
        if made.returncode != 0:
            raise OSError(errno.EIO, made.stderr.decode(errors="replace"))
        yield places["image"]


def _squashfs() -> None:
    _private()
    with _image("mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress") as image:
        # It lets go of its loop device with the last mount, which is this process's.
        subprocess.run(["mount", "-o", "loop,ro", image, "/mnt"], check=True)
        _show_as_others(syscalls.clone_mount(os.open("/mnt", os.O_PATH), recursive=False))


def _erofs() -> None:
    with _image("mkfs.erofs", "{image}", "{tree}") as image:
        syscalls.make_mount(b"erofs", [(b"source", os.fsencode(image))], _RDONLY)


def _layer_by_descriptor() -> None:
    context = _call(_FSOPEN, b"overlay", ctypes.c_uint(0))
    layer = os.open("/etc", os.O_PATH)
    _call(_FSCONFIG, context, ctypes.c_uint(_FSCONFIG_SET_FD), b"lowerdir+", None, layer)


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
    "mount_setattr": ((5, 12), _mount_setattr(_RDONLY)),
    "mount_setattr with nosymfollow": ((5, 14), _mount_setattr(_NOSYMFOLLOW)),
    "cgroup.kill": ((5, 14), _cgroup_kill),
    "id-mapped overlay layers": ((5, 19), _idmapped_layer),
    "id-mapped squashfs": ((6, 2), _squashfs),
    "id-mapped tmpfs": ((6, 3), lambda: os.close(_show_as_others(_tmpfs()))),
    "tmpfs noswap": ((6, 4), lambda: os.close(_tmpfs((b"noswap", None)))),
    "tmpfs user xattrs": ((6, 6), _xattr),
    "overlay in a user namespace": ((5, 11), _userns_overlay),
    "statmount": ((6, 8), _statmount),
    "erofs from a file": ((6, 12), _erofs),
    "Landlock scopes": ((6, 12), _landlock(6)),
    "overlay layers by descriptor": ((6, 13), _layer_by_descriptor),
}
