"""Layers in the builder process: what a stack shows, as one tree; and what a command changed, as one layer more.

A layer hides a name of those beneath with a whiteout. What an overlay's upper directory says with an opaque
attribute is said with whiteouts here, for every name that was there: an image has no attributes.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from sandbox.engine import syscalls as sys
from sandbox.images.archive import Entry, Guard, Sink, Source, Type
from sandbox.images.reader import Raw
from sandbox.images.sinks import Fact, FactSink, digest_of, seconds_of
from sandbox.images.tree import TreeSource

Layer = Callable[[], AbstractContextManager[Source]]
_OPAQUE = b"y"
_NO_LIMIT = 1 << 62


class _Node:
    """A name in a stack: the number of the entry that it shows (-1: no entry named it), and for a directory a dict."""

    __slots__ = ("children", "owner")

    def __init__(self, owner: int, children: "dict[bytes, _Node] | None") -> None:
        self.owner, self.children = owner, children


class Stacked:
    """What the layers show together, bottom first. Entries are counted from 0 through all layers."""

    def __init__(self, layers: Sequence[Layer], max_unpacked: int) -> None:
        self.root = _Node(-1, {})
        self._layers, self._max = layers, max_unpacked
        count = 0
        for layer in layers:
            owners: dict[bytes, int] = {}
            guard = Guard(max_unpacked, whiteouts=True)
            with layer() as source:
                for raw in source:
                    if (entry := guard.admit(raw)) is not None:
                        owner = owners[entry.target] if entry.type is Type.HARDLINK else count
                        owners[entry.name] = owner
                        self._apply(entry, owner)
                    count += 1

    def _apply(self, entry: Entry, owner: int) -> None:
        if not entry.name:
            self.root.owner = owner
            return
        *parents, name = entry.name.split(b"/")
        found = self._directory(parents)
        if entry.type is Type.WHITEOUT:
            found.pop(name, None)
            return
        old = found.get(name)
        if entry.type is not Type.DIRECTORY:
            found[name] = _Node(owner, None)
        elif old is not None and old.children is not None:
            old.owner = owner
        else:
            found[name] = _Node(owner, {})

    def _directory(self, parents: list[bytes]) -> "dict[bytes, _Node]":
        at = self.root
        for part in parents:
            assert at.children is not None
            child = at.children.get(part)
            if child is None or child.children is None:
                child = at.children[part] = _Node(-1, {})
            at = child
        assert at.children is not None
        return at.children

    def names(self, directory: bytes) -> set[bytes]:
        """What is in a directory of the stack; nothing when it is none."""
        at = self.root
        for part in filter(None, directory.split(b"/")):
            child = (at.children or {}).get(part)
            if child is None:
                return set()
            at = child
        return set(at.children or ())

    def write(self, sink: Sink) -> None:
        """All of it into the sink, each file once. Raises ArchiveError; OSError is the sink's."""
        shown = self._shown()
        count = 0
        for layer in self._layers:
            guard = Guard(self._max, whiteouts=True)
            with layer() as source:
                for raw in source:
                    entry, names = guard.admit(raw), shown.get(count, ())
                    count += 1
                    if entry is not None and names:
                        _add(sink, entry, names, guard, source, raw)
        sink.finish()

    def _shown(self) -> dict[int, list[bytes]]:
        """The names of every entry that shows."""
        found: dict[int, list[bytes]] = {self.root.owner: [b""]} if self.root.owner >= 0 else {}
        todo = [(b"", self.root)]
        while todo:
            path, node = todo.pop()
            for name, child in (node.children or {}).items():
                full = path + b"/" + name if path else name
                if child.owner >= 0:
                    found.setdefault(child.owner, []).append(full)
                if child.children is not None:
                    todo.append((full, child))
        return found


def _add(sink: Sink, entry: Entry, names: list[bytes], guard: Guard, source: Source, raw: Raw) -> None:
    entry = entry._replace(name=names[0], replaces=False)
    sink.add(entry, lambda: guard.count(source.blocks(raw.name)))
    for name in names[1:]:
        link = Type.HARDLINK if entry.type is Type.FILE else entry.type
        sink.add(
            entry._replace(name=name, type=link, target=names[0] if link is Type.HARDLINK else entry.target, size=0),
            lambda: iter(()),
        )


class Upper:
    """The upper directory `root` of an overlay as a layer; `opaque` is the attribute that its mode marks with."""

    def __init__(self, root: int, beneath: Callable[[], Stacked], opaque: str) -> None:
        self._root, self._beneath, self._opaque = root, beneath, opaque
        self._tree = TreeSource(root)
        self._stack: Stacked | None = None

    def blocks(self, name: bytes) -> Iterator[tuple[int, memoryview]]:
        return self._tree.blocks(name)

    def __iter__(self) -> Iterator[Raw]:
        opaque: set[bytes] = set()
        for raw in self._tree:
            if raw.filetype not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) and raw.hardlink is None:
                # A fifo, a socket: an image holds none, but what had its name before must not come back.
                yield _whiteout(raw.name)
                continue
            yield raw
            if raw.filetype == stat.S_IFDIR and raw.name:
                yield from self._hidden(raw.name, opaque)

    def _hidden(self, directory: bytes, opaque: set[bytes]) -> Iterator[Raw]:
        flags = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS
        fd = sys.openat2(self._root, directory, os.O_RDONLY | os.O_DIRECTORY, resolve=flags)
        try:
            # What lies in an opaque directory is opaque, marked or not.
            if directory.rpartition(b"/")[0] not in opaque and not self._is_opaque(fd):
                return
            opaque.add(directory)
            self._stack = self._stack or self._beneath()
            there = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            os.close(fd)
        for name in sorted(self._stack.names(directory) - there):
            yield _whiteout(directory + b"/" + name)

    def _is_opaque(self, fd: int) -> bool:
        try:
            return os.getxattr(fd, self._opaque) == _OPAQUE
        except OSError:
            return False


class Compared:
    """What the directory `root` shows otherwise than the layers beneath it, as a layer.

    It takes nobody's word for what was changed: all of both is read.
    """

    def __init__(self, root: int, beneath: Stacked) -> None:
        self._tree = TreeSource(root)
        before = FactSink()
        beneath.write(before)
        self._before = before.facts
        self._there: dict[bytes, bool] = {}  # whether it is a directory
        self._directories: dict[bytes, Raw] = {}  # that are as they were
        self._wanted = {b""}  # directories of which something is said

    def blocks(self, name: bytes) -> Iterator[tuple[int, memoryview]]:
        return self._tree.blocks(name)

    def __iter__(self) -> Iterator[Raw]:
        guard = Guard(_NO_LIMIT)  # for what it says of modes and types; who packs sets the limit
        facts: dict[bytes, Fact] = {}
        for raw in self._tree:
            entry = guard.admit(raw)
            if entry is None:
                continue
            fact = facts[entry.name] = self._fact(entry, facts)
            self._there[entry.name] = entry.type is Type.DIRECTORY
            if fact != self._before.get(entry.name):
                yield self._said(raw)
            elif entry.type is Type.DIRECTORY:
                self._directories[raw.name] = raw
            elif entry.type is Type.FILE:
                self._tree.leave_out()
        yield from self._gone()
        for name in sorted(self._wanted & self._directories.keys()):
            yield self._directories[name]

    def _said(self, raw: Raw) -> Raw:
        """The same; its directories come along, as a layer's stand for those beneath."""
        parent = raw.name
        while parent:
            parent = parent.rpartition(b"/")[0]
            self._wanted.add(parent)
        return raw

    def _fact(self, entry: Entry, facts: dict[bytes, Fact]) -> Fact:
        """Of a file whose mode or time has changed the content is not read: it is packed anyway."""
        if entry.type is Type.HARDLINK:
            return facts[entry.target]
        fact = Fact(entry.type, entry.mode, seconds_of(entry.mtime_ns), "-", entry.target)
        old = self._before.get(entry.name)
        if entry.type is Type.FILE and old is not None and old._replace(digest="-") == fact:
            return fact._replace(digest=digest_of(entry, lambda: self._tree.blocks(entry.name)))
        return fact

    def _gone(self) -> Iterator[Raw]:
        """For everything that is there no more a whiteout, where no other hides it."""
        hidden: set[bytes] = set()
        for name in self._before:
            at = 0
            while at >= 0:
                at = name.find(b"/", at + 1)
                top = name if at < 0 else name[:at]
                if not self._there.get(top, False):
                    break
            if name and top not in self._there and top not in hidden:
                hidden.add(top)
                yield self._said(_whiteout(top))


def _whiteout(name: bytes) -> Raw:
    return Raw(name, stat.S_IFCHR, 0, 0, 0, b"", None, True, (), whiteout=True)
