"""Filesystem operations by descriptor: the only module that changes the user's filesystem (docs/design, rules).

A path from outside is resolved once; everything after works on descriptors. A file becomes visible complete and
durable, or not at all. All functions raise OSError.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Self

from sandbox.engine import syscalls as sys

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_QUARANTINE = b".trash"
TEMPORARY = b".tmp-"
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, closed at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_dir(parent: int, name: bytes) -> int:
    """The directory `name` in `parent`; a symlink is ENOTDIR or ELOOP."""
    return os.open(name, _DIR, dir_fd=parent)


def make_dir(parent: int, name: bytes, mode: int = 0o700) -> int:
    """The directory `name` in `parent`, made if it is missing."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
    return open_dir(parent, name)


def make_new_dir(parent: int, name: bytes, mode: int = 0o700) -> int:
    """A directory that was not there before. Raises FileExistsError."""
    os.mkdir(name, mode, dir_fd=parent)
    return open_dir(parent, name)


def open_path(parent: int, path: bytes) -> int:
    """An O_PATH handle of a directory beneath `parent`: no symlink, no way out, mounts may be crossed."""
    resolve = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS
    return sys.openat2(parent, path, os.O_PATH | os.O_DIRECTORY, resolve=resolve)


def make_dirs(start: int, path: bytes, mode: int, *, follow: bool) -> None:
    """The directory `path` below `start`, which is closed, and its missing parents; links only with `follow`."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = start
    for part in filter(None, path.split(b"/")):
        with closing(fd):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, mode, dir_fd=fd)
            fd = os.open(part, flags, dir_fd=fd)
    os.close(fd)


def open_lock(parent: int, name: bytes) -> int:
    """A file to flock, made if it is missing; never through a symlink."""
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)


class Draft:
    """A file that nobody can see yet. `publish` gives it its name; without that it never existed."""

    def __init__(self, parent: int, mode: int = 0o600) -> None:
        self.parent = parent
        self.temporary: bytes | None = None
        try:
            self.fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self.temporary = temporary_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self.temporary, flags, mode, dir_fd=parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.temporary, dir_fd=self.parent)
        if self.fd >= 0:
            os.close(self.fd)

    def publish(self, name: bytes, *, durable: bool = True) -> None:
        """Give the file its name. Raises FileExistsError, and the file stays a draft, when the name is taken.

        `durable` is for what must survive a power cut; a lock or a run record need not.
        """
        if durable:
            os.fsync(self.fd)
        if self.temporary is None:
            os.link(b"/proc/self/fd/%d" % self.fd, name, dst_dir_fd=self.parent, follow_symlinks=True)
        else:
            sys.renameat2(self.parent, self.temporary, self.parent, name, sys.RENAME_NOREPLACE)
            self.temporary = None
        if durable:
            os.fsync(self.parent)

    def keep_open(self) -> int:
        """The descriptor, which the caller now owns."""
        fd, self.fd = self.fd, -1
        return fd


def temporary_name() -> bytes:
    """A name nobody else uses; leftovers with this prefix are the reaper's."""
    return TEMPORARY + os.urandom(8).hex().encode()


def replace_file(
    parent: int,
    name: bytes,
    data: bytes,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    durable: bool = False,
) -> None:
    """Put `data` under `name`, in place of what may be there. Readers see the old or the new, whole."""
    with Draft(parent) as draft:
        with open(draft.fd, "wb", closefd=False) as file:
            file.write(data)
        if owner is not None:
            os.fchown(draft.fd, *owner)
        # After the owner: a change of owner takes the setuid bit away (chown(2)).
        os.fchmod(draft.fd, mode)
        temporary = temporary_name()
        draft.publish(temporary, durable=durable)
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise
    if durable:
        os.fsync(parent)


def read_file(parent: int, name: bytes, limit: int = 1 << 20) -> bytes:
    """The start, at most `limit` bytes, of a regular file; never through a symlink, never a FIFO that blocks."""
    with closing(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.read(fd, limit)


def names(parent: int) -> list[bytes]:
    """The names in a directory, by descriptor."""
    # A second open: listdir moves the offset that dup'ed descriptors share.
    with closing(os.open(b".", _DIR, dir_fd=parent)) as fd:
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


def delete_file(parent: int, name: bytes, *, expected: os.stat_result | None = None) -> bool:
    """Remove a name if it still means the file `expected`. False when it is gone or means another.

    Linux has no unlink by descriptor: the name is moved into a private directory first, looked at there, and put
    back should it turn out to be somebody else's.
    """
    try:
        if expected is None:
            os.unlink(name, dir_fd=parent)
            return True
        return _delete_exactly(parent, name, expected)
    except FileNotFoundError:
        return False


def _delete_exactly(parent: int, name: bytes, expected: os.stat_result) -> bool:
    if not same_file(os.stat(name, dir_fd=parent, follow_symlinks=False), expected):
        return False
    with closing(make_dir(parent, _QUARANTINE)) as trash:
        moved = temporary_name()
        sys.renameat2(parent, name, trash, moved, sys.RENAME_NOREPLACE)
        if not same_file(os.stat(moved, dir_fd=trash, follow_symlinks=False), expected):
            sys.renameat2(trash, moved, parent, name, sys.RENAME_NOREPLACE)
            return False
        os.unlink(moved, dir_fd=trash)
    return True


def remove_dir(parent: int, name: bytes) -> bool:
    """rmdir; False when it is not there or not empty."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EBUSY):
            return False
        raise
    return True


def remove_tree(parent: int, name: bytes, *, keep: Callable[[os.stat_result], bool] = lambda _: False) -> None:
    """Remove a tree by descriptor, depth first: no symlink is followed, no mount is crossed.

    `keep` may refuse the tree after its root was opened. Raises OSError, and leaves the rest, on what cannot go.
    """
    try:
        root = open_dir(parent, name)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return
    with closing(root):
        status = os.fstat(root)
        if keep(status):
            return
        _empty(root, status.st_dev)
    os.rmdir(name, dir_fd=parent)


def _empty(root: int, device: int) -> None:
    """Remove everything in `root`. An explicit stack: a tree may be deeper than Python's own."""
    stack = [(os.dup(root), None, iter(names(root)))]
    try:
        while stack:
            fd, own_name, rest = stack[-1]
            child = next(rest, None)
            if child is None:
                stack.pop()
                os.close(fd)
                if own_name is not None:
                    os.rmdir(own_name, dir_fd=stack[-1][0])
                continue
            if (entered := _unlink_or_enter(fd, child, device)) is not None:
                stack.append((entered, child, iter(names(entered))))  # type: ignore[arg-type]
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _unlink_or_enter(parent: int, name: bytes, device: int) -> int | None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return None
    if status.st_dev != device:
        raise OSError(errno.EXDEV, "a mount is in the way", name)
    fd = _open_unlocked(parent, name)
    if os.fstat(fd).st_dev != device:
        os.close(fd)
        raise OSError(errno.EXDEV, "a mount is in the way", name)
    return fd


def _open_unlocked(parent: int, name: bytes) -> int:
    """Open a directory of ours for emptying, whatever its mode says (overlay's `work` is 0000)."""
    with closing(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)) as handle:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(b"/proc/self/fd/%d" % handle, 0o700)
        return os.open(b".", _DIR, dir_fd=handle)
