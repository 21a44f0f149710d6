"""A directory as a source: its entries and data by descriptor, no symlink followed, no mount crossed."""

import errno
import os
import stat
from collections.abc import Iterator

from sandbox.engine import syscalls as sys
from sandbox.errors import SourceError, printable, reason, remedy
from sandbox.images.reader import Raw

_CHUNK = 1 << 18
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Found = tuple[bytes, os.stat_result, int, bytes]  # path, status, descriptor of its directory, own name


def walk(root: int) -> Iterator[Found]:
    """Everything below `root`, sorted, parents first. The directory's descriptor is valid until the next step.

    Raises SourceError when a directory cannot be read or something else is mounted inside.
    """
    device = os.fstat(root).st_dev
    yield b"", os.fstat(root), root, b"."
    stack: list[tuple[int, bytes, Iterator[bytes]]] = []
    try:
        stack.append(_enter(root, b".", b""))
        while stack:
            fd, path, rest = stack[-1]
            name = next(rest, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            full = path + b"/" + name if path else name
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if status.st_dev != device and _is_mounted(fd, name):
                raise SourceError(f"'{printable(full)}' is on another file system", hint="sandbox crosses no mount")
            yield full, status, fd, name
            if stat.S_ISDIR(status.st_mode):
                stack.append(_enter(fd, name, full))
    except OSError as error:
        raise SourceError(
            f"cannot read '{printable(os.fsencode(error.filename or b'.'))}': {reason(error)}", hint=remedy(error)
        ) from None
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _is_mounted(parent: int, name: bytes) -> bool:
    """Whether a mount begins here. An overlay's files have the devices of its layers, and are its own all the same."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(sys.openat2(parent, name, flags, resolve=sys.RESOLVE_BENEATH | sys.RESOLVE_NO_XDEV))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def _enter(parent: int, name: bytes, path: bytes) -> tuple[int, bytes, Iterator[bytes]]:
    fd = os.open(name, _DIR, dir_fd=parent)
    return fd, path, iter(sorted(os.fsencode(child) for child in os.listdir(fd)))


class TreeSource:
    """The directory `root` as an archive: hard links kept, holes kept."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._links: dict[tuple[int, int], bytes] = {}
        self._inode = (0, 0)
        self._fd = -1
        self._map: tuple[tuple[int, int], ...] = ()

    def __iter__(self) -> Iterator[Raw]:
        for path, status, parent, name in walk(self._root):
            perm, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
            kind = stat.S_IFMT(status.st_mode)
            link = self._first_name(path, status) if kind == stat.S_IFREG else None
            if link is not None or kind != stat.S_IFREG:
                text = os.readlink(name, dir_fd=parent) if kind == stat.S_IFLNK else b""
                whiteout = kind == stat.S_IFCHR and status.st_rdev == 0
                yield Raw(path, kind, perm, mtime, 0, text, link, True, (), whiteout)
                continue
            try:
                fd = os.open(name, _FILE, dir_fd=parent)
            except OSError as error:
                raise SourceError(f"cannot read '{printable(path)}': {reason(error)}", hint=remedy(error)) from None
            try:
                opened = os.fstat(fd)
                if not stat.S_ISREG(opened.st_mode):
                    raise SourceError(f"'{printable(path)}' changes while it is read", hint="try again")
                self._fd = fd
                self._map = _data_map(fd, opened)
                yield Raw(path, kind, perm, mtime, opened.st_size, b"", None, True, self._map)
            finally:
                os.close(fd)

    def _first_name(self, path: bytes, status: os.stat_result) -> bytes | None:
        self._inode = (status.st_dev, status.st_ino)
        if status.st_nlink < 2:
            return None
        first = self._links.setdefault(self._inode, path)
        return first if first != path else None

    def leave_out(self) -> None:
        """The entry that was yielded last is not taken: the next name of the same file comes with its data."""
        self._links.pop(self._inode, None)

    def blocks(self, name: bytes) -> Iterator[tuple[int, memoryview]]:
        """The data of the entry that was yielded last."""
        size = os.fstat(self._fd).st_size
        for begin, length in self._map or ((0, size),):
            at = begin
            while at < begin + length:
                chunk = os.pread(self._fd, min(_CHUNK, begin + length - at), at)
                if not chunk:
                    raise SourceError(f"'{printable(name)}' changes while it is read", hint="try again")
                yield at, memoryview(chunk)
                at += len(chunk)


def _data_map(fd: int, status: os.stat_result) -> tuple[tuple[int, int], ...]:
    """Where a file that takes less room than its size has data (lseek(2), SEEK_DATA); () when it has no holes."""
    if status.st_blocks * 512 >= status.st_size:
        return ()
    found = []
    at = 0
    while at < status.st_size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            return ()
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), status.st_size)
        found.append((begin, at - begin))
    return tuple(found) or ((status.st_size, 0),)
