"""The central directory of a zip, read for what libarchive does not tell: NULs in names, sizes, absent modes.

Cheap (a few preads) and strict about structure only; the data is libarchive's to judge. APPNOTE.TXT 6.3 is the
specification; section numbers below are its.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from sandbox.errors import ArchiveError, DamagedError, printable

_EOCD = struct.Struct("<4s4H2LH")  # 4.3.16
_EOCD64_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_EOCD64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_RECORD = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_UNIX_HOSTS = (3, 19)  # 4.4.2.2: UNIX, OS X
_CHUNK = 1 << 20
MAX_ENTRIES = 5_000_000


class Record(NamedTuple):
    """One entry of the central directory. `has_mode` is whether it carries a Unix mode."""

    name: bytes
    offset: int
    size: int
    packed: int
    encrypted: bool
    has_mode: bool


def records(fd: int) -> Iterator[Record]:
    """The entries in the order of the directory. Raises ArchiveError (without the source's name) on damage."""
    start, length, count, shift = _directory(fd)
    if count > MAX_ENTRIES:
        raise ArchiveError(f"it claims {count} entries, the limit is {MAX_ENTRIES}")
    buffer, at, position = b"", 0, start
    end = start + length
    for _ in range(count):
        if len(buffer) - at < 1 << 18 and position < end:
            more = os.pread(fd, min(_CHUNK, end - position), position)
            if not more:
                raise DamagedError("its directory is truncated")
            position += len(more)
            buffer, at = buffer[at:] + more, 0
        record, at = _record(buffer, at, shift)
        yield record


def _directory(fd: int) -> tuple[int, int, int, int]:
    """Offset, length and entry count of the central directory, and how far offsets are shifted by a prefix."""
    size = os.fstat(fd).st_size
    base = max(0, size - 65535 - _EOCD.size)
    tail = os.pread(fd, size - base, base)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and (len(tail) - at < _EOCD.size or at + _EOCD.size + _comment(tail, at) > len(tail)):
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        raise DamagedError("it is truncated: a zip ends with a directory, and there is none")
    _, disk, _, _, count, length, offset, _ = _EOCD.unpack_from(tail, at)
    end = base + at
    wide = os.pread(fd, _EOCD64_LOCATOR.size, end - _EOCD64_LOCATOR.size) if end >= _EOCD64_LOCATOR.size else b""
    if wide.startswith(b"PK\x06\x07"):
        where = _EOCD64_LOCATOR.unpack(wide)[2]
        record = os.pread(fd, _EOCD64.size, where)
        if len(record) < _EOCD64.size or not record.startswith(b"PK\x06\x06"):
            raise DamagedError("its zip64 directory is damaged")
        count, length, offset = _EOCD64.unpack(record)[7:10]
        end = where
    elif disk not in (0, 0xFFFF):
        raise ArchiveError("it is one part of a zip in several parts")
    if offset + length > end:
        raise DamagedError("its directory is damaged")
    start = end - length
    return start, length, count, start - offset


def _comment(tail: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", tail, at + 20)[0])


def _record(buffer: bytes, at: int, shift: int) -> tuple[Record, int]:
    try:
        fields = _RECORD.unpack_from(buffer, at)
    except struct.error:
        raise DamagedError("its directory is truncated") from None
    magic, made_by, flags = fields[0], fields[1], fields[3]
    packed, size, name_len, extra_len, comment_len = fields[8:13]
    attributes, offset = fields[15:17]
    begin = at + _RECORD.size
    stop = begin + name_len + extra_len + comment_len
    if magic != b"PK\x01\x02" or stop > len(buffer):
        raise DamagedError("its directory is damaged")
    name = buffer[begin : begin + name_len]
    if 0xFFFFFFFF in (packed, size, offset):
        size, packed, offset = _zip64(buffer[begin + name_len : begin + name_len + extra_len], size, packed, offset)
    if b"\0" in name:
        raise ArchiveError(f"entry '{printable(name)}' has a NUL in its name")
    has_mode = made_by >> 8 in _UNIX_HOSTS and attributes >> 16 != 0
    return Record(name, offset + shift, size, packed, bool(flags & 1), has_mode), stop


def _zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """The 64-bit values of the extra field 1 for those that are saturated, in this fixed order (4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return tuple(next(wide, value) if value == 0xFFFFFFFF else value for value in values)
        at += 4 + length
    return values


def total_size(fd: int) -> int | None:
    """The sum of the unpacked sizes as the directory claims them; None when it cannot be read."""
    try:
        return sum(record.size for record in records(fd))
    except (ArchiveError, OSError):
        return None


def check_local_name(fd: int, record: Record) -> None:
    """Raises ArchiveError when the entry's own header has another name than the directory says."""
    header = os.pread(fd, 30 + len(record.name), record.offset)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise DamagedError(f"entry '{printable(record.name)}' is damaged or missing")
    length = struct.unpack_from("<H", header, 26)[0]
    if length != len(record.name) or header[30:] != record.name:
        raise ArchiveError(f"entry '{printable(record.name)}' has a different name in its own header")
