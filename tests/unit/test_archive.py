"""Archives that must work, and archives that must be refused with one clear line, through both sinks."""

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import SandboxError
from sandbox.images import archive, convert, formats
from sandbox.images.reader import Raw
from tests.unit.image_tools import (
    Tree,
    directory,
    image_listing,
    image_tree,
    imaged,
    link,
    member,
    memory,
    raw_zip,
    tar,
    tree_of,
    unpacked,
    zipped,
)

Unpack = Callable[..., Tree]


@pytest.fixture(params=[unpacked, imaged], ids=["dir", "image"])
def unpack(request: pytest.FixtureRequest) -> Unpack:
    return request.param


def unix(mode: int) -> Callable[[zipfile.ZipInfo], None]:
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = mode << 16

    return change


def zst(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, check=True, stdout=subprocess.PIPE).stdout


# -- what must work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zst])
def test_tar_in_every_compression(unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    big = bytes(range(256)) * 5000
    data = tar(directory("d", 0o750), member("d/file", b"hello", mode=0o640), member("big", big), link("l", "d/file"))
    seen = unpack(pack(data), tmp_path / "out")
    assert seen[b"d/file"] == ("file", 0o640, b"hello", 5, 1_000_000_000)
    assert seen[b"d"].mode == 0o750
    assert seen[b"big"].size == len(big)
    assert (tmp_path / "out" / "big").read_bytes() == big
    assert seen[b"l"].content == b"d/file"


def test_gzip_of_several_members(unpack: Unpack, tmp_path: Path) -> None:
    data = tar(member("a", b"1" * 5000))
    assert unpack(gzip.compress(data[:3000]) + gzip.compress(data[3000:]), tmp_path / "out")[b"a"].size == 5000


def test_zip_with_and_without_unix_modes(unpack: Unpack, tmp_path: Path) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        if info.filename.startswith("dos"):
            info.create_system, info.external_attr = 0, 0x10 if info.filename.endswith("/") else 0
        else:
            info.external_attr = 0o100755 << 16

    seen = unpack(zipped({"dos/": b"", "dos/f": b"x", "prog": b"#!"}, change), tmp_path / "out")
    assert [seen[n].mode for n in (b"dos", b"dos/f", b"prog")] == [0o755, 0o644, 0o755]


def test_zip_of_a_unix_host_without_modes(unpack: Unpack, tmp_path: Path) -> None:
    assert unpack(raw_zip(b"f", b"x", attributes=0), tmp_path / "out")[b"f"].mode == 0o644


def test_zip_with_symlinks(unpack: Unpack, tmp_path: Path) -> None:
    seen = unpack(zipped({"l": b"/etc/shadow"}, unix(0o120777)), tmp_path / "out")
    assert seen[b"l"][:3] == ("symlink", 0o777, b"/etc/shadow")


def test_zip64(unpack: Unpack, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed, packed.open("big", "w", force_zip64=True) as file:
        file.write(b"content")
    assert unpack(out.getvalue(), tmp_path / "out")[b"big"].content == b"content"


def test_zip_with_more_than_65535_entries() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for index in range(66_000):
            packed.writestr(f"{index % 100}/{index}", b"")
    fd, image = memory(out.getvalue()), memory(b"")
    convert.build_image(fd, formats.Kind.ZIP, image, label="test", max_unpacked=1 << 20, uid=0, gid=0)
    assert len(image_listing(image)) == 66_100


@pytest.mark.parametrize("marked", [False, True])
def test_zip_names_that_are_not_utf8(unpack: Unpack, tmp_path: Path, marked: bool) -> None:
    data = raw_zip(b"\xe9\xff.txt", b"x", flags=0x800 if marked else 0)
    assert b"\xe9\xff.txt" in unpack(data, tmp_path / "out")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_odd_names(unpack: Unpack, tmp_path: Path, form: int) -> None:
    names = ["new\nline", "é", "\udce9\udcff", " ", "a b/\\c", "x" * 90 + "/" + "y" * 60, "-", "\x01\x7f"]
    seen = unpack(tar(*(member(name, b"1") for name in names), form=form), tmp_path / "out")
    assert {os.fsencode(name) for name in names} <= set(seen)


def test_long_names_and_targets(unpack: Unpack, tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 6)
    seen = unpack(tar(member(deep + "/f", b"x"), link("l", deep)), tmp_path / "out")
    assert seen[(deep + "/f").encode()].content == b"x"
    assert seen[b"l"].content == deep.encode()


@pytest.mark.parametrize("data", [b"PK\5\6" + bytes(18), bytes(1024), bytes(10240), gzip.compress(bytes(10240))])
def test_empty_archives(unpack: Unpack, tmp_path: Path, data: bytes) -> None:
    assert unpack(data, tmp_path / "out") == {}


def test_files_in_a_read_only_directory(unpack: Unpack, tmp_path: Path) -> None:
    data = tar(directory("ro", 0o555), directory("ro/none", 0o500), member("ro/none/f", b"x"), member("ro/g"))
    seen = unpack(data, tmp_path / "out")
    assert (seen[b"ro"].mode, seen[b"ro/none"].mode) == (0o555, 0o500)
    assert {b"ro/none/f", b"ro/g"} <= set(seen)


def test_parents_that_no_entry_names(unpack: Unpack, tmp_path: Path) -> None:
    seen = unpack(tar(member("a/b/c", b"x")), tmp_path / "out")
    assert (seen[b"a"].type, seen[b"a/b"].mode) == ("directory", 0o755)


def test_special_bits_and_devices_are_dropped(unpack: Unpack, tmp_path: Path) -> None:
    data = tar(
        member("suid", b"x", mode=0o6755),
        directory("sgid", 0o3777),
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", type=tarfile.BLKTYPE, devmajor=8),
        member("pipe", type=tarfile.FIFOTYPE),
        link("of-null", "null", hard=True),
    )
    seen = unpack(data, tmp_path / "out")
    assert {name: one.mode for name, one in seen.items()} == {b"suid": 0o755, b"sgid": 0o1777}


def test_hard_links(unpack: Unpack, tmp_path: Path) -> None:
    data = tar(member("d/a", b"data"), link("b", "d/a", hard=True), link("s", "b"), link("t", "./s", hard=True))
    seen = unpack(data, tmp_path / "out")
    assert seen[b"b"].content == b"data"
    assert (seen[b"t"].type, seen[b"t"].content) == ("symlink", b"b")
    if unpack is unpacked:
        assert os.stat(tmp_path / "out" / "b").st_ino == os.stat(tmp_path / "out" / "d" / "a").st_ino


def test_hard_links_in_an_image_are_one_inode() -> None:
    fd, out = memory(tar(member("d/a", b"data"), link("b", "d/a", hard=True))), memory(b"")
    convert.build_image(fd, formats.Kind.TAR, out, label="test", max_unpacked=1 << 20, uid=0, gid=0)
    assert any(one.islnk() for one in image_listing(out))


def test_a_name_twice_means_the_last(unpack: Unpack, tmp_path: Path) -> None:
    data = tar(
        member("a", b"first"),
        link("keeps-first", "a", hard=True),
        member("a", b"the second"),
        link("s", "x"),
        member("s", b"was a link"),
        directory("d", 0o700),
        directory("d", 0o711),
    )
    seen = unpack(data, tmp_path / "out")
    assert {name: one.content for name, one in seen.items() if one.type == "file"} == {
        b"a": b"the second",
        b"keeps-first": b"first",
        b"s": b"was a link",
    }
    assert seen[b"d"].mode == 0o711


@pytest.mark.parametrize("form", ["gnu", "pax", "0.0"])
def test_sparse_files(unpack: Unpack, tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "sparse", "wb") as file:
        for at in range(0, 40 << 20, 1 << 20):  # more than the four segments of a header
            file.seek(at)
            file.write(b"island %d" % at)
        file.truncate(5 << 30)
    formats_ = {"gnu": ["--format=gnu"], "pax": ["--format=pax"], "0.0": ["--format=pax", "--sparse-version=0.0"]}
    command = ["tar", "-S", *formats_[form], "-C", str(tmp_path / "in"), "-cf", "-", "sparse"]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    out = tmp_path / "out"
    assert unpack(data, out)[b"sparse"].size == 5 << 30
    with open(out / "sparse", "rb") as file:
        for at in range(0, 40 << 20, 1 << 20):
            file.seek(at)
            text = b"island %d" % at
            assert file.read(len(text) + 1) == text + b"\0"
        file.seek(4 << 30)
        assert not any(file.read(4096))
    if unpack is unpacked:
        assert os.stat(out / "sparse").st_blocks * 512 < 1 << 20


def test_images_are_unpacked_through_the_same_rules(tmp_path: Path) -> None:
    command = ["tar2sqfs", "-q", "-c", "lz4", str(tmp_path / "in.sqfs")]
    subprocess.run(command, input=tar(member("f", b"x", mode=0o4755), link("l", "/etc")), check=True)
    seen = unpacked((tmp_path / "in.sqfs").read_bytes(), tmp_path / "out")
    assert {name: (one.type, one.mode) for name, one in seen.items()} == {
        b"f": ("file", 0o755),
        b"l": ("symlink", 0o777),
    }


def test_holes_in_an_image_stay_holes(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.write(b"start")
        file.truncate(256 << 20)
    packed = subprocess.run(["tar", "-S", "-C", tmp_path, "-cf", "-", "sparse"], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar2sqfs", "-q", "-c", "lz4", str(tmp_path / "in.sqfs")], input=packed.stdout, check=True)
    seen = unpacked((tmp_path / "in.sqfs").read_bytes(), tmp_path / "out")
    assert (seen[b"sparse"].size, seen[b"sparse"].content[:6]) == (256 << 20, b"start\0")
    assert os.stat(tmp_path / "out" / "sparse").st_blocks * 512 < 2 << 20


def test_everything_in_an_image_belongs_to_the_user(tmp_path: Path) -> None:
    fd, out = memory(tar(member("d/f", b"x", uid=7, gid=8), directory("e"))), memory(b"")
    convert.build_image(fd, formats.Kind.TAR, out, label="test", max_unpacked=1 << 20, uid=4_000_000, gid=70_000)
    assert {(one.uid, one.gid) for one in image_listing(out)} == {(4_000_000, 70_000)}


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


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_truncated_zips_are_refused(unpack: Unpack, tmp_path: Path, keep: float) -> None:
    data = zipped({"a": os.urandom(50_000), "b": os.urandom(50_000)})
    with pytest.raises(SandboxError, match=r"truncated|damaged"):
        unpack(data[: int(len(data) * keep)], tmp_path / "out")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_flipped_bits_are_noticed(unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = bytearray(pack(tar(member("a", os.urandom(100_000)))))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(SandboxError, match="damaged"):
        unpack(bytes(data), tmp_path / "out")


def test_flipped_bits_in_a_zip_are_noticed(unpack: Unpack, tmp_path: Path) -> None:
    data = bytearray(zipped({"a": os.urandom(100_000)}))
    data[50_000] ^= 0x10
    with pytest.raises(SandboxError, match="damaged"):
        unpack(bytes(data), tmp_path / "out")


@pytest.mark.parametrize("make", [lambda d: zipped({"zeros": d}), lambda d: gzip.compress(tar(member("zeros", d)))])
def test_bombs_are_refused(unpack: Unpack, tmp_path: Path, make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SandboxError, match="--max-unpacked"):
        unpack(make(bytes(50 << 20)), tmp_path / "out", 10 << 20)


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


# -- directories as sources ---------------------------------------------------------------------------------------


def test_a_directory_becomes_an_image(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"data")
    os.chmod(source / "d" / "f", 0o4750)
    os.chmod(source / "d", 0o2775)
    os.link(source / "d" / "f", source / "hard")
    os.symlink("/etc/shadow", source / "l")
    os.mkfifo(source / "pipe")
    with open(source / "sparse", "wb") as file:
        file.truncate(64 << 20)
    fd, out = os.open(source, os.O_PATH), memory(b"")
    owner = {"uid": os.getuid(), "gid": os.getgid()}
    convert.build_image_from_dir(fd, out, label="test", max_unpacked=1 << 20, **owner)
    seen = image_tree(out, tmp_path / "out")
    assert {name: (one.type, one.mode) for name, one in seen.items()} == {
        b"d": ("directory", 0o775),
        b"d/f": ("file", 0o750),
        b"hard": ("file", 0o750),
        b"l": ("symlink", 0o777),
        b"sparse": ("file", 0o644),
    }
    assert [one.name for one in image_listing(out) if one.islnk()] == ["hard"]
