"""Loop devices: one per image file, however many sandboxes (docs/plan.md, section 6)."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, reason

_ATTEMPTS = 64
_LOOP_MAJOR = 7
_GIVE = (
    "give the container --device /dev/loop-control --device-cgroup-rule 'b 7:* rmw' --cap-add MKNOD, "
    "or use --mode userns"
)


@contextlib.contextmanager
def attached(image_fd: int, locks_fd: int | None) -> Iterator[bytes]:
    """The path of a loop device that shows the image; kept from going away for the block.

    Shared by all who mount the same file when `locks_fd`, the home's lock directory, is given.
    Raises HostError when the host has no loop devices to give.
    """
    if locks_fd is None:
        fd, path = _attach(image_fd)
        with fsops.closing(fd):
            yield path
        return
    status = os.fstat(image_fd)
    with fsops.closing(fsops.open_locked(locks_fd, b"loop-%d-%d" % (status.st_dev, status.st_ino))) as lock:
        found = _find(status, remembered=os.read(lock, 32))
        fd, path = found or _attach(image_fd)
        with fsops.closing(fd):
            if found is None:
                os.pwrite(lock, path.removeprefix(b"/dev/loop").ljust(8), 0)
            # The lock is held until the caller has mounted: before that, nobody can find the device in vain.
            yield path


def _find(status: os.stat_result, *, remembered: bytes) -> tuple[int, bytes] | None:
    number = remembered.strip()
    if number.isdigit() and (fd := _open_if_backs(b"/dev/loop" + number, status)) is not None:
        return fd, b"/dev/loop" + number
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(b"/sys/block"):
            # A device that nothing is attached to has no such directory, and costs no open.
            in_use = name.startswith(b"loop") and os.path.exists(b"/sys/block/" + name + b"/loop")
            if in_use and (fd := _open_if_backs(b"/dev/" + name, status)) is not None:
                return fd, b"/dev/" + name
    return None


def _open_if_backs(path: bytes, status: os.stat_result) -> int | None:
    """The open device if it backs the image. While it is open it cannot be cleared, so one look is enough."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if sys.loop_status(fd).backs(status.st_dev, status.st_ino):
            return fd
    os.close(fd)
    return None


def _attach(image_fd: int) -> tuple[int, bytes]:
    try:
        control = os.open(b"/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = f"cannot open /dev/loop-control: {reason(error)}"
        raise HostError(why, hint=f"load the loop module (modprobe loop), {_GIVE}") from None
    with fsops.closing(control):
        for _ in range(_ATTEMPTS):
            number = sys.loop_get_free(control)
            path = b"/dev/loop%d" % number
            try:
                fd = _open_or_make(number)
            except OSError as error:
                raise HostError(f"cannot open {path.decode()}: {reason(error)}", hint=_GIVE) from None
            try:
                sys.loop_configure(fd, image_fd)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
                continue
            return fd, path
    raise HostError("no loop device stays free long enough to be attached", hint="try again")


def _open_or_make(number: int) -> int:
    """The node of a device that there is. A container's /dev does not get those of new devices from the kernel."""
    name = b"loop%d" % number
    with fsops.closing(os.open(b"/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as dev:
        with contextlib.suppress(FileNotFoundError):
            return _open_node(dev, name)
        # In a container without /sys they are numbered as the module does without partitions.
        major, minor = _LOOP_MAJOR, number
        with contextlib.suppress(OSError), open(b"/sys/block/" + name + b"/dev") as file:
            major, minor = map(int, file.read().split(":"))
        with contextlib.suppress(FileExistsError):
            fsops.new_block_device(dev, name, os.makedev(major, minor))
        return _open_node(dev, name)


def _open_node(dev: int, name: bytes) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dev)
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode) and os.major(status.st_rdev) == _LOOP_MAJOR:
        return fd
    os.close(fd)
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
