"""Archives built for the tests, and what became of them: `unpacked` (dir sink) and `imaged` (tar sink and tar2sqfs)."""

import io
import os
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from sandbox.images import convert, formats

LIMIT = 1 << 30


class Seen(NamedTuple):
    """What a tree holds under a name."""

    type: str
    mode: int
    content: bytes  # a file's data (its first 64 bytes when it is large), a symlink's text
    size: int
    mtime: int


Tree = dict[bytes, Seen]
Unpack = Callable[..., Tree]


def unix(mode: int) -> Callable[[zipfile.ZipInfo], None]:
    """Gives an entry of a zip the mode that Unix zips have."""

    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = mode << 16

    return change


def zst(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, check=True, stdout=subprocess.PIPE).stdout


def memory(data: bytes) -> int:
    fd = os.memfd_create("test-archive", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w", form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def zipped(entries: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40))
            info.external_attr = 0o644 << 16
            change(info)
            archive.writestr(info, data)
    return out.getvalue()


def unpacked(data: bytes, where: os.PathLike[str], limit: int = LIMIT) -> Tree:
    """The archive through the worker's dir sink."""
    os.mkdir(where)
    fd, root = memory(data), os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        convert.extract(fd, formats.detect(fd, "test"), root, label="test", max_unpacked=limit)
    finally:
        os.close(fd)
        os.close(root)
    return tree_of(os.fsencode(where))


def imaged(data: bytes, where: os.PathLike[str], limit: int = LIMIT) -> Tree:
    """The archive as a squashfs image, unpacked again by rdsquashfs."""
    fd = memory(data)
    try:
        kind = formats.detect(fd, "test")
        image = convert.image_in_memory(fd, kind, label="test", max_unpacked=limit, uid=os.getuid(), gid=os.getgid())
    finally:
        os.close(fd)
    try:
        return image_tree(image, where)
    finally:
        os.close(image)


def image_tree(image: int, where: os.PathLike[str]) -> Tree:
    os.mkdir(where)
    command = ["/usr/bin/rdsquashfs", "-q", "-O", "-T", "-C", "-Z", "-u", "/", "-p", where, f"/proc/self/fd/{image}"]
    subprocess.run(command, check=True, pass_fds=(image,))
    return tree_of(os.fsencode(where))


def image_listing(image: int) -> list[tarfile.TarInfo]:
    command = ["/usr/bin/sqfs2tar", f"/proc/self/fd/{image}"]
    listing = subprocess.run(command, check=True, pass_fds=(image,), stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(listing)) as packed:
        return packed.getmembers()


def tree_of(root: bytes) -> Tree:
    found: Tree = {}
    for parent, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content, kind = b"", "other"
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read(64)
                kind = "file"
            elif stat.S_ISLNK(status.st_mode):
                content, kind = os.readlink(path), "symlink"
            elif stat.S_ISDIR(status.st_mode):
                kind = "directory"
            seen = Seen(kind, stat.S_IMODE(status.st_mode), content, status.st_size, int(status.st_mtime))
            found[os.path.relpath(path, root)] = seen
    return found


def raw_zip(
    name: bytes,
    data: bytes,
    *,
    local_name: bytes | None = None,
    flags: int = 0,
    claimed: int | None = None,
    attributes: int = 0o100644 << 16,
) -> bytes:
    """A zip of one stored entry, byte by byte: for what zipfile will not write."""
    import zlib

    local_name = name if local_name is None else local_name
    size = len(data) if claimed is None else claimed
    common = (20, flags, 0, 0, 0x21, zlib.crc32(data), len(data), size)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", *common, len(local_name), 0) + local_name + data
    entry = (b"PK\1\2", 3 << 8 | 20, *common, len(name), 0, 0, 0, 0, attributes, 0)
    central = struct.pack("<4s6H3L5H2L", *entry) + name
    return local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
