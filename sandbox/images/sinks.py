"""Where sanitised entries go: a GNU tar stream for tar2sqfs, or a directory by descriptor."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import ArchiveError, printable
from sandbox.images.archive import Entry, Type
from sandbox.images.reader import Blocks

if TYPE_CHECKING:
    import hashlib

_BLOCK = 512
_ZEROS = bytes(1 << 16)
_FLUSH_AT = 1 << 18
_TYPE_FLAG = {Type.FILE: b"0", Type.HARDLINK: b"1", Type.SYMLINK: b"2", Type.DIRECTORY: b"5", Type.WHITEOUT: b"3"}
_MAX_TIME = (1 << 32) - 1  # squashfs keeps seconds in 32 bits


class NeedsTwoPassesError(Exception):
    """A name came a second time: a stream cannot take the first back."""


class _WrongSizeError(ArchiveError):
    def __init__(self, name: bytes) -> None:
        super().__init__(f"entry '{printable(name)}' is damaged: its data is not as long as its header says")


def _octal(value: int, width: int) -> bytes:
    """A number field: octal, or where that is too narrow GNU's base-256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


class TarSink:
    """Writes GNU tar to a pipe: long names as L and K entries, holes as old GNU sparse files.

    Directories come last, so that an entry repeated with another mode wins as in tar, and parents that no entry
    names are made by the reader.
    """

    def __init__(self, fd: int, *, uid: int, gid: int) -> None:
        self._fd = fd
        self._ids = _octal(uid, 8) + _octal(gid, 8)
        self._buffer = bytearray()
        self._directories: dict[bytes, tuple[int, int]] = {}

    def add(self, entry: Entry, blocks: Blocks) -> None:
        if entry.type is Type.DIRECTORY:
            self._directories[entry.name] = (entry.mode, entry.mtime_ns)
            return
        if entry.replaces:
            raise NeedsTwoPassesError
        if entry.type is not Type.FILE:
            self._header(entry.name, _TYPE_FLAG[entry.type], entry.mode, entry.mtime_ns, 0, entry.target)
        elif entry.size is None:
            self._spool(entry, blocks)
        elif entry.data_map:
            self._sparse(entry, blocks, entry.size)
        else:
            self._header(entry.name, b"0", entry.mode, entry.mtime_ns, entry.size)
            if entry.size:
                self._data(entry.name, ((0, entry.size),), blocks())

    def finish(self) -> None:
        for name, (mode, mtime_ns) in self._directories.items():
            self._header(name + b"/" if name else b"./", b"5", mode, mtime_ns, 0)
        self._buffer += bytes(2 * _BLOCK)
        self._flush()

    def _header(
        self, name: bytes, flag: bytes, mode: int, mtime_ns: int, size: int, target: bytes = b"", tail: bytes = b""
    ) -> None:
        if len(target) > 100:
            self._long(b"K", target)
        if len(name) > 100:
            self._long(b"L", name)
        numbers = _octal(size, 12) + _octal(seconds_of(mtime_ns), 12)
        front = b"%s%07o\0%s%s" % (name[:100].ljust(100, b"\0"), mode, self._ids, numbers)
        back = flag + target[:100].ljust(100, b"\0") + b"ustar  \0" + tail
        checksum = b"%06o\0 " % (sum(front) + sum(back) + 8 * 0x20)
        self._buffer += (front + checksum + back).ljust(_BLOCK, b"\0")
        if len(self._buffer) >= _FLUSH_AT:
            self._flush()

    def _long(self, flag: bytes, text: bytes) -> None:
        self._header(b"././@LongLink", flag, 0o644, 0, len(text) + 1)
        self._buffer += text + bytes(_BLOCK - len(text) % _BLOCK)

    def _data(
        self, name: bytes, segments: tuple[tuple[int, int], ...], blocks: Iterator[tuple[int, memoryview]]
    ) -> None:
        """The bytes of `segments` one after another, padded. What the archive leaves out inside them is zeros."""
        written = 0
        rest = iter(segments)
        begin, length = next(rest)
        at = begin
        for block in blocks:
            offset, view = block
            while view:
                if at == begin + length:
                    begin, length = next(rest, (-1, 0))
                    if begin < 0:
                        raise _WrongSizeError(name)
                    at = begin
                    continue
                if offset < at:
                    raise _WrongSizeError(name)
                gap = min(offset, begin + length) - at
                if gap:
                    self._zeros(gap)
                    at, written = at + gap, written + gap
                    continue
                part = view[: begin + length - at]
                self._bytes(part)
                at, written = at + len(part), written + len(part)
                offset, view = offset + len(part), view[len(part) :]
        total = sum(size for _, size in segments)
        self._zeros(total - written + -total % _BLOCK)

    def _sparse(self, entry: Entry, blocks: Blocks, size: int) -> None:
        """Old GNU sparse format: four segments in the header, then blocks of 21; an empty one marks the end."""
        segments = tuple(part for part in entry.data_map if part[1])
        if not segments or sum(segments[-1]) != size:
            segments += ((size, 0),)
        last = -1
        for begin, length in segments:
            if begin < last or begin + length > size:
                raise _WrongSizeError(entry.name)
            last = begin + length
        fields = [_octal(begin, 12) + _octal(length, 12) for begin, length in segments]
        more = fields[4:]
        extended = b"\1" if more else b"\0"
        tail = bytes(386 - 265) + b"".join(fields[:4]).ljust(96, b"\0") + extended + _octal(size, 12)
        self._header(entry.name, b"S", entry.mode, entry.mtime_ns, sum(n for _, n in segments), tail=tail)
        while more:
            block, more = more[:21], more[21:]
            self._buffer += (b"".join(block).ljust(504, b"\0") + (b"\1" if more else b"\0")).ljust(_BLOCK, b"\0")
        self._data(entry.name, segments, blocks())

    def _spool(self, entry: Entry, blocks: Blocks) -> None:
        """A header needs the size first: data of unknown length waits in memory, within --max-unpacked."""
        with open(os.memfd_create("sandbox-spool", os.MFD_CLOEXEC), "w+b") as spool:
            for offset, view in blocks():
                spool.seek(offset)
                spool.write(view)
            spool.flush()
            size = os.fstat(spool.fileno()).st_size
            self._header(entry.name, b"0", entry.mode, entry.mtime_ns, size)
            spool.seek(0)
            while chunk := spool.read(_FLUSH_AT):
                self._bytes(memoryview(chunk))
            self._zeros(-size % _BLOCK)

    def _zeros(self, count: int) -> None:
        while count > 0:
            self._bytes(memoryview(_ZEROS)[:count])
            count -= min(count, len(_ZEROS))

    def _bytes(self, view: memoryview) -> None:
        """Small pieces are gathered; large ones go to the pipe straight from libarchive's buffer."""
        if len(view) < 1 << 15:
            self._buffer += view
            if len(self._buffer) >= _FLUSH_AT:
                self._flush()
            return
        self._flush()
        while view:
            view = view[os.write(self._fd, view) :]

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._fd, view) :]
        view.release()
        self._buffer = bytearray()


class Fact(NamedTuple):
    """What a name is: `seconds` is its time since 1970; `digest` of a file's content, `target` of a symlink."""

    type: Type
    mode: int
    seconds: int
    digest: str
    target: bytes


class FactSink:
    """Remembers what every name is instead of unpacking."""

    def __init__(self) -> None:
        self.facts: dict[bytes, Fact] = {}

    def add(self, entry: Entry, blocks: Blocks) -> None:
        if entry.type is Type.HARDLINK:
            self.facts[entry.name] = self.facts[entry.target]
            return
        digest = digest_of(entry, blocks) if entry.type is Type.FILE else "-"
        target = entry.target if entry.type is Type.SYMLINK else b""
        self.facts[entry.name] = Fact(entry.type, entry.mode, seconds_of(entry.mtime_ns), digest, target)

    def finish(self) -> None:
        """Nothing is left to do."""


class ListSink(FactSink):
    """Writes what it remembers: per entry `type mode digest`, its name and a link's target, each ended by NUL."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def finish(self) -> None:
        lines = bytearray()
        for name, fact in self.facts.items():
            lines += f"{fact.type.value} {fact.mode:o} {fact.digest}".encode() + b"\0%s\0%s\0" % (name, fact.target)
        view = memoryview(lines)
        while view:
            view = view[os.write(self._fd, view) :]


def seconds_of(mtime_ns: int) -> int:
    """A time as squashfs keeps it."""
    return min(max(mtime_ns // 1_000_000_000, 0), _MAX_TIME)


def digest_of(entry: Entry, blocks: Blocks) -> str:
    """The SHA-256 of a file with its holes, and as long as it says."""
    import hashlib

    digest, at = hashlib.sha256(), 0
    for offset, view in blocks() if entry.size != 0 else ():
        _hash_zeros(digest, offset - at)
        digest.update(view)
        at = offset + len(view)
    _hash_zeros(digest, (entry.size or at) - at)
    return digest.hexdigest()


def _hash_zeros(digest: "hashlib._Hash", count: int) -> None:
    while count > 0:
        digest.update(memoryview(_ZEROS)[:count])
        count -= min(count, len(_ZEROS))


class DirSink:
    """Writes below a directory, by descriptor, never through a symlink; everything belongs to whoever runs.

    Directories are 0700 while they are filled; their modes and times come last.
    """

    def __init__(self, root: int, *, dig_holes: bool = False) -> None:
        self._root = root
        self._dig_holes = dig_holes  # zeros become holes: for sources that no longer know where theirs were
        self._made: set[bytes] = {b""}
        self._final: dict[bytes, tuple[int, int | None]] = {}
        self._parent: tuple[bytes, int] | None = None

    def add(self, entry: Entry, blocks: Blocks) -> None:
        if entry.type is Type.DIRECTORY:
            self._make(entry.name)
            self._final[entry.name] = (entry.mode, entry.mtime_ns)
            return
        parent_name, _, name = entry.name.rpartition(b"/")
        parent = self._open(parent_name)
        if entry.replaces:
            fsops.delete_file(parent, name)
        if entry.type is Type.SYMLINK:
            fsops.new_symlink(parent, name, entry.target, entry.mtime_ns)
        elif entry.type is Type.WHITEOUT:
            fsops.new_whiteout(parent, name)
        elif entry.type is Type.HARDLINK:
            target_parent, _, target = entry.target.rpartition(b"/")
            held = self._resolve(target_parent)
            try:
                fsops.new_link(held, target, parent, name)
            finally:
                os.close(held)
        else:
            self._file(parent, name, entry, blocks)

    def _file(self, parent: int, name: bytes, entry: Entry, blocks: Blocks) -> None:
        fd = fsops.new_file(parent, name)
        try:
            end = 0
            for block in blocks() if entry.size != 0 else ():
                offset, view = block
                if self._dig_holes and view.tobytes().count(0) == len(view):
                    continue
                while view:
                    count = os.pwrite(fd, view, offset)
                    offset, view = offset + count, view[count:]
                end = max(end, offset)
            if entry.size is not None and end > entry.size:
                raise _WrongSizeError(entry.name)
            if entry.size is not None and end < entry.size:
                os.ftruncate(fd, entry.size)  # a hole at the end
            fsops.set_mode_and_time(fd, entry.mode, entry.mtime_ns)
        finally:
            os.close(fd)

    def finish(self) -> None:
        # Deepest first: a mode without write or search must not lock us out of what lies below.
        for name in sorted(self._made, key=lambda made: made.count(b"/") + bool(made), reverse=True):
            if name == b"" and name not in self._final:
                continue
            mode, mtime_ns = self._final.get(name, (0o755, None))
            fd = self._resolve(name)
            try:
                fsops.set_mode_and_time(fd, mode, mtime_ns)
            finally:
                os.close(fd)
        self._forget()

    def _make(self, name: bytes) -> None:
        """The directory and its missing parents."""
        missing = []
        while name not in self._made:
            missing.append(name)
            name = name.rpartition(b"/")[0]
        for directory in reversed(missing):
            parent, _, own = directory.rpartition(b"/")
            with contextlib.suppress(FileExistsError):
                os.close(fsops.make_new_dir(self._open(parent), own))
            self._made.add(directory)

    def _open(self, name: bytes) -> int:
        """The directory, made if need be; held until another is asked for, as entries come in runs."""
        if self._parent is not None and self._parent[0] == name:
            return self._parent[1]
        self._make(name)
        fd = self._resolve(name)
        self._forget()
        self._parent = (name, fd)
        return fd

    def _forget(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _resolve(self, name: bytes) -> int:
        flags = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_XDEV
        fd = sys.openat2(self._root, name or b".", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=flags)
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        return fd
