"""What an archive may do to a tree: every entry passes the Guard before a sink sees it.

Refused with one line that names the entry: ways out of the tree, a name that is both file and directory, anything
through a symlink, hard links to what the archive does not hold, more data or entries than allowed. Dropped: device
nodes (but whiteouts are kept where they are asked for), fifos, sockets. Stripped: setuid and setgid, and sticky on
files.
"""

import enum
import stat
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from sandbox.errors import ArchiveError, printable
from sandbox.images.reader import Blocks, Raw, too_large

MAX_ENTRIES = 5_000_000
_MAX_NAME = 4095  # PATH_MAX without its NUL
_MAX_COMPONENT = 255  # NAME_MAX


class Type(enum.Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hard link"
    WHITEOUT = "whiteout"


class Entry(NamedTuple):
    """A sanitised entry. `name` is relative, b"" is the root itself; `target` is a symlink's text or the name of the
    earlier file that a hard link means; `replaces` is whether something of that name came before."""

    name: bytes
    type: Type
    mode: int
    mtime_ns: int
    size: int | None
    target: bytes
    data_map: tuple[tuple[int, int], ...]
    replaces: bool


class Sink(Protocol):
    """Where entries go. `blocks` gives a file's data, at most once."""

    def add(self, entry: Entry, blocks: Blocks) -> None: ...

    def finish(self) -> None: ...


class Source(Protocol):
    """Where raw entries come from."""

    def __iter__(self) -> Iterator[Raw]: ...

    def blocks(self, name: bytes) -> Iterator[tuple[int, memoryview]]: ...


def _refuse(name: bytes, why: str, hint: str = "") -> ArchiveError:
    return ArchiveError(f"entry '{printable(name)}' {why}", hint=hint)


def clean_name(raw: bytes, what: str = "") -> bytes:
    """The name without `.` and doubled slashes. Raises ArchiveError when it would leave the tree."""
    if raw.startswith(b"/"):
        raise _refuse(raw, f"{what}has an absolute name")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _refuse(raw, f"{what}would leave the tree with '..'")
    name = b"/".join(parts)
    if len(name) > _MAX_NAME or (len(name) > _MAX_COMPONENT and any(len(part) > _MAX_COMPONENT for part in parts)):
        raise _refuse(raw[:80] + b"...", f"{what}has a name longer than the kernel takes")
    return name


class Guard:
    """Judges the entries of one archive, in order. Raises ArchiveError without the source's name."""

    def __init__(self, max_unpacked: int, *, whiteouts: bool = False) -> None:
        self.max_unpacked = max_unpacked
        self.whiteouts = whiteouts
        self.unpacked = 0
        self.dropped = 0
        self._types: dict[bytes, Type | None] = {b"": Type.DIRECTORY}  # None: dropped
        self._symlinks: dict[bytes, bytes] = {}

    def admit(self, raw: Raw) -> Entry | None:
        """The entry as the sinks may have it; None when it is dropped."""
        name = clean_name(raw.name)
        if raw.hardlink is not None:
            return self._hard_link(name, raw)
        if raw.filetype == stat.S_IFDIR:
            mode = raw.perm & 0o1777 if raw.has_mode else 0o755
            return self._entry(name, Type.DIRECTORY, raw, mode)
        if raw.filetype == stat.S_IFLNK:
            if not raw.symlink or len(raw.symlink) > _MAX_NAME:
                raise _refuse(raw.name, "is a symlink with an empty or overlong target")
            entry = self._entry(name, Type.SYMLINK, raw, 0o777, raw.symlink)
            self._symlinks[name] = raw.symlink
            return entry
        if raw.filetype in (stat.S_IFREG, 0):
            return self._entry(name, Type.FILE, raw, raw.perm & 0o777 if raw.has_mode else 0o644)
        if raw.whiteout and self.whiteouts:
            return self._entry(name, Type.WHITEOUT, raw, 0)
        self._claim(name, None, raw.name)
        self.dropped += 1
        return None

    def _hard_link(self, name: bytes, raw: Raw) -> Entry | None:
        target = clean_name(raw.hardlink or b"", "is a hard link that ")
        if target not in self._types or target == name:
            raise _refuse(raw.name, f"is a hard link to '{printable(target)}', which the archive does not hold")
        known = self._types[target]
        if known is Type.DIRECTORY:
            raise _refuse(raw.name, f"is a hard link to the directory '{printable(target)}'")
        if known is None:
            self._claim(name, None, raw.name)
            return None
        if known is Type.WHITEOUT:
            return self._entry(name, Type.WHITEOUT, raw, 0)
        if known is Type.SYMLINK:
            text = self._symlinks[target]
            entry = self._entry(name, Type.SYMLINK, raw, 0o777, text)
            self._symlinks[name] = text
            return entry
        entry = self._entry(name, Type.HARDLINK, raw, 0, target)
        self._types[name] = Type.FILE
        return entry

    def _entry(self, name: bytes, kind: Type, raw: Raw, mode: int, target: bytes = b"") -> Entry:
        replaces = self._claim(name, kind, raw.name)
        size = raw.size if kind is Type.FILE else 0
        claimed = sum(length for _, length in raw.data_map) if raw.data_map else size
        if claimed and self.unpacked + claimed > self.max_unpacked:
            raise too_large(self.max_unpacked)
        return Entry(name, kind, mode, raw.mtime_ns, size, target, raw.data_map, replaces)

    def _claim(self, name: bytes, kind: Type | None, raw_name: bytes) -> bool:
        """Note what the name is. Whether it was something before; a directory never turns into something else."""
        types = self._types
        parent = name.rpartition(b"/")[0]
        if types.get(parent) is not Type.DIRECTORY:
            self._make_parents(parent, raw_name)
        if name in types:
            if (types[name] is Type.DIRECTORY) != (kind is Type.DIRECTORY):
                raise _refuse(raw_name, "is both a directory and something else")
            if types[name] is None and kind is None:
                return False
            replaces = types[name] is not None
        else:
            replaces = False
            if len(types) > MAX_ENTRIES:
                raise ArchiveError(f"it has more than {MAX_ENTRIES} entries")
        types[name] = kind
        return replaces

    def _make_parents(self, parent: bytes, raw_name: bytes) -> None:
        at = 0
        while at >= 0:
            at = parent.find(b"/", at + 1)
            ancestor = parent if at < 0 else parent[:at]
            if self._types.setdefault(ancestor, Type.DIRECTORY) is not Type.DIRECTORY:
                raise _refuse(raw_name, f"lies below '{printable(ancestor)}', which is not a directory")
        if len(self._types) > MAX_ENTRIES:
            raise ArchiveError(f"it has more than {MAX_ENTRIES} entries")

    def count(self, blocks: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        """The same blocks, counted against the limit."""
        for block in blocks:
            self.unpacked += len(block[1])
            if self.unpacked > self.max_unpacked:
                raise too_large(self.max_unpacked)
            yield block


def unpack(source: Source, sink: Sink, max_unpacked: int, *, whiteouts: bool = False) -> Guard:
    """All entries of `source` into `sink`. Raises ArchiveError; OSError is the sink's."""
    guard = Guard(max_unpacked, whiteouts=whiteouts)
    for raw in source:
        entry = guard.admit(raw)
        if entry is not None:
            sink.add(entry, lambda name=raw.name: guard.count(source.blocks(name)))  # type: ignore[misc]
    sink.finish()
    return guard


def last_versions(source: Source, max_unpacked: int, *, whiteouts: bool = False) -> dict[int, tuple[bytes, ...]]:
    """For an archive that holds names more than once: which names each entry has once all are unpacked.

    Entries are counted from 0 as `source` yields them. A file whose names were all replaced is absent, and so are
    hard links: their names stand with the file they mean.
    """
    guard = Guard(max_unpacked, whiteouts=whiteouts)
    owner: dict[bytes, int] = {}
    for index, raw in enumerate(source):
        entry = guard.admit(raw)
        if entry is not None:
            owner[entry.name] = owner[entry.target] if entry.type is Type.HARDLINK else index
    names: dict[int, list[bytes]] = {}
    for name, index in owner.items():
        names.setdefault(index, []).append(name)
    return {index: tuple(found) for index, found in names.items()}


def unpack_last(
    source: Source, sink: Sink, max_unpacked: int, versions: dict[int, tuple[bytes, ...]], *, whiteouts: bool = False
) -> Guard:
    """As `unpack`, but each name once, as `last_versions` found it."""
    guard = Guard(max_unpacked, whiteouts=whiteouts)
    for index, raw in enumerate(source):
        entry = guard.admit(raw)
        names = versions.get(index, ())
        if entry is None or entry.type is Type.HARDLINK or not names:
            continue
        entry = entry._replace(name=names[0], replaces=False)
        sink.add(entry, lambda name=raw.name: guard.count(source.blocks(name)))  # type: ignore[misc]
        for name in names[1:]:
            link = entry._replace(name=name, type=Type.HARDLINK, target=names[0], size=0, data_map=())
            sink.add(link, lambda: iter(()))
    sink.finish()
    return guard
