"""Watches the bytes of a tar go by, for what libarchive does not tell: NULs in names, and a missing end.

libarchive cuts a name at a NUL without a word. This is not a second tar reader: where it loses track it gives up
and libarchive alone decides.
"""

import re
import struct

from sandbox.errors import ArchiveError, printable

_MAX_EXTENSION = 1 << 20  # libarchive refuses larger pax headers itself
_PAX_NAMES = (b"path", b"linkpath", b"GNU.sparse.name")
_NO_DATA = b"23456"  # symlink, devices, directory, fifo: whatever their size field says


class Watcher:
    """Feed it all bytes in order; `finished` tells whether an end-of-archive block was seen (True if it gave up)."""

    def __init__(self) -> None:
        self.finished = False
        self.headers = 0
        self._skip = 0  # bytes of data to let pass
        self._rest = b""  # the beginning of a block that is not complete yet
        self._extension: tuple[int, int, int] | None = None  # type, size, padded size of an extension header's body
        self._size: int | None = None  # what a pax header said of the next entry's size
        self._sparse = False  # the next block continues an old GNU sparse map

    def feed(self, chunk: bytes) -> None:
        """Raises ArchiveError (without the source's name) on a name with a NUL."""
        if self.finished:
            return
        if self._skip >= len(chunk):
            self._skip -= len(chunk)
            return
        data = self._rest + chunk[self._skip :] if self._rest else chunk
        at = 0 if self._rest else self._skip
        self._skip = 0
        while not self.finished:
            wanted = self._extension[2] if self._extension else 512
            if len(data) - at < wanted:
                break
            block = data[at : at + wanted]
            at += wanted
            self._block(block)
            if self._skip:
                step = min(self._skip, len(data) - at)
                at += step
                self._skip -= step
        self._rest = data[at:]

    def _block(self, block: bytes) -> None:
        if self._extension:
            kind, size, _ = self._extension
            self._extension = None
            (self._pax if kind in b"xg" else self._long_name)(block[:size])
        elif self._sparse:
            self._sparse = bool(block[504])
            if not self._sparse:
                self._skip, self._pending = self._pending, 0
        else:
            self._header(block)

    def _header(self, block: bytes) -> None:
        stored = _number(block[148:156])
        if stored != sum(block) - sum(block[148:156]) + 256:
            self.finished = True  # the end of the archive, or beyond what this can judge
            return
        self.headers += 1
        kind, size = block[156], _number(block[124:136]) or 0
        if kind in b"xgLK":
            if 0 < size <= _MAX_EXTENSION:
                self._extension = (kind, size, -(-size // 512) * 512)
            else:
                self._skip = -(-size // 512) * 512
            return
        if self._size is not None:
            size, self._size = self._size, None
        if kind in _NO_DATA:
            size = 0
        elif kind in b"1":
            size = 0  # a hard link's data, where an archiver writes any, is not ours to guess: the next block tells
        padded = -(-size // 512) * 512
        if kind == ord("S") and block[482]:
            self._sparse, self._pending = True, padded
        else:
            self._skip = padded

    _pending = 0

    def _pax(self, body: bytes) -> None:
        """Records of the form `LENGTH KEY=VALUE\\n` (POSIX pax, "pax Extended Header")."""
        at = 0
        while match := re.compile(rb"(\d{1,7}) ").match(body, at):
            length = int(match[1])
            key, _, value = body[match.end() : at + length - 1].partition(b"=")
            if key in _PAX_NAMES and b"\0" in value:
                raise ArchiveError(f"entry '{printable(value)}' has a NUL in its name")
            if key == b"size" and value.isdigit():
                self._size = int(value)
            if length <= 0:
                return
            at += length

    def _long_name(self, body: bytes) -> None:
        name = body.rstrip(b"\0")
        if b"\0" in name:
            raise ArchiveError(f"entry '{printable(name)}' has a NUL in its name")


def _number(field: bytes) -> int | None:
    """A tar number: octal text, or base-256 with the top bit set; None when it is neither."""
    if field[0] & 0x80:
        return int(struct.unpack(">Q", field[-8:])[0])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
