"""Images as files: what goes out comes in again, and what comes in is judged by its bytes."""

import json
import os
import struct
from pathlib import Path

import pytest

from sandbox.errors import SandboxError
from sandbox.images import building, inside, names, transfer
from sandbox.images.store import Store
from tests.unit.image_tools import link, member, tar
from tests.unit.test_image_names import Shelf


def tail(note: bytes, *, length: int | None = None) -> bytes:
    return note + struct.pack("<Q8s", len(note) if length is None else length, b"SBXIMG1\n")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    (tmp_path / "other").mkdir(0o700)
    return Store(os.open(tmp_path / "other", os.O_RDONLY))


def exported(shelf: Shelf, content: bytes = b"1") -> tuple[Path, bytes]:
    digest = shelf.build(content)
    target = shelf.root / "image.sfs"
    found = names.open_reference(shelf.images, b"@sha256:" + digest)
    transfer.export(shelf.images, found.fd, digest, os.fsencode(target))
    os.close(found.fd)
    return target, digest


def test_there_and_back(shelf: Shelf, other: Store) -> None:
    target, digest = exported(shelf)
    assert transfer.take(other, os.fsencode(target)) == digest
    assert other.about(digest) == shelf.images.about(digest)
    with pytest.raises(SandboxError, match="it exists"):
        exported(shelf)


def test_a_squashfs_without_a_note_will_do(shelf: Shelf, other: Store) -> None:
    digest = shelf.build(b"1")
    assert transfer.take(other, os.fsencode(shelf.path(digest))) == digest


@pytest.mark.parametrize(("at", "damage"), [(96, b"\xff" * 54), (20, b"\x63")], ids=["data", "compressor"])
def test_what_cannot_be_read_is_neither_imported_nor_built(shelf: Shelf, other: Store, at: int, damage: bytes) -> None:
    digest = shelf.build(os.urandom(1000))
    data = bytearray(shelf.path(digest).read_bytes())
    data[at : at + len(damage)] = damage
    target = shelf.root / "damaged.sfs"
    target.write_bytes(data)
    with pytest.raises(SandboxError, match="cannot import"):
        transfer.take(other, os.fsencode(target))
    with pytest.raises(SandboxError, match=r"cannot keep .*\(fetch it again, or make it anew\)"):
        building.build(
            other.home, os.fsencode(target), name=b"n", compress=None, max_unpacked=1 << 30, say=lambda _: None
        )
    assert other.listed(b"cache") == []
    assert other.listed(b"names") == []


def test_a_changed_byte_is_refused(shelf: Shelf, other: Store) -> None:
    target, _ = exported(shelf, os.urandom(1000))
    data = bytearray(target.read_bytes())
    data[300] ^= 1
    target.write_bytes(data)
    with pytest.raises(SandboxError, match="digest"):
        transfer.take(other, os.fsencode(target))
    assert [name for name in os.listdir(other.cache) if name.endswith(".sfs")] == []


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 60000,
        b'{"source": 1, "created": 2, "digest": "../../etc/passwd"}',
        b'{"source": "", "created": "", "digest": "' + b"A" * 64 + b'"}',
    ],
)
def test_a_hostile_note_is_one_line(shelf: Shelf, other: Store, note: bytes) -> None:
    digest = shelf.build(b"1")
    target = shelf.root / "hostile"
    target.write_bytes(shelf.path(digest).read_bytes() + tail(note))
    with pytest.raises(SandboxError, match="note behind the image") as raised:
        transfer.take(other, os.fsencode(target))
    assert "\n" not in str(raised.value)
    assert os.listdir(other.cache) == []


@pytest.mark.parametrize("length", [1 << 63, 1 << 17, 10_000_000])
def test_a_note_of_impossible_length(shelf: Shelf, other: Store, length: int) -> None:
    target = shelf.root / "hostile"
    target.write_bytes(shelf.path(shelf.build(b"1")).read_bytes() + tail(b"{}", length=length))
    with pytest.raises(SandboxError, match="note behind the image"):
        transfer.take(other, os.fsencode(target))


def test_no_word_of_a_note_is_a_path_or_a_terminal_code(shelf: Shelf, other: Store) -> None:
    digest = shelf.build(b"1")
    note = {"source": "/etc/\x1b[31mpasswd\n", "created": "\x1b", "digest": digest.decode(), "name": "../../x"}
    target = shelf.root / "hostile"
    target.write_bytes(shelf.path(digest).read_bytes() + tail(json.dumps(note).encode()))
    assert transfer.take(other, os.fsencode(target)) == digest
    assert "\x1b" not in other.about(digest).source + other.about(digest).created


@pytest.mark.parametrize("data", [b"", b"x" * 16, b"hsqs", b"PK\3\4" + bytes(2000), tail(b"{}")])
def test_what_is_no_image(shelf: Shelf, other: Store, data: bytes) -> None:
    target = shelf.root / "x"
    target.write_bytes(data)
    with pytest.raises(SandboxError, match="cannot"):
        transfer.take(other, os.fsencode(target))


def test_looking_inside_follows_no_link(tmp_path: Path, shelf: Shelf) -> None:
    path = tmp_path / "s.tar"
    members = [member("d/f", b"content"), link("out", "/etc/passwd"), link("up", "../../etc"), link("dl", "d")]
    path.write_bytes(tar(*members))
    from sandbox.images import building

    options = {"compress": None, "max_unpacked": 1 << 30, "say": lambda _: None}
    building.build(shelf.images.home, os.fsencode(path), name=b"n", **options)  # type: ignore[arg-type]
    found = names.open_reference(shelf.images, b"@n")
    listed = {entry.name: entry for entry in inside.listing(found.fd, b"/", "n")}
    assert listed["out"].target == "/etc/passwd"
    assert [entry.name for entry in inside.listing(found.fd, b"d", "n")] == ["f"]
    with (tmp_path / "out").open("wb") as out:
        inside.cat(found.fd, b"d/f", "n", out.fileno())
        for bad in (b"out", b"up/passwd", b"dl/f", b"../../etc/passwd", b"nothing", b"d", b"-h", b"--help"):
            with pytest.raises(SandboxError, match="cannot read"):
                inside.cat(found.fd, bad, "n", out.fileno())
    assert (tmp_path / "out").read_bytes() == b"content"
    os.close(found.fd)
