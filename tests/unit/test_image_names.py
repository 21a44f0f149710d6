"""Names of images: what they mean, what they meant, and that what they keep stays."""

import os
import time
from pathlib import Path

import pytest

from sandbox import fsops
from sandbox.errors import SandboxError, UsageError
from sandbox.images import building, catalog, listing, names, reaper, store, verify
from sandbox.images.store import IMAGE, About, Store
from tests.unit.image_tools import member, tar

DAY = 86400.0


class Shelf:
    """A store in a home of its own, and images to put into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir(0o700)
        self.images = Store(os.open(self.home, os.O_RDONLY))

    def build(self, content: bytes, name: bytes | None = None) -> bytes:
        path = self.root / "source.tar"
        path.write_bytes(tar(member("f", content)))
        options = {"compress": None, "max_unpacked": 1 << 30, "say": lambda _: None}
        built = building.build(self.images.home, os.fsencode(path), name=name, **options)  # type: ignore[arg-type]
        return built.digest.encode()

    def path(self, digest: bytes) -> Path:
        return self.home / "cache" / (digest + IMAGE).decode()

    def reap(self, size: int | None = 0) -> set[str]:
        report = reaper.run_once(self.images.home, now=time.time() + DAY, max_age_days=0, max_bytes=size)
        return {name.partition(".")[0] for name in report.evicted}

    def damage(self, digest: bytes, *, at: int = 200) -> None:
        with self.path(digest).open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_an_image_is_found_by_the_digest_of_its_bytes(shelf: Shelf) -> None:
    import hashlib

    digest = shelf.build(b"1", b"n")
    assert hashlib.sha256(shelf.path(digest).read_bytes()).hexdigest().encode() == digest
    for reference in (b"n", b"@n", b"@sha256:" + digest, b"sha256:" + digest[:8]):
        assert names.resolve(shelf.images, reference) == digest


def test_a_name_is_one_symlink(shelf: Shelf) -> None:
    digest = shelf.build(b"1", b"n")
    assert os.readlink(shelf.home / "names" / "n") == f"../cache/{digest.decode()}.sfs"
    assert (shelf.home / "names" / "n").read_bytes() == shelf.path(digest).read_bytes()


def test_the_same_source_is_the_same_image(shelf: Shelf) -> None:
    assert shelf.build(b"1") == shelf.build(b"1")
    assert len(list((shelf.home / "cache").glob("*.sfs"))) == 1


def test_rollback_and_history(shelf: Shelf) -> None:
    first, second, third = (shelf.build(content, b"n") for content in (b"1", b"2", b"3"))
    assert names.rollback(shelf.images, b"n") == second
    assert names.rollback(shelf.images, b"@n") == first
    with pytest.raises(SandboxError, match="no generation before"):
        names.rollback(shelf.images, b"n")
    generations = names.history(shelf.images, b"n")
    assert [generation.digest.encode() for generation in generations] == [third, second, first]
    assert [generation.current for generation in generations] == [False, False, True]
    names.tag(shelf.images, b"n", second)  # what was rolled back is given up
    assert [generation.digest.encode() for generation in names.history(shelf.images, b"n")] == [second, first]


def test_three_generations_are_kept_and_no_more(shelf: Shelf) -> None:
    digests = [shelf.build(b"%d" % number, b"n") for number in range(5)]
    assert shelf.reap() == {digest.decode() for digest in digests[:2]}
    assert [verify.verify(shelf.images, digest).problem for digest in digests[2:]] == ["", "", ""]  # type: ignore[union-attr]
    assert names.rollback(shelf.images, b"n") == digests[3]


def test_a_crash_between_history_and_switch_changes_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shelf.build(b"1", b"n"), shelf.build(b"2", b"n")
    third = shelf.build(b"3")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "link", crash)
    with pytest.raises(KeyboardInterrupt):
        names.tag(shelf.images, b"n", third)
    monkeypatch.undo()
    assert names.resolve(shelf.images, b"n") == second
    assert names.rollback(shelf.images, b"n") == first


def test_forgetting_a_name_lets_its_images_go(shelf: Shelf) -> None:
    digests = {shelf.build(b"1", b"n"), shelf.build(b"2", b"n")}
    assert names.forget(shelf.images, b"n") == digests
    assert shelf.reap() == {digest.decode() for digest in digests}
    with pytest.raises(SandboxError, match="there is no image @n"):
        names.resolve(shelf.images, b"n")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"-x", b"a:b", b"a+b", b"\n", b"a\n", b"x" * 129, b"\xff"])
def test_what_cannot_be_a_name(shelf: Shelf, name: bytes) -> None:
    with pytest.raises(UsageError):
        names.check_name(name)


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../cache/x.sfs", b"../../x", b"../cache/" + b"a" * 64, b"x"])
def test_a_link_that_is_not_ours_means_nothing(shelf: Shelf, target: bytes) -> None:
    os.symlink(target, os.path.join(os.fsencode(shelf.home), b"names" if shelf.images.names else b"", b"n"))
    with pytest.raises(SandboxError, match="there is no image @n"):
        names.open_reference(shelf.images, b"@n")


def test_an_ambiguous_prefix_is_one_line(shelf: Shelf) -> None:
    for letter in "ab":
        shelf.path(b"5eed" + letter.encode() * 60).parent.mkdir(exist_ok=True)
        shelf.path(b"5eed" + letter.encode() * 60).write_bytes(b"")
    with pytest.raises(UsageError, match="2 images start so"):
        names.resolve(shelf.images, b"@sha256:5eed")
    with pytest.raises(UsageError, match="too short"):
        names.resolve(shelf.images, b"@sha256:5ee")
    with pytest.raises(SandboxError, match="there is no image"):
        names.resolve(shelf.images, b"@sha256:beef")


def test_an_image_in_use_stays(shelf: Shelf) -> None:
    digest = shelf.build(b"1")
    found = names.open_reference(shelf.images, b"@sha256:" + digest)
    assert shelf.reap() == set()
    with pytest.raises(catalog.InUseError):
        catalog.remove(shelf.images, (digest + IMAGE).decode())
    os.close(found.fd)
    assert shelf.reap() == {digest.decode()}


def test_a_named_image_is_not_removed_by_its_digest(shelf: Shelf) -> None:
    digest = shelf.build(b"1", b"n")
    with pytest.raises(catalog.InUseError, match="a name keeps it"):
        catalog.remove(shelf.images, (digest + IMAGE).decode())


def test_orphans_go_and_names_stay(shelf: Shelf) -> None:
    shelf.build(b"1", b"n")
    shelf.path(shelf.build(b"2")).unlink()
    (shelf.home / "history" / "gone").write_bytes(b"")
    os.symlink("x", shelf.home / "names" / ".tmp-1")
    shelf.reap(None)
    assert os.listdir(shelf.home / "history") == ["n"]
    assert os.listdir(shelf.home / "names") == ["n"]
    assert len(os.listdir(shelf.home / "keys")) == 1


# -- damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_noticed_and_the_image_is_made_anew(shelf: Shelf, capfd: pytest.CaptureFixture[str]) -> None:
    digest = shelf.build(b"1", b"n")
    good = shelf.path(digest).read_bytes()
    shelf.damage(digest)
    with pytest.raises(store.DamagedError, match="rollback"):
        names.open_reference(shelf.images, b"@n")
    assert shelf.build(b"1") == digest
    assert "warning" in capfd.readouterr().err
    assert shelf.path(digest).read_bytes() == good
    os.close(names.open_reference(shelf.images, b"@n").fd)


def test_a_truncated_image_is_noticed(shelf: Shelf) -> None:
    digest = shelf.build(os.urandom(100_000), b"n")
    os.truncate(shelf.path(digest), 50_000)
    with pytest.raises(store.DamagedError):
        names.open_reference(shelf.images, b"@n")


def test_verify_finds_what_no_time_shows(shelf: Shelf) -> None:
    """As a failing disk does it: the bytes change, the file's times do not."""
    digest = shelf.build(os.urandom(10_000))
    shelf.damage(digest)
    with shelf.path(digest).open("rb") as file:
        shelf.images.remember(file.fileno(), digest)
    os.close(names.open_reference(shelf.images, b"@sha256:" + digest).fd)
    verdict = verify.verify(shelf.images, digest)
    assert verdict is not None
    assert (verdict.problem != "", verdict.evicted) == (True, True)
    assert not shelf.path(digest).exists()


def test_verify_keeps_what_a_name_needs(shelf: Shelf) -> None:
    digest = shelf.build(b"1", b"n")
    shelf.damage(digest)
    verdict = verify.verify(shelf.images, digest)
    assert verdict is not None
    assert (verdict.problem != "", verdict.evicted) == (True, False)


def test_verify_reads_the_files_too(shelf: Shelf) -> None:
    """An image whose digest is right and whose blocks are not: it was broken before it came here."""
    digest = shelf.build(os.urandom(400_000))
    data = bytearray(shelf.path(digest).read_bytes())
    assert data[96:104] != bytes(8)
    import struct

    struct.pack_into("<Q", data, 64, 2)  # the inode table's place
    with fsops.Draft(shelf.images.cache) as draft:
        os.write(draft.fd, data)
        broken = shelf.images.publish(draft, "broken")
    verdict = verify.verify(shelf.images, broken)
    assert verdict is not None
    assert "not all of it can be read" in verdict.problem


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"[" * 60_000, b'{"size": "x", "files": 1}', b"\xff"])
def test_a_damaged_note_is_none(shelf: Shelf, text: bytes) -> None:
    digest = shelf.build(b"1")
    shelf.path(digest).with_suffix(".json").write_bytes(text)
    assert shelf.images.about(digest) == About()
    assert [one.size for one in listing.images(shelf.images)] == [shelf.path(digest).stat().st_size]
