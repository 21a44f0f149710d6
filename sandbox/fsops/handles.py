"""Opening and making by descriptor: one component below a held directory, or a path that is resolved once."""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator

from sandbox.engine import syscalls as sys

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
TEMPORARY = b".tmp-"
# ioctl_iflags(2); the numbers say long, the kernel reads an int.
_GET_FLAGS = 0x80006601 | struct.calcsize("@l") << 16
_SET_FLAGS = 0x40006602 | struct.calcsize("@l") << 16
_IMMUTABLE = 0x10


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, closed at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_dir(parent: int, name: bytes) -> int:
    """The directory `name` in `parent`; a symlink is ENOTDIR or ELOOP."""
    return os.open(name, DIRECTORY, dir_fd=parent)


def make_dir(parent: int, name: bytes, mode: int = 0o700) -> int:
    """The directory `name` in `parent`, made if it is missing."""
    with contextlib.suppress(FileExistsError):
        new_dir(parent, name, mode)
    return open_dir(parent, name)


def make_new_dir(parent: int, name: bytes, mode: int = 0o700) -> int:
    """A directory that was not there before. Raises FileExistsError."""
    new_dir(parent, name, mode)
    return open_dir(parent, name)


def new_dir(parent: int, name: bytes, mode: int) -> None:
    """The same, not opened. It has this mode whatever umask(2) says, which changes for all threads or not at all."""
    os.mkdir(name, mode, dir_fd=parent)
    if mode & ~os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode:
        # Its owner may not even open it, but for its name.
        with closing(os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=parent)) as fd:
            _add_mode(fd, mode)


def _add_mode(fd: int, mode: int) -> None:
    """What the umask took from something of ours."""
    status = os.fstat(fd)
    if mode & ~status.st_mode and status.st_uid == os.geteuid():
        # Filesystems without modes (vfat) refuse.
        with contextlib.suppress(PermissionError):
            set_mode_and_time(fd, stat.S_IMODE(status.st_mode) | mode)


def open_new(name: bytes, flags: int, mode: int, *, parent: int) -> int:
    """Open a file that this may make. What is for nobody else is so whatever the umask is; from what others may have
    (modes as 0666) it takes what it always takes.
    """
    fd = os.open(name, flags, mode, dir_fd=parent)
    if not mode & 0o077:
        _add_mode(fd, mode)
    return fd


def open_path(parent: int, path: bytes) -> int:
    """An O_PATH handle of a directory beneath `parent`: no symlink, no way out, mounts may be crossed."""
    resolve = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_LINKS
    return sys.openat2(parent, path, os.O_PATH | os.O_DIRECTORY, resolve=resolve)


def make_dirs(start: int, path: bytes, mode: int, *, owner: tuple[int, int]) -> int:
    """An O_PATH handle of the directory `path` below `start`, which is closed, made with its missing parents; through
    no link. What is made belongs to `owner`.
    """
    fd = start
    for part in filter(None, path.split(b"/")):
        with closing(fd):
            try:
                fd = _new_dir_of(fd, part, mode, owner)
            except FileExistsError:
                fd = os.open(part, _PATH | os.O_NOFOLLOW, dir_fd=fd)
    return fd


def make_dirs_in(root: int, path: bytes, mode: int, *, owner: tuple[int, int]) -> int:
    """The same below `root` as if that were the root directory: links on the way lead nowhere out of it."""
    resolve = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS
    fd, reached = os.dup(root), b""
    for part in filter(None, path.split(b"/")):
        reached += b"/" + part
        with closing(fd):
            try:
                fd = sys.openat2(root, reached, _PATH, resolve=resolve)
            except FileNotFoundError:
                fd = _new_dir_of(fd, part, mode, owner)
    return fd


def _new_dir_of(parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> int:
    """A directory that was not there before. Raises FileExistsError, for a link too."""
    new_dir(parent, name, mode)
    ours = (os.geteuid(), os.getegid())
    if owner != ours:
        with closing(open_dir(parent, name)) as fd:
            # Somebody may have put another directory there since: only one of ours is given away.
            if os.fstat(fd).st_uid == ours[0]:
                os.fchown(fd, *owner)
    return os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=parent)


def fill(fd: int, content: bytes, owner: tuple[int, int]) -> None:
    """Write all of a new file, and give it away."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    if owner != (os.geteuid(), os.getegid()):
        os.fchown(fd, *owner)


def open_or_make_dir(path: bytes, mode: int = 0o700) -> int:
    """The directory a user's path leads to; its last component, and only that, is made if it is missing.

    Links are followed, as the path is the user's own word: what counts is checked on the descriptor.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    parent, name = os.path.split(path.rstrip(b"/"))
    with closing(os.open(parent or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as above:
        with contextlib.suppress(FileExistsError):
            new_dir(above, name, mode)
        return os.open(name, flags, dir_fd=above)


def open_lock(parent: int, name: bytes, *, make: bool = True) -> int:
    """A file to flock, made if it is missing; never through a symlink, never a FIFO that blocks.

    Open for writing too: NFS gives an exclusive lock to nobody else (flock(2)).
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not make:
        return os.open(name, flags, dir_fd=parent)
    return open_new(name, flags | os.O_CREAT, 0o600, parent=parent)


def open_locked(parent: int, name: bytes) -> int:
    """The file of that name, made if it is missing, with an exclusive lock on it.

    Who removes lock files holds their lock: what was waited for may have no name any more, and locks nobody out.
    """
    import fcntl

    while True:
        fd = open_lock(parent, name)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if same_file(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(fd)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def append(parent: int, name: bytes, data: bytes) -> None:
    """Add to the end of a file, made if it is missing; never through a symlink, never into a FIFO."""
    with closing(open_to_append(parent, name)) as fd:
        os.write(fd, data)


def open_to_append(parent: int, name: bytes, mode: int = 0o600) -> int:
    """The same file, open: all that is written goes to its end."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = open_new(name, flags, mode, parent=parent)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", name)


def touch(fd: int) -> None:
    """The file's times are now."""
    os.utime(fd)


def set_mode_and_time(fd: int, mode: int, mtime_ns: int | None = None) -> None:
    """Of a file or a directory; `fd` may be an O_PATH handle, for which fchmod(2) and futimens(3) say EBADF."""
    path = b"/proc/self/fd/%d" % fd
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    os.chmod(path, mode)


def new_file(parent: int, name: bytes, mode: int = 0o600) -> int:
    """A file that was not there before, open for writing. Raises FileExistsError, for a symlink too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open_new(name, flags, mode, parent=parent)


def new_symlink(parent: int, name: bytes, target: bytes, mtime_ns: int) -> None:
    """A symlink with this text, which nobody follows here. Raises FileExistsError."""
    os.symlink(target, name, dir_fd=parent)
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)


def new_whiteout(parent: int, name: bytes) -> None:
    """What hides a name of the layers beneath: a character device 0:0, which nobody needs privilege for (Linux 5.8)."""
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)


def new_block_device(parent: int, name: bytes, device: int) -> None:
    """A node for a block device, for its owner only. Raises FileExistsError."""
    os.mknod(name, stat.S_IFBLK | 0o600, device, dir_fd=parent)


def new_link(source_parent: int, source: bytes, parent: int, name: bytes) -> None:
    """A second name for a file, or for a symlink itself. Raises FileExistsError."""
    os.link(source, name, src_dir_fd=source_parent, dst_dir_fd=parent, follow_symlinks=False)


def temporary_name() -> bytes:
    """A name nobody else uses; leftovers with this prefix are the reaper's."""
    return TEMPORARY + os.urandom(8).hex().encode()


def read_file(parent: int, name: bytes, limit: int = 1 << 20) -> bytes:
    """The start, at most `limit` bytes, of a regular file; never through a symlink, never a FIFO that blocks."""
    with closing(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.read(fd, limit)


def names(parent: int) -> list[bytes]:
    """The names in a directory, by descriptor."""
    # A second open: listdir moves the offset that dup'ed descriptors share.
    with closing(os.open(b".", DIRECTORY, dir_fd=parent)) as fd:
        return [os.fsencode(name) for name in os.listdir(fd)]


def exists(parent: int, name: bytes | str) -> bool:
    """Whether there is anything of that name, a dangling link included."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether both describe one inode."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def is_immutable(fd: int) -> bool:
    """Whether an open file or directory has the immutable flag (FS_IOC_GETFLAGS); False where there is no such flag."""
    try:
        return bool(_flags(fd) & _IMMUTABLE)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise


def set_immutable(fd: int, *, immutable: bool) -> None:
    """Set or take away that flag, and leave all others (FS_IOC_SETFLAGS)."""
    import fcntl

    flags = _flags(fd)
    wanted = flags | _IMMUTABLE if immutable else flags & ~_IMMUTABLE
    fcntl.ioctl(fd, _SET_FLAGS, struct.pack("@i", wanted))


def _flags(fd: int) -> int:
    import fcntl

    return int(struct.unpack("@i", fcntl.ioctl(fd, _GET_FLAGS, bytes(4)))[0])
