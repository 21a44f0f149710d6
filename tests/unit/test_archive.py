"""Archives that must work, through both sinks."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.images import convert, formats
from tests.unit.image_tools import (
    Unpack,
    directory,
    image_listing,
    image_tree,
    link,
    member,
    memory,
    raw_zip,
    tar,
    unix,
    unpacked,
    zipped,
    zst,
)

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


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zst])
def test_padding_does_not_count_as_content(unpack: Unpack, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = pack(tar(member("a", b"1")) + bytes(10 << 20))
    assert unpack(data, tmp_path / "out", 10)[b"a"].content == b"1"


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
    convert.build_image(convert.Output(image, "test", 1 << 20, 0, 0), fd, formats.Kind.ZIP)
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


# Workers of pytest-xdist have to see the same names: those made of the bytes have the time of compression in them.
@pytest.mark.parametrize(
    "data",
    [b"PK\5\6" + bytes(18), bytes(1024), bytes(10240), gzip.compress(bytes(10240))],
    ids=["zip", "two blocks", "a record", "gzip"],
)
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
    convert.build_image(convert.Output(out, "test", 1 << 20, 0, 0), fd, formats.Kind.TAR)
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
    convert.build_image(convert.Output(out, "test", 1 << 20, 4_000_000, 70_000), fd, formats.Kind.TAR)
    assert {(one.uid, one.gid) for one in image_listing(out)} == {(4_000_000, 70_000)}


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
    convert.build_image_from_dir(convert.Output(out, "test", 1 << 20, os.getuid(), os.getgid()), fd)
    seen = image_tree(out, tmp_path / "out")
    assert {name: (one.type, one.mode) for name, one in seen.items()} == {
        b"d": ("directory", 0o775),
        b"d/f": ("file", 0o750),
        b"hard": ("file", 0o750),
        b"l": ("symlink", 0o777),
        b"sparse": ("file", 0o644),
    }
    assert [one.name for one in image_listing(out) if one.islnk()] == ["hard"]
