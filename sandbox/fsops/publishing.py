"""What becomes visible: complete and durable, or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Self

from sandbox.engine import syscalls as sys
from sandbox.fsops.handles import open_new, same_file, temporary_name

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_CHUNK = 1 << 30


class Draft:
    """A file that nobody can see yet. `publish` gives it its name; without that it never existed.

    `called` is asked for a temporary name where a file has to have one.
    """

    def __init__(self, parent: int, mode: int = 0o600, called: Callable[[], bytes] = temporary_name) -> None:
        self.parent = parent
        self.temporary: bytes | None = None
        try:
            self.fd = open_new(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, parent=parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self.temporary = called()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = open_new(self.temporary, flags, mode, parent=parent)

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
            move_new(self.parent, self.temporary, self.parent, name)
            self.temporary = None
            # A temporary name can be taken from us by whoever may write to the directory; the descriptor cannot.
            if not same_file(os.stat(name, dir_fd=self.parent, follow_symlinks=False), os.fstat(self.fd)):
                raise OSError(errno.ESTALE, "somebody else put another file there", name)
        if durable:
            os.fsync(self.parent)

    def keep_open(self) -> int:
        """The descriptor, which the caller now owns."""
        fd, self.fd = self.fd, -1
        return fd


def move_new(source_parent: int, source: bytes, parent: int, name: bytes) -> None:
    """Rename to a name that is not taken. Raises FileExistsError. Atomic; durable after an fsync of the parents."""
    try:
        sys.renameat2(source_parent, source, parent, name, sys.RENAME_NOREPLACE)
    except OSError as error:
        # NFS knows no flags of rename. A hard link refuses a taken name as well (and a directory altogether).
        if error.errno != errno.EINVAL:
            raise
        os.link(source, name, src_dir_fd=source_parent, dst_dir_fd=parent, follow_symlinks=False)
        os.unlink(source, dir_fd=source_parent)


def move_over(parent: int, source: bytes, name: bytes) -> None:
    """Rename in place of what may have that name. Atomic, and not durable: for what may be lost in a power cut."""
    os.rename(source, name, src_dir_fd=parent, dst_dir_fd=parent)


def publish_dir(parent: int, temporary: bytes, name: bytes) -> None:
    """Give a directory that was filled under a temporary name, and synced (syncfs(2)), its own.

    Raises FileExistsError, and the directory keeps its temporary name, when the name is taken.
    """
    move_new(parent, temporary, parent, name)
    os.fsync(parent)


def publish_copy(
    source: int, parent: int, name: bytes, *, mode: int = 0o600, say: Callable[[str], None] = lambda _: None
) -> None:
    """A copy of the file `source` under `name`, complete and durable or not at all. Raises FileExistsError.

    Data can be shared or renamed only within a filesystem: across two (EXDEV) all of it is written anew, and `say`
    gets a line about it.
    """
    with Draft(parent) as draft:
        size = os.fstat(source).st_size
        if os.fstat(source).st_dev != os.fstat(draft.fd).st_dev:
            say(f"copying {size} bytes from another filesystem")
        if copy_file(source, draft.fd) != size:
            raise OSError(errno.ESTALE, "the file changed while it was copied", name)
        os.fchmod(draft.fd, mode)
        draft.publish(name)


def copy_file(source: int, target: int) -> int:
    """Copy all of the regular file `source` into the empty file `target`; the bytes copied. Offsets are not moved.

    Shares the data where the filesystem can (FICLONE: btrfs, xfs, bcachefs), else copies inside the kernel. A memfd
    will do on either side.
    """
    import fcntl

    size = os.fstat(source).st_size
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return os.fstat(target).st_size
    at = 0
    while at < size:
        try:
            count = os.copy_file_range(source, target, min(size - at, _CHUNK), at, at)
        except OSError as error:
            if error.errno not in _NO_RANGE:
                raise
            count = 0
        # Filesystems of one's own (FUSE) and memory answer 0 or an error where reading works.
        if count == 0 and (count := _copy_some(source, target, at)) == 0:
            break
        at += count
    return at


def _copy_some(source: int, target: int, at: int) -> int:
    data = os.pread(source, 1 << 20, at)
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], at + written)
    return written


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
        if durable:
            os.fsync(draft.fd)
        temporary = temporary_name()
        draft.publish(temporary, durable=False)
        _switch(parent, temporary, name)
    if durable:
        os.fsync(parent)


def switch_name(parent: int, name: bytes, target: bytes) -> None:
    """Make `name` a symlink with the text `target`, in place of what may be there (no directory): EISDIR.

    Atomic: readers see the old or the new link. Durable when it returns, with one fsync. When it raises OSError, the
    old name is untouched, unless that last fsync is what failed.
    """
    temporary = temporary_name()
    os.symlink(target, temporary, dir_fd=parent)
    _switch(parent, temporary, name)
    os.fsync(parent)


def _switch(parent: int, temporary: bytes, name: bytes) -> None:
    """Rename over `name`; no temporary name is left behind."""
    try:
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        raise
