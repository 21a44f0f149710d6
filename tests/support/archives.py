"""Small archives with exactly the entries that a test wants, well-formed or not."""

import base64
import io
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

_TAR_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "chardev": tarfile.CHRTYPE,
    "blockdev": tarfile.BLKTYPE,
}


class Entry(NamedTuple):
    """One member. `mode` None means 0755 for directories and 0644 for the rest; `target` is for links."""

    name: str | bytes
    data: bytes = b""
    kind: str = "file"
    mode: int | None = None
    target: str | bytes = ""
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000
    device: tuple[int, int] = (1, 3)

    @classmethod
    def directory(cls, name: str | bytes, mode: int = 0o755) -> Self:
        return cls(name, kind="dir", mode=mode)

    @classmethod
    def symlink(cls, name: str | bytes, target: str | bytes) -> Self:
        return cls(name, kind="symlink", target=target, mode=0o777)

    @classmethod
    def hardlink(cls, name: str | bytes, target: str | bytes) -> Self:
        return cls(name, kind="hardlink", target=target)

    @classmethod
    def program(cls, name: str | bytes, script: str, mode: int = 0o755) -> Self:
        """A shell script."""
        return cls(name, f"#!/bin/sh\n{script}\n".encode(), mode=mode)

    def permissions(self) -> int:
        return self.mode if self.mode is not None else (0o755 if self.kind == "dir" else 0o644)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


class _RawZipInfo(zipfile.ZipInfo):
    """A ZipInfo whose name is written as the bytes it was given: not UTF-8, with a NUL, whatever."""

    raw_name: bytes

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        try:
            self.raw_name.decode("ascii")
        except UnicodeDecodeError:
            try:
                self.raw_name.decode("utf-8")
            except UnicodeDecodeError:
                return self.raw_name, self.flag_bits
            return self.raw_name, self.flag_bits | 0x800
        return self.raw_name, self.flag_bits


def make_zip(path: Path, entries: Iterable[Entry], *, unix_modes: bool = True, stored: bool = False) -> Path:
    """A zip file. Without `unix_modes` it looks as if made on a system that has none."""
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, entry in enumerate(entries):
            info = _RawZipInfo(f"entry{number}")
            raw = entry.name.encode() if isinstance(entry.name, str) else entry.name
            info.raw_name = raw if entry.kind != "dir" or raw.endswith(b"/") else raw + b"/"
            info.compress_type = method
            info.create_system = 3 if unix_modes else 0
            if unix_modes:
                kind = {"dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}.get(entry.kind, stat.S_IFREG)
                info.external_attr = (kind | entry.permissions()) << 16
            data = entry.data
            if entry.kind == "symlink":
                data = entry.target.encode() if isinstance(entry.target, str) else entry.target
            archive.writestr(info, data)
    return path


def tar_bytes(entries: Iterable[Entry], *, format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002
    """An uncompressed tar, entries as given, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for entry in entries:
            info = tarfile.TarInfo(_text(entry.name))
            info.type = _TAR_TYPES[entry.kind]
            info.mode, info.mtime, info.uid, info.gid = entry.permissions(), entry.mtime, entry.uid, entry.gid
            info.linkname = _text(entry.target)
            info.size = len(entry.data) if entry.kind == "file" else 0
            info.devmajor, info.devminor = entry.device
            archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def make_tar(path: Path, entries: Iterable[Entry], *, compression: str = "", format: int = tarfile.GNU_FORMAT) -> Path:  # noqa: A002
    """A tar file; `compression` is "", "gzip", "bzip2", "xz" or "zstd" (the programs of those names do it)."""
    data = tar_bytes(entries, format=format)
    if compression:
        data = subprocess.run([compression, "-q", "-c"], input=data, capture_output=True, check=True).stdout
    path.write_bytes(data)
    return path


def make_squashfs(path: Path, entries: Iterable[Entry], *, compression: str = "gzip") -> Path:
    """A squashfs image, owners, modes and device nodes as the entries say."""
    path.unlink(missing_ok=True)
    command = ["sqfstar", "-quiet", "-no-progress", "-comp", compression, str(path)]
    subprocess.run(command, input=tar_bytes(entries), check=True, stdout=subprocess.DEVNULL)
    return path


def make_elf_image(path: Path, image: Path, *, program: Path = Path("/bin/true")) -> Path:
    """What an AppImage of type 2 is: an ELF program with a squashfs behind it."""
    path.write_bytes(program.read_bytes() + image.read_bytes())
    path.chmod(0o755)
    return path


def make_text(path: Path, content: Path, *, comment: str = "An archive as text.") -> Path:
    """`#` comment lines, then `content` (a zip or a squashfs) as base64."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(lines + base64.encodebytes(content.read_bytes()).decode())
    return path


def make_tree(root: Path, entries: Iterable[Entry]) -> Path:
    """The entries as a real directory tree (regular files, directories, links)."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        where = root / _text(entry.name)
        where.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "dir":
            where.mkdir(exist_ok=True)
        elif entry.kind == "symlink":
            where.symlink_to(_text(entry.target))
            continue
        elif entry.kind == "hardlink":
            where.hardlink_to(root / _text(entry.target))
            continue
        else:
            where.write_bytes(entry.data)
        where.chmod(entry.permissions())
    return root
