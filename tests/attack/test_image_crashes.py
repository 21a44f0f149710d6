"""A process that is killed at every single system call of tag, rollback, rm, import, build and a run that saves.

After each: the store opens, every name means a whole image, and the next run and the next pass repair what is left.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import fsops, launch, records, spec
from sandbox.errors import SandboxError
from sandbox.images import building, catalog, listing, names, reaper, transfer
from sandbox.images import store as image_store
from tests.support import archives, killing, no_tmpfile
from tests.support.archives import Entry

FIRST, SECOND, LOOSE, NEW = range(4)
LIMIT = 1 << 30


class Store:
    """A home in which @n has meant two images, and a third image has no name; and the sources of more."""

    def __init__(self, where: Path, sources: Path) -> None:
        self.where, self.sources = where, sources
        self.home = where / "home"
        self.home.mkdir(parents=True)
        self.fd = os.open(self.home, os.O_RDONLY)
        self.digests = [hashlib.sha256((sources / f"{n}.sfs").read_bytes()).hexdigest().encode() for n in range(4)]
        with image_store.Store(self.fd) as images:
            for number in (FIRST, SECOND, LOOSE):
                with fsops.closing(os.open(sources / f"{number}.sfs", os.O_RDONLY)) as fd:
                    building.keep(images, fd, "x")
                if number != LOOSE:
                    names.tag(images, b"n", self.digests[number])

    def close(self) -> None:
        os.close(self.fd)
        shutil.rmtree(self.where)

    def check(self) -> bytes | None:
        """It opens, and all that is visible is whole; what @n means."""
        for path in self.home.glob("cache/*.sfs"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        with image_store.Store(self.fd) as images:
            assert all((self.home / f"cache/{one.digest}.sfs").exists() for one in listing.images(images))
            for name in names.all_names(images):
                os.close(names.open_reference(images, name, count=False).fd)
                assert any(one.current for one in names.history(images, name))
            return names.all_names(images).get(b"n")

    def repair(self) -> None:
        """What the dead had started may take a moment to end, and holds its drafts until then."""
        for _ in range(200):
            later = time.time() + 7200
            assert reaper.run_once(
                self.fd, now=later, max_age_days=0, max_bytes=None, clean_records=records.clean_at
            ).ran
            if not (left := self.left()):
                return
            time.sleep(0.05)
        raise AssertionError(left)

    def left(self) -> list[Path]:
        left = [path for path in self.home.rglob("*") if path.name.startswith((".tmp-", "build-"))]
        images = {path.stem for path in self.home.glob("cache/*.sfs")}
        left += [path for path in self.home.glob("cache/*") if path.name.partition(".")[0] not in images]
        left += [path for path in self.home.glob("keys/*") if not path.exists()]
        left += [path for path in self.home.glob("history/*") if not (self.home / "names" / path.name).is_symlink()]
        return [*left, *self.home.glob("procdirs/*"), *self.home.glob("records/*")]


def tag(where: Store) -> None:
    with image_store.Store(where.fd) as images:
        names.tag(images, b"n", where.digests[LOOSE])


def rollback(where: Store) -> None:
    with image_store.Store(where.fd) as images:
        names.rollback(images, b"n")


def remove(where: Store) -> None:
    """As `sandbox image rm n`."""
    with image_store.Store(where.fd) as images:
        for digest in sorted(names.forget(images, b"n") - names.kept(images)):
            catalog.remove(images, digest.decode() + ".sfs")


def build_kept(where: Store) -> None:
    build(where, "3.sfs")


def build_converted(where: Store) -> None:
    build(where, "3.tar")


def build(where: Store, source: str) -> None:
    path = os.fsencode(where.sources / source)
    building.build(where.fd, path, name=b"n", compress=None, max_unpacked=LIMIT, say=lambda _: None)


def take(where: Store) -> None:
    with image_store.Store(where.fd) as images:
        names.tag(images, b"n", transfer.take(images, os.fsencode(where.sources / "3.sfs")))


def save(where: Store) -> None:
    """As `sandbox run -d t:@n --save t=n -- sh -c ...`."""
    wanted = spec.Spec(
        command=(b"/bin/sh", b"-ec", b'cd "$SANDBOX_DYNAMIC/t" && rm -r f && mkdir f && echo new >f/g'),
        trees=(spec.Tree(spec.TreeKind.DYNAMIC, b"t:@n"),),
        saves=(spec.Save(b"t", b"n", full=False),),
        engine="python",
    )
    environ = {b"PATH": b"/usr/bin:/bin", b"SANDBOX_HOME": os.fsencode(where.home)}
    assert launch.run(wanted, environ, say=lambda _: None, hint=lambda _: None).exit_code == 0


# The operation, what @n may mean afterwards beside what it meant, and every how manieth call is tried in make test;
# make soak tries each. The last two start processes, a second each.
OPERATIONS: dict[str, tuple[Callable[[Store], None], int | None, int]] = {
    "tag": (tag, LOOSE, 1),
    "tag without O_TMPFILE": (tag, LOOSE, 3),
    "rollback": (rollback, FIRST, 1),
    "rm": (remove, None, 5),
    "build of a squashfs": (build_kept, NEW, 5),
    "build of a tar": (build_converted, -1, 71),
    "import": (take, NEW, 41),
    "save": (save, -1, 61),
}


@pytest.fixture(scope="module")
def sources(session_area: Path) -> Path:
    where = session_area / "image-crashes"
    where.mkdir()
    for number in range(4):
        archives.make_squashfs(where / f"{number}.sfs", [Entry("f", b"%d" % number)])
    archives.make_tar(where / "3.tar", [Entry("f", b"3")])
    return where


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_call(operation: str, sources: Path, session_area: Path) -> None:
    act, means, stride = OPERATIONS[operation]
    stride = 1 if "SANDBOX_SOAK" in os.environ else stride
    before = no_tmpfile.forbid if operation.endswith("without O_TMPFILE") else lambda: None
    seen = set()
    # Once the whole of it without a death; then each death in turn.
    for kill_at in (1 << 30, *range(1, 100_000, stride)):
        store = Store(session_area / f"crash-{os.urandom(4).hex()}", sources)
        try:
            ending = killing.run(lambda store=store: act(store), kill_at=kill_at, before=before)  # type: ignore[misc]
            seen.add(store.check())
            if ending.killed:
                with contextlib.suppress(SandboxError):  # there is nothing left to remove, or to roll back to
                    act(store)
                store.check()
            store.repair()
            store.check()
            known = {store.digests[SECOND], None if means is None else store.digests[means]}
        finally:
            store.close()
        if kill_at != 1 << 30 and not ending.killed:
            break
    print(f"CRASH {operation}: killed at {'each' if stride == 1 else f'every {stride}th'} of {len(ending.calls)} calls")
    assert not ending.killed
    assert len(seen) >= 2
    assert seen == known or means == -1
