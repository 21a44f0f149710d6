"""What a source is, by content; images inside ELF files and base64 texts."""

import base64
import gzip
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ArchiveError, SandboxError
from sandbox.images import formats, tarscan, zipdir
from sandbox.images.formats import Kind
from tests.unit.image_tools import member, memory, tar, zipped


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("formats") / "image.sqfs"
    subprocess.run(["tar2sqfs", "-q", "-c", "lz4", str(path)], input=tar(member("f", b"x")), check=True)
    return path.read_bytes()


def detect(data: bytes) -> Kind:
    fd = memory(data)
    try:
        return formats.detect(fd, "test")
    finally:
        os.close(fd)


def unwrap(data: bytes, kind: Kind, limit: int = 1 << 24) -> tuple[bytes, Kind]:
    fd = memory(data)
    try:
        inner, inner_kind = formats.unwrap(fd, kind, "test", limit)
    finally:
        os.close(fd)
    with open(inner, "rb") as file:
        return file.read(), inner_kind


def elf() -> bytes:
    return Path("/bin/true").read_bytes()


def test_kinds_by_content(squashfs: bytes) -> None:
    assert detect(squashfs) is Kind.SQUASHFS
    assert detect(zipped({"a": b"1"})) is Kind.ZIP
    assert detect(b"PK\5\6" + bytes(18)) is Kind.ZIP
    assert detect(tar(member("a", b"1"))) is Kind.TAR
    assert detect(gzip.compress(b"")) is Kind.TAR
    assert detect(bytes(1024)) is Kind.TAR
    assert detect(bytes(2048)) is Kind.TAR
    assert detect(bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(3000)) is Kind.EROFS
    assert detect(elf() + squashfs) is Kind.ELF
    assert detect(b"# a comment\nUEsF\n") is Kind.TEXT


def test_a_tar_without_ustar_magic() -> None:
    block = bytearray(tar(member("a", b"1"))[:512])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert detect(bytes(block)) is Kind.TAR


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"hello", "no kind"),
        (bytes(100), "no kind"),
        (b"hsqs" + bytes(200), "superblock"),
        (b"\x7fELF", "ELF"),
    ],
)
def test_the_rest_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(ArchiveError, match=word):
        detect(data)


def test_an_elf_without_an_image_is_refused() -> None:
    with pytest.raises(ArchiveError, match="without a squashfs"):
        detect(elf())


@pytest.mark.parametrize("version", [(3, 1), (4, 1)])
def test_other_squashfs_versions_are_refused(squashfs: bytes, version: tuple[int, int]) -> None:
    changed = bytearray(squashfs)
    struct.pack_into("<HH", changed, 28, *version)
    with pytest.raises(ArchiveError, match="superblock"):
        detect(bytes(changed))


def test_a_truncated_squashfs_is_refused(squashfs: bytes) -> None:
    with pytest.raises(ArchiveError, match="superblock"):
        detect(squashfs[:90])


@pytest.mark.parametrize("gap", [b"", bytes(77), b"hsqs" + bytes(4000)])
def test_the_image_behind_an_elf(squashfs: bytes, gap: bytes) -> None:
    assert unwrap(elf() + gap + squashfs, Kind.ELF) == (squashfs, Kind.SQUASHFS)


@pytest.mark.parametrize("width", [76, 1, 7, 10**7])
def test_base64_texts(squashfs: bytes, width: int) -> None:
    text = base64.b64encode(squashfs)
    lines = b"\r\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert unwrap(b"# one\n#two\n\n" + lines + b"\n\n", Kind.TEXT) == (squashfs, Kind.SQUASHFS)


def test_base64_of_a_zip() -> None:
    data = zipped({"a": b"1"})
    assert unwrap(b"#\n" + base64.encodebytes(data), Kind.TEXT) == (data, Kind.ZIP)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"# c\nUEsF!GgAA\n", "line 2 "),
        (b"# c\nUEsF\nUE sF\n", "line 3 "),
        (b"# c\nUEsF\n# late\n", "line 3 "),
        (b"# c\nUEsFBg==\nUEsF\n", "line 3 "),
        (b"# c\nUEsFB\n", "truncated"),
        (b"# c\nUEs\xc3\xa9\n", "line 2 "),
        (b"# only\n", "nothing behind"),
        (b"# c\naGVsbG8gd29ybGQK\n", "neither"),
    ],
)
def test_garbage_in_base64_is_refused(text: bytes, word: str) -> None:
    with pytest.raises(ArchiveError, match=word):
        unwrap(text, Kind.TEXT)


def test_the_content_is_bounded(squashfs: bytes) -> None:
    with pytest.raises(ArchiveError, match="more than 100 B"):
        unwrap(b"#\n" + base64.b64encode(squashfs), Kind.TEXT, 100)


def test_what_is_unwrapped_is_sealed(squashfs: bytes) -> None:
    fd = memory(elf() + squashfs)
    inner, _ = formats.unwrap(fd, Kind.ELF, "test", 1 << 24)
    with pytest.raises(PermissionError):
        os.write(inner, b"x")
    os.close(inner)
    os.close(fd)


@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x7fELF\2\1", b"hsqs", b"PK\3\4", b"#", b"# c\n"]))
def test_any_bytes_have_a_kind_or_one_line(data: bytes, prefix: bytes) -> None:
    fd = memory(prefix + data)
    try:
        kind = formats.detect(fd, "test")
        if kind in (Kind.ELF, Kind.TEXT):
            os.close(formats.unwrap(fd, kind, "test", 1 << 20)[0])
        said = ""
    except SandboxError as error:
        said = str(error)
    finally:
        os.close(fd)
    assert "\n" not in said


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_any_bytes_are_a_zip_directory_or_refused(front: bytes, back: bytes) -> None:
    fd = memory(front + b"PK\5\6" + back)
    try:
        for record in zipdir.records(fd):
            assert b"\0" not in record.name
    except ArchiveError:
        pass
    finally:
        os.close(fd)


@given(
    st.lists(st.tuples(st.text("ab/\n\x7f", min_size=1, max_size=8), st.integers(0, 2000)), max_size=4),
    st.sampled_from([1, 7, 512, 700, 5000]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 20]),
)
def test_the_watcher_follows_any_tar(entries: list[tuple[str, int]], step: int, form: int, longer: int) -> None:
    names = [(name * longer if form else name, size) for name, size in entries]
    packed = tar(*(member(name, b"x" * size) for name, size in names), form=form)
    watcher = tarscan.Watcher()
    for at in range(0, len(packed), step):
        watcher.feed(packed[at : at + step])
    assert watcher.finished
    assert watcher.headers >= len(entries)
