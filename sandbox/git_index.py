"""Which names in git's index are submodules: gitformat-index(5), versions 2 to 4. Nothing of git's is started."""

import struct

_HEADER = struct.Struct(">4sII")
_BEFORE_MODE, _AFTER_MODE = 24, 12
_SUBMODULE = 0o160000
_EXTENDED = 0x4000


def submodules(index: bytes, hash_size: int = 20) -> set[bytes]:
    """Empty for what is no index, or a damaged one: git takes none either."""
    try:
        return set(_submodules(index, hash_size))
    except (struct.error, ValueError, IndexError):
        return set()


def _submodules(index: bytes, hash_size: int) -> list[bytes]:
    signature, version, count = _HEADER.unpack_from(index)
    if signature != b"DIRC":
        return []
    found, at, name = [], _HEADER.size, b""
    for _ in range(count):
        start = at
        mode = int.from_bytes(index[at + _BEFORE_MODE : at + _BEFORE_MODE + 4], "big")
        at += _BEFORE_MODE + 4 + _AFTER_MODE + hash_size
        at += 4 if int.from_bytes(index[at : at + 2], "big") & _EXTENDED else 2
        kept = 0
        if version == 4:
            removed, at = _number(index, at)
            kept = len(name) - removed
        end = index.index(b"\0", at)
        name = name[:kept] + index[at:end]
        at = end + 1 if version == 4 else start + (end - start + 8) // 8 * 8
        if mode == _SUBMODULE:
            found.append(name)
    return found


def _number(index: bytes, at: int) -> tuple[int, int]:
    """What the name before has to lose at its end, and where that number ends: as offsets of packs are written."""
    value = index[at] & 127
    while index[at] & 128:
        at += 1
        value = (value + 1) << 7 | index[at] & 127
    return value, at + 1
