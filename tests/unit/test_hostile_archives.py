"""Archives that must be refused with one clear line, through both sinks."""

import bz2
import gzip
import lzma
import os
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import SandboxError
from sandbox.images import archive
from sandbox.images.reader import Raw
from tests.unit.image_tools import (
    Unpack,
    directory,
    link,
    member,
    raw_zip,
    tar,
    tree_of,
    unix,
    unpacked,
    zipped,
    zst,
)

# -- what must be refused -----------------------------------------------------------------------------------------

HOSTILE = {
    "traversal": (tar(member("../x", b"1")), "'..'"),
    "traversal inside": (tar(member("a/../../x", b"1")), "'..'"),
    "traversal in a zip": (zipped({"../x": b"1"}), "'..'"),
    "absolute": (tar(member("/etc/x", b"1")), "absolute"),
    "absolute in a zip": (raw_zip(b"/etc/x", b"1"), "absolute"),
    "hard link out": (tar(link("x", "/etc/passwd", hard=True)), "absolute"),
    "hard link up": (tar(link("x", "../passwd", hard=True)), "'..'"),
    "hard link to nothing": (tar(link("x", "y", hard=True)), "does not hold"),
    "hard link to a later file": (tar(link("x", "y", hard=True), member("y")), "does not hold"),
    "hard link to a directory": (tar(directory("d"), link("x", "d", hard=True)), "the directory"),
    "through a symlink": (tar(link("l", "/tmp"), member("l/x", b"1")), "not a directory"),
    "symlink then directory": (tar(link("l", "/tmp"), directory("l"), member("l/x", b"1")), "both a directory"),
    "through a symlink in a zip": (
        zipped({"l": b"/tmp", "l/x": b"1"}, lambda i: unix(0o120777 if i.filename == "l" else 0o100644)(i)),
        "not a directory",
    ),
    "file and directory": (tar(member("x", b"1"), directory("x")), "both a directory"),
    "directory and file": (tar(directory("x"), member("x", b"1")), "both a directory"),
    "file below a file": (tar(member("x", b"1"), member("x/y", b"1")), "not a directory"),
    "implied directory and file": (zipped({"x/y": b"1", "x": b"2"}), "both a directory"),
    "root as a file": (tar(member(".", b"1")), "both a directory"),
    "NUL in a zip": (raw_zip(b"a\0b", b"1"), "NUL"),
    "NUL in pax": (tar(member("x", pax_headers={"path": "a\0b"}), form=tarfile.PAX_FORMAT), "NUL"),
    "NUL in pax, gzip": (gzip.compress(tar(member("x", pax_headers={"path": "a\0b"}), form=tarfile.PAX_FORMAT)), "NUL"),
    "NUL in a pax link": (tar(member("x", pax_headers={"linkpath": "a\0b"}), form=tarfile.PAX_FORMAT), "NUL"),
    "two names": (raw_zip(b"good", b"1", local_name=b"evil"), "different name"),
    "encrypted": (raw_zip(b"secret", b"1" * 20, flags=1), "encrypted"),
    "overlong component": (tar(member("n" * 300, b"1")), "longer than"),
    "overlong name": (tar(member("n/" * 2500 + "x", b"1")), "longer than"),
    "more data than claimed": (raw_zip(b"liar", b"1" * 1000, claimed=10), "damaged"),
    "less data than claimed": (raw_zip(b"liar", b"1" * 1000, claimed=2000), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_one_line(unpack: Unpack, tmp_path: Path, name: str) -> None:
    data, expected = HOSTILE[name]
    before = tree_of(os.fsencode(tmp_path))
    with pytest.raises(SandboxError) as caught:
        unpack(data, tmp_path / "out")
    line = str(caught.value)
    assert expected in line
    assert line.startswith("cannot unpack test: ")
    assert "\n" not in line
    assert "internal" not in line
    assert {key: one for key, one in tree_of(os.fsencode(tmp_path)).items() if not key.startswith(b"out")} == before


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zst])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_truncated_tars_are_refused(
    unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes], keep: float
) -> None:
    data = pack(tar(member("a", os.urandom(100_000)), member("b", os.urandom(100_000))))
    with pytest.raises(SandboxError, match=r"truncated|damaged"):
        unpack(data[: int(len(data) * keep)], tmp_path / "out")


def test_a_tar_cut_between_entries_is_refused(unpack: Unpack, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="truncated"):
        unpack(tar(member("a", b"1"), member("b", b"2"))[:1024], tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
def test_nothing_compressed_is_no_tar(unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SandboxError, match="truncated: the mark at the end of a tar is missing"):
        unpack(pack(b""), tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
def test_what_follows_nothing_compressed_counts(unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    unpack(pack(b"") + pack(tar(member("a", b"1"))), tmp_path / "out")
    assert b"a" in tree_of(os.fsencode(tmp_path / "out"))


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_truncated_zips_are_refused(unpack: Unpack, tmp_path: Path, keep: float) -> None:
    data = zipped({"a": os.urandom(50_000), "b": os.urandom(50_000)})
    with pytest.raises(SandboxError, match=r"truncated|damaged"):
        unpack(data[: int(len(data) * keep)], tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
@pytest.mark.parametrize("length", [100_000, 124_000, 128_000])
@pytest.mark.parametrize("padding", [0, 3 << 20])
def test_flipped_bits_are_noticed(
    unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes], length: int, padding: int
) -> None:
    # The same bytes every time: a changed block of bzip2 is other text from its beginning on, which may be refused for
    # what it says before its checksum is reached.
    content = random.Random(length).randbytes(length)
    data = bytearray(pack(tar(member("a", content)) + bytes(padding)))
    data[length // 2] ^= 0x10
    with pytest.raises(SandboxError, match="damaged"):
        unpack(bytes(data), tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
@pytest.mark.parametrize("cut", [1, 4, 8, 12])
def test_tars_cut_in_their_last_checksum_are_refused(
    unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes], cut: int
) -> None:
    data = pack(tar(member("a", os.urandom(124_000))))
    with pytest.raises(SandboxError, match="truncated"):
        unpack(data[:-cut], tmp_path / "out")


def test_flipped_bits_in_a_zip_are_noticed(unpack: Unpack, tmp_path: Path) -> None:
    data = bytearray(zipped({"a": os.urandom(100_000)}))
    data[50_000] ^= 0x10
    with pytest.raises(SandboxError, match="damaged"):
        unpack(bytes(data), tmp_path / "out")


@pytest.mark.parametrize("make", [lambda d: zipped({"zeros": d}), lambda d: gzip.compress(tar(member("zeros", d)))])
def test_bombs_are_refused(unpack: Unpack, tmp_path: Path, make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SandboxError, match="--max-unpacked"):
        unpack(make(bytes(50 << 20)), tmp_path / "out", 10 << 20)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
def test_bombs_behind_the_end_of_a_tar_are_refused(
    unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(SandboxError, match="--max-unpacked"):
        unpack(pack(tar(member("a", b"1")) + bytes(50 << 20)), tmp_path / "out", 10 << 20)


def test_bombs_that_lie_about_their_size_are_refused(unpack: Unpack, tmp_path: Path) -> None:
    data = bytearray(zipped({"zeros": bytes(50 << 20)}))
    for magic, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", data, data.find(magic) + offset, 100)
    with pytest.raises(SandboxError, match=r"damaged|max-unpacked"):
        unpack(bytes(data), tmp_path / "out", 10 << 20)


# -- properties ---------------------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"c\n", b"\xff"]), max_size=5).map(b"/".join)
KINDS = st.sampled_from([0o100000, 0o040000, 0o120000, 0o010000])


@given(st.lists(st.tuples(NAMES, KINDS, st.one_of(st.none(), NAMES)), max_size=12))
def test_the_guard_lets_only_consistent_trees_pass(entries: list[tuple[bytes, int, bytes | None]]) -> None:
    guard = archive.Guard(1 << 20)
    known: dict[bytes, archive.Type] = {b"": archive.Type.DIRECTORY}
    for name, kind, target in entries:
        try:
            entry = guard.admit(Raw(name, kind, 0o7777, 0, 0, b"../../t", target, True, ()))
        except SandboxError:
            return
        if entry is None:
            continue
        parts = entry.name.split(b"/")
        assert not entry.name.startswith(b"/")
        assert b".." not in parts
        for depth in range(1, len(parts)):
            assert known.setdefault(b"/".join(parts[:depth]), archive.Type.DIRECTORY) is archive.Type.DIRECTORY
        if entry.type is archive.Type.HARDLINK:
            assert known[entry.target] in (archive.Type.FILE, archive.Type.HARDLINK)
        assert entry.mode & 0o6000 == 0
        known[entry.name] = entry.type


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archives_never_escape_or_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(_BASES))
    changed = bytearray(base)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    outside = tmp_path_factory.mktemp("fuzz")
    try:
        unpacked(bytes(changed), outside / "out")
    except SandboxError as error:
        said = str(error)
    else:
        said = ""
    assert not [word for word in ("\n", "internal", "signal") if word in said]
    assert set(os.listdir(outside)) <= {"out"}


_BASES = [
    zipped({"a/b": b"data" * 50, "c": b"x"}),
    tar(member("a/b", b"data" * 50), link("l", "a"), link("h", "a/b", hard=True), form=tarfile.PAX_FORMAT),
    gzip.compress(tar(member("x" * 150, b"data"))),
]
