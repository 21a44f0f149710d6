"""Copying out what somebody else made: nothing in it is followed, waited for, or larger than was agreed."""

import errno
import os
import stat

from sandbox.engine import syscalls as sys
from sandbox.fsops.handles import closing, make_new_dir, names, new_file, new_symlink, set_mode_and_time
from sandbox.record import Record

_INSIDE = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_LINKS | sys.RESOLVE_NO_XDEV
_DEEPEST = 128
_CHUNK = 1 << 20
# What an entry costs beside its content, or a tree of empty files would be free.
_ENTRY = 4096


class Reader(Record):
    """Whose rights count where the copying process has more: its own do where `uid` is None.

    `uids` and `gids` are ranges, (first, count), whose files this user reads too: root inside has them.
    """

    uid: int | None
    gid: int | None
    uids: tuple[tuple[int, int], ...] = ()
    gids: tuple[tuple[int, int], ...] = ()

    def check(self, status: os.stat_result, name: bytes) -> None:
        """Raises PermissionError for what this user could not read."""
        if self.uid is None or (_is_in(status.st_uid, self.uids) and _is_in(status.st_gid, self.gids)):
            return
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
        needed = 5 if stat.S_ISDIR(status.st_mode) else 4
        if status.st_mode >> shift & needed != needed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def _is_in(number: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= number < first + count for first, count in ranges)


class Copy:
    """One copy. `left` bytes may still be taken; sizes count, holes included, so that nobody later reads for ever.

    `files` and `taken` (bytes) are what was copied, `skipped` what is no file, directory or symlink.
    """

    def __init__(self, reader: Reader, left: int, umask: int) -> None:
        self.reader, self.left, self.mask = reader, left, 0o777 & ~umask
        self.files = self.taken = self.skipped = 0
        # Of the tree that is being made. An overlay that shows it has other numbers for it; the name is nobody else's.
        self.own_name = b""

    def file(self, source: int, target: int, name: bytes) -> None:
        """Of an open regular file into an empty one, with its holes, permissions and time."""
        status = os.fstat(source)
        self.reader.check(status, name)
        self._take(status.st_size, name)
        at = 0
        while at < status.st_size:
            try:
                begin = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            at = min(os.lseek(source, begin, os.SEEK_HOLE), status.st_size)
            _copy_range(source, target, begin, at)
        os.ftruncate(target, status.st_size)
        set_mode_and_time(target, status.st_mode & self.mask, status.st_mtime_ns)
        self.files += 1
        self.taken += status.st_size

    def tree(self, source: int, target: int, name: bytes, depth: int = 0) -> None:
        """What is in a directory into an empty one. Nothing that is mounted in it is entered."""
        self.reader.check(os.fstat(source), name)
        if depth > _DEEPEST:
            raise OSError(errno.ELOOP, f"nested deeper than {_DEEPEST} directories", name)
        for entry in names(source):
            self._entry(source, target, entry, depth)
        status = os.fstat(source)
        set_mode_and_time(target, status.st_mode & self.mask | 0o700, status.st_mtime_ns)

    def _entry(self, source: int, target: int, name: bytes, depth: int) -> None:
        if name == self.own_name:
            raise OSError(errno.ELOOP, "DEST lies in it")
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            self._take(0, name)
            new_symlink(target, name, os.readlink(name, dir_fd=source), status.st_mtime_ns)
        elif stat.S_ISDIR(status.st_mode):
            self._take(0, name)
            with closing(_open(source, name, os.O_DIRECTORY)) as below, closing(make_new_dir(target, name)) as made:
                self.tree(below, made, name, depth + 1)
        elif stat.S_ISREG(status.st_mode):
            with closing(_open(source, name, 0)) as file:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(errno.ESTALE, "it changes while it is copied", name)
                with closing(new_file(target, name)) as made:
                    self.file(file, made, name)
        else:
            self.skipped += 1

    def _take(self, size: int, name: bytes) -> None:
        self.left -= size + _ENTRY
        if self.left < 0:
            raise OSError(errno.EFBIG, "it is larger than --tmpfs-size", name)


def open_found(start: int, path: bytes) -> int:
    """What a path leads to, to be looked at: absolute ones in the root `start`, others beneath it; through no link."""
    where = sys.RESOLVE_IN_ROOT if path.startswith(b"/") else sys.RESOLVE_BENEATH
    return sys.openat2(start, path, os.O_PATH, resolve=sys.RESOLVE_NO_LINKS | where)


def open_readable(found: int) -> int:
    """The same file or directory, for reading; what is neither is EINVAL, and is not opened."""
    kind = os.fstat(found).st_mode
    if stat.S_ISDIR(kind):
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is neither a file nor a directory")
    return os.open(b"/proc/self/fd/%d" % found, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _open(parent: int, name: bytes, flags: int) -> int:
    flags |= os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    return sys.openat2(parent, name, flags, resolve=_INSIDE)


def _copy_range(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        data = os.pread(source, min(_CHUNK, end - at), at)
        if not data:
            raise OSError(errno.ESTALE, "it changes while it is copied")
        while data:
            written = os.pwrite(target, data, at)
            at, data = at + written, data[written:]
