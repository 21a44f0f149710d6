"""Hostile archives against the worker as the Extract step runs it: descriptor 3, no environment, one line."""

import os
import random
import struct
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from sandbox.images import convert
from tests.unit.image_tools import directory, link, member, memory, tar, tree_of, zipped

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def extract(data: bytes, target: str, limit: int = 1 << 30, *, wrap: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit status and what was written to descriptor 1."""
    argv = [os.fsdecode(word) for word in convert.worker_argv(sink="dir", max_unpacked=limit)]
    fd = memory(data)
    script = 'exec 3<"$1"; shift; exec "$@"'
    command = [*wrap, "sh", "-c", script, "sh", target, *argv]
    try:
        run = subprocess.run(command, stdin=fd, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
    finally:
        os.close(fd)
    return run.returncode, run.stdout


def small_tmpfs(size: str) -> tuple[str, ...]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    return ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {size} tmpfs /mnt && exec "$@"', "sh")


def test_the_contract(tmp_path: Path) -> None:
    assert extract(tar(member("f", b"x")), str(tmp_path)) == (0, "")
    status, line = extract(tar(member("../f", b"x")), str(tmp_path))
    assert status != 0
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert "'../f'" in line


def test_a_full_tmpfs_is_one_line_with_the_way_out() -> None:
    for data in (zipped({"f": os.urandom(8 << 20)}), tar(member("f", os.urandom(8 << 20)))):
        status, line = extract(data, "/mnt", wrap=small_tmpfs("size=4m"))
        assert status != 0
        assert line.count("\n") == 1
        assert "--tmpfs-size" in line
        assert "8.0 MiB" in line or "4.0 MiB" in line


def test_too_many_files_for_a_tmpfs() -> None:
    data = tar(*(member(str(number)) for number in range(500)))
    status, line = extract(data, "/mnt", wrap=small_tmpfs("nr_inodes=100"))
    assert status != 0
    assert "too many files" in line


def test_links_to_the_outside_change_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    before = tree_of(os.fsencode(tmp_path))
    absolute, relative = str(victim), "../victim"
    for number, target in enumerate((absolute, relative)):
        for attack in (
            [link("l", target), member("l/file", b"evil")],
            [link("l", target + "/file"), member("l", b"evil", mode=0o777)],
            [link("l", target), directory("l", 0o777)],
            [link("l", target), link("h", "l/file", hard=True)],
            [link("l", target + "/file"), link("h", "l", hard=True), member("h", b"evil", mode=0o777)],
            [directory("d"), link("d/l", "../" + target), member("d/l/file", b"evil")],
            [link("a", "."), link("b", "a/" + target), member("b/file", b"evil")],
        ):
            out = tmp_path / f"out{number}"
            out.mkdir()
            extract(tar(*attack), str(out))
            subprocess.run(["rm", "-rf", out], check=True)
    assert tree_of(os.fsencode(tmp_path)) == before


def test_swapping_directories_while_it_unpacks_leads_nowhere(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    names = [f"d/{number % 50}/e/{number}" for number in range(3000)]
    random.Random(1).shuffle(names)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(out / "d", tmp_path / "aside")
                os.symlink(victim, out / "d")
                os.unlink(out / "d")
                os.rename(tmp_path / "aside", out / "d")
            except OSError:
                pass

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(5):
            extract(tar(*(member(name, b"x") for name in names)), str(out))
            subprocess.run(["rm", "-rf", out / "d", tmp_path / "aside"], check=False)
    finally:
        stop.set()
        thread.join()
    assert os.listdir(victim) == []


def test_two_entries_over_the_same_data_are_refused(tmp_path: Path) -> None:
    """The trick of the densest zip bombs: many directory entries, one piece of data."""
    data = bytearray(zipped({"a": bytes(1 << 20), "b": bytes(1 << 20)}))
    second = data.rfind(b"PK\1\2")
    struct.pack_into("<L", data, second + 42, 0)
    data[second + 46 : second + 47] = b"a"
    status, line = extract(bytes(data), str(tmp_path))
    assert status != 0
    assert "shares its data" in line


def test_absurd_counts_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"1"}))
    end = data.rfind(b"PK\5\6")
    start, size = struct.unpack_from("<L", data, end + 16)[0], struct.unpack_from("<L", data, end + 12)[0]
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 6_000_000, 6_000_000, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    status, line = extract(bytes(data[:end]) + wide + locator + bytes(data[end:]), str(tmp_path))
    assert status != 0
    assert "6000000 entries" in line


def test_encrypted_entries_name_themselves(tmp_path: Path) -> None:
    data = bytearray(zipped({"open": b"1", "secret": b"2"}))
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.rfind(magic)
        struct.pack_into("<H", data, at + offset, 1)
    status, line = extract(bytes(data), str(tmp_path))
    assert status != 0
    assert "'secret' is encrypted" in line
    assert zipfile.is_zipfile(__file__) is False


def test_a_huge_dictionary_does_not_take_the_memory(tmp_path: Path) -> None:
    filters = ["xz", "-9e", "--lzma2=dict=1536MiB", "-c", "-T1"]
    with open(tmp_path / "in", "wb") as file:
        file.write(tar(member("f", b"x")))
    packed = subprocess.run([*filters, tmp_path / "in"], stdout=subprocess.PIPE)
    if packed.returncode != 0:
        pytest.skip("xz could not get the memory to make the archive")
    out = tmp_path / "out"
    out.mkdir()
    status, line = extract(packed.stdout, str(out))
    assert status == 0 or line.count("\n") == 1
