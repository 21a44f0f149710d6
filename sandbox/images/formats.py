"""What a source is, by content and never by name; and the images that hide inside other files.

On the warm path of `sandbox run`: no heavy imports, and only a few preads of the file.
"""

import enum
import errno
import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from sandbox.errors import ArchiveError, HostError, SandboxError, reason, remedy
from sandbox.units import size

_CHUNK = 1 << 20
_KNOWN = (
    "sandbox takes squashfs and erofs images, zip (.whl, .jar), tar (plain, gzip, bzip2, xz, zstd), directories, "
    "ELF programs with a squashfs appended (AppImage), and base64 text of a zip or squashfs"
)
# squashfs 4.0 superblock: magic, inodes, mkfs time, block size, fragments, compressor, block log, flags, ids,
# major, minor, root inode, bytes used, then six table offsets (Linux: fs/squashfs/squashfs_fs.h).
_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQ")
_SQUASHFS_MAGIC = b"hsqs"
# Nothing, then the magic of the superblock (Linux: fs/erofs/erofs_fs.h); by the nothing alone it were an empty tar.
_EROFS_START = bytes(1024) + b"\xe2\xe1\xf5\xe0"
_ELF_MAGIC = b"\x7fELF"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")
_TAR_FILTERS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
# How far behind the end of the ELF an appended image is looked for; AppImages put it right there, or on a page.
_ELF_SLACK = 1 << 20
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]*={0,2}\Z")
_MAX_LINE = 1 << 20
_TABLES = 1 << 16  # all metadata of a small image; of a large one the tables by which the rest is found


class Kind(enum.Enum):
    """The kinds of files that sandbox takes as a source."""

    SQUASHFS = "squashfs"
    EROFS = "erofs"
    ZIP = "zip"
    TAR = "tar"
    ELF = "elf"
    TEXT = "text"


def detect(fd: int, label: str) -> Kind:
    """The kind of the regular file `fd`. Raises ArchiveError when it is none that sandbox knows."""
    try:
        start = os.pread(fd, len(_EROFS_START), 0)
        size = os.fstat(fd).st_size
    except OSError as error:
        raise ArchiveError(f"cannot read {label}: {reason(error)}", hint=remedy(error)) from None
    if start == _EROFS_START:
        return Kind.EROFS
    head = start[:1024]
    if head.startswith(_ELF_MAGIC):
        if _appended_image(fd, size) is None:
            raise ArchiveError(f"cannot use {label}: it is an ELF file without a squashfs appended", hint=_KNOWN)
        return Kind.ELF
    kind = _kind_of(head, size)
    if kind is None and head.startswith(b"#"):
        kind = Kind.TEXT
    if kind is not None:
        return kind
    if head.startswith(_SQUASHFS_MAGIC):
        raise ArchiveError(f"cannot use {label}: a squashfs with a damaged or truncated superblock, or not version 4.0")
    what = "it is empty" if size == 0 else "it is of no kind that sandbox knows"
    raise ArchiveError(f"cannot use {label}: {what}", hint=_KNOWN)


def _kind_of(head: bytes, size: int) -> Kind | None:
    """The kinds that the first 1024 bytes tell."""
    if is_squashfs(head, size):
        return Kind.SQUASHFS
    if head.startswith(_ZIP_MAGICS):
        return Kind.ZIP
    if head.startswith(_TAR_FILTERS) or _is_tar_header(head):
        return Kind.TAR
    return None


def is_squashfs(head: bytes, size: int) -> bool:
    """Whether `head` starts with the superblock of a squashfs 4.0 that fits into `size` bytes."""
    if not head.startswith(_SQUASHFS_MAGIC) or len(head) < 96:
        return False
    fields = _SUPERBLOCK.unpack_from(head)
    block_size, block_log, major, minor, used = fields[3], fields[6], fields[9], fields[10], fields[12]
    sane_blocks = 12 <= block_log <= 20 and block_size == 1 << block_log
    return (major, minor) == (4, 0) and sane_blocks and 96 <= used <= size


class Superblock(NamedTuple):
    """What a squashfs says of itself. `inodes` counts files, directories and links."""

    inodes: int
    block_size: int
    compression: str


def checksum_of_ends(fd: int) -> int:
    """Of what a mount of a squashfs reads first: the superblock, and the tables at the end. OSError on a bad disk."""
    import zlib

    head, size = os.pread(fd, 96, 0), os.fstat(fd).st_size
    return zlib.crc32(os.pread(fd, _TABLES, max(size - _TABLES, 0)), zlib.crc32(head))


_COMPRESSIONS = ("unknown", "gzip", "lzma", "lzo", "xz", "lz4", "zstd")


def superblock(fd: int) -> Superblock:
    """Of a file that `detect` says is a squashfs."""
    fields = _SUPERBLOCK.unpack_from(os.pread(fd, 96, 0))
    compressor = fields[5] if fields[5] < len(_COMPRESSIONS) else 0
    return Superblock(fields[1], fields[3], _COMPRESSIONS[compressor])


def _is_tar_header(head: bytes) -> bool:
    block = head[:512]
    if len(block) < 512:
        return False
    if not any(block):
        return len(head) == 1024 and not any(head)  # two zero blocks: an empty tar
    if block[257:262] == b"ustar":
        return True
    try:
        stored = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * 0x20


# -- images inside other files ----------------------------------------------------------------------------------


def _appended_image(fd: int, size: int) -> int | None:
    """The offset of the squashfs behind the ELF file `fd`, or None.

    An AppImage's begins where the section header table ends. Other runtimes align it, so a bounded stretch behind
    the end of the ELF is searched for a superblock that makes sense.
    """
    start = _elf_end(os.pread(fd, 64, 0), fd)
    if start is None or start >= size:
        return None
    window = os.pread(fd, _ELF_SLACK + 96, start)
    at = window.find(_SQUASHFS_MAGIC)
    while at >= 0:
        if is_squashfs(window[at : at + 96], size - start - at):
            return start + at
        at = window.find(_SQUASHFS_MAGIC, at + 1)
    return None


def _elf_end(header: bytes, fd: int) -> int | None:
    """Where an ELF file ends by its own account: behind its section headers and its last segment (elf(5))."""
    if len(header) < 52 or header[4] not in (1, 2) or header[5] not in (1, 2):
        return None
    order = "<" if header[5] == 1 else ">"
    wide = header[4] == 2
    if wide and len(header) < 64:
        return None
    layout, at = (order + "QQ", 32) if wide else (order + "II", 28)
    programs, sections = struct.unpack_from(layout, header, at)
    entry, count, section_entry, section_count = struct.unpack_from(order + "HHHH", header, 54 if wide else 42)
    if sections:
        return int(sections + section_entry * section_count)
    # Stripped of its section headers: the end of the last segment is all there is to go by.
    table = os.pread(fd, min(entry * count, 1 << 20), programs)
    if entry < (56 if wide else 32) or len(table) < entry * count:
        return None
    layout, at = (order + "Q16xQ", 8) if wide else (order + "I8xI", 4)
    ends = [sum(struct.unpack_from(layout, table, index * entry + at)) for index in range(count)]
    return int(max(ends, default=0)) or None


def unwrap(fd: int, kind: Kind, label: str, max_bytes: int) -> tuple[int, Kind]:
    """The image or archive inside an ELF or TEXT source, as a sealed memfd that the caller closes, and its kind.

    Raises ArchiveError on garbage, and when the content is larger than `max_bytes`.
    """
    if kind is Kind.ELF:
        size = os.fstat(fd).st_size
        offset = _appended_image(fd, size)
        if offset is None:
            raise ArchiveError(f"cannot use {label}: the squashfs appended to it is gone", hint=_KNOWN)
        chunks = _pieces(fd, offset)
    elif kind is Kind.TEXT:
        chunks = _decoded(fd, label)
    else:
        raise ValueError(f"nothing to unwrap in {kind}")
    return _into_memory(chunks, kind, label, max_bytes)


def _into_memory(chunks: Iterator[bytes], kind: Kind, label: str, max_bytes: int) -> tuple[int, Kind]:
    memory = os.memfd_create("sandbox-source", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        total = 0
        for chunk in chunks:
            total += len(chunk)
            if total > max_bytes:
                what = f"it holds more than {size(max_bytes)}"
                raise ArchiveError(f"cannot use {label}: {what}", hint="see --max-unpacked")
            _write_all(memory, chunk)
        inner = _kind_of(os.pread(memory, 1024, 0), total)
        if inner is not Kind.SQUASHFS and (inner is not Kind.ZIP or kind is Kind.ELF):
            raise ArchiveError(f"cannot use {label}: what it holds is neither a zip nor a squashfs", hint=_KNOWN)
        seal(memory)
        os.lseek(memory, 0, os.SEEK_SET)
        return memory, inner
    except OSError as error:
        os.close(memory)
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise HostError(
                f"cannot hold the content of {label} in memory: {reason(error)}", hint=remedy(error)
            ) from None
        raise ArchiveError(f"cannot read {label}: {reason(error)}", hint=remedy(error)) from None
    except SandboxError:
        os.close(memory)
        raise


def seal(fd: int) -> None:
    """Make a memfd's content final: nothing can change it under the kernel's feet (fcntl(2), F_ADD_SEALS)."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pieces(fd: int, offset: int) -> Iterator[bytes]:
    while chunk := os.pread(fd, _CHUNK, offset):
        yield chunk
        offset += len(chunk)


def _decoded(fd: int, label: str) -> Iterator[bytes]:
    """The bytes behind the `#` lines, from strict base64: line breaks and blanks at line ends, nothing else."""
    import binascii

    pending, in_comments, padded = b"", True, False
    for number, raw in _lines(fd, label):
        line = raw.strip(b" \t\r\n")
        if in_comments and (line.startswith(b"#") or not line):
            continue
        in_comments = False
        if not _BASE64_LINE.match(line) or (padded and line.strip(b"=")):
            raise ArchiveError(f"cannot use {label}: line {number} is not base64", hint="comment lines come first")
        padded = padded or line.endswith(b"=")
        pending += line
        whole = len(pending) // 4 * 4
        try:
            yield binascii.a2b_base64(pending[:whole], strict_mode=True)
        except binascii.Error:
            raise ArchiveError(f"cannot use {label}: line {number} is not base64", hint="get it again") from None
        pending = pending[whole:]
    if in_comments:
        raise ArchiveError(f"cannot use {label}: it is text with nothing behind the # lines", hint=_KNOWN)
    if pending:
        raise ArchiveError(f"cannot use {label}: the base64 text is truncated", hint="get it again")


def _lines(fd: int, label: str) -> Iterator[tuple[int, bytes]]:
    """The lines of the file with their numbers. A base64 text may be one huge line: it comes in pieces then."""
    rest, number = b"", 1
    for chunk in _pieces(fd, 0):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield number, line
            number += 1
        if len(rest) > _MAX_LINE:
            if rest.startswith(b"#"):
                raise ArchiveError(f"cannot use {label}: line {number} is longer than {_MAX_LINE} bytes")
            yield number, rest
            rest = b""
    if rest:
        yield number, rest
