"""A process that is killed at every single system call of publish, switch, delete and reap, and of a run's record.

After each: the store opens, what is visible is whole and verifies, and the next pass repairs what is left.
"""

import contextlib
import os
import shutil
import time

import pytest

from sandbox import fsops, home, records
from sandbox.images import catalog, formats, reaper
from sandbox.images import store as image_store
from sandbox.plan import Plan
from sandbox.plan_types import Mode, PlanFlag
from tests.support import archives, killing, no_tmpfile
from tests.support.archives import Entry

NEW, OLD, TREE, KEPT = (letter * 64 for letter in "abcd")
FILES = ["d/e/f", "g"]
# The reaper and a run's record make hundreds of calls: every seventh in make test, all of them in make soak.
STRIDE = 1 if "SANDBOX_SOAK" in os.environ else 7


class Store:
    """A home with an image, a kept tree, a name, and what a dead run left."""

    def __init__(self, where, image):
        self.where, self.image = where, image
        self.home = where / "home"
        for name in ("cache", "digests", "locks", "procdirs/1", "records"):
            (self.home / name).mkdir(parents=True)
        self.cache_path = self.home / "cache"
        for key in (OLD, KEPT):
            (self.cache_path / f"{key}.sfs").write_bytes(image)
            (self.cache_path / f"{key}.json").write_text('{"source": "s", "created": 1, "size": 1}')
            (self.cache_path / f"{key}.uses").write_bytes(b".")
        for name in FILES:
            (self.cache_path / f"{TREE}.tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cache_path / f"{TREE}.tree" / name).write_bytes(b"x")
        (self.cache_path / "name").symlink_to(f"{KEPT}.sfs")
        facts = '{"id": "%s", "host": "%s", "scratch": ["%s/sandbox-%s"]}'
        dead = "1" * 32
        (self.home / "records/1").write_text(facts % (dead, os.uname().nodename, where, dead))
        (where / f"sandbox-{dead}/procdir").mkdir(parents=True)
        self.fds = [os.open(path, os.O_RDONLY) for path in (self.home, self.cache_path, self.home / "locks")]
        self.home_fd, self.cache, self.locks = self.fds

    def close(self):
        for fd in self.fds:
            os.close(fd)
        shutil.rmtree(self.where)

    def visible(self):
        """The names in the cache that mean something."""
        return {name for name in os.listdir(self.cache_path) if not name.startswith(".tmp-")}

    def check(self):
        """It opens, and every visible thing is what its name says."""
        entries = {image.name for image in catalog.list_images(self.cache)}
        for name in self.visible():
            path = self.cache_path / name
            if name.endswith(".sfs"):
                assert name in entries
                assert path.read_bytes() == self.image
                with fsops.closing(os.open(path, os.O_RDONLY)) as fd:
                    assert formats.detect(fd, name) is formats.Kind.SQUASHFS
            elif name.endswith(".tree"):
                assert all((path / file).read_bytes() == b"x" for file in FILES if name.startswith(TREE))
            elif name.endswith(".json"):
                assert path.read_bytes().endswith(b"}")
        assert os.readlink(self.cache_path / "name") in (f"{KEPT}.sfs", f"{OLD}.sfs")
        assert (self.cache_path / "name").exists() or f"{OLD}.sfs" not in self.visible()

    def repair(self):
        """What the next run does, an hour or two later."""
        later = time.time() + 7200
        assert reaper.run_once(
            self.home_fd, now=later, max_age_days=0, max_bytes=None, clean_records=records.clean_at
        ).ran
        left = [path for path in self.home.rglob("*") if path.name.startswith(".tmp-")]
        left += [*self.home.glob("records/*"), *self.home.glob("procdirs/*"), *self.where.glob("sandbox-*")]
        keys = {name.partition(".")[0] for name in self.visible() if name.endswith((".sfs", ".tree"))}
        left += [name for name in self.visible() if name != "name" and name.partition(".")[0] not in keys]
        left += self.home.glob("locks/build-*")
        assert not left


def publish(store):
    with fsops.Draft(store.cache) as draft:
        os.write(draft.fd, store.image)
        draft.publish(f"{NEW}.sfs".encode())


def publish_copy(store):
    with fsops.closing(os.open(f"{OLD}.sfs", os.O_RDONLY, dir_fd=store.cache)) as source:
        fsops.publish_copy(source, store.cache, f"{NEW}.sfs".encode())


def publish_dir(store):
    temporary = fsops.temporary_name()
    with fsops.closing(fsops.make_new_dir(store.cache, temporary)) as fd:
        os.close(fsops.new_file(fd, b"f"))
    fsops.publish_dir(store.cache, temporary, f"{NEW}.tree".encode())


def replace(store):
    data = b'{"source": "another", "created": 2, "size": 2}'
    fsops.replace_file(store.cache, f"{OLD}.json".encode(), data, durable=True)


def switch(store):
    fsops.switch_name(store.cache, b"name", f"{OLD}.sfs".encode())


def delete(store):
    with fsops.closing(os.open(f"{OLD}.sfs", os.O_RDONLY, dir_fd=store.cache)) as fd:
        assert fsops.delete_file(store.cache, f"{OLD}.sfs".encode(), expected=fd)


def remove_image(store):
    with image_store.Store(store.home_fd) as images:
        catalog.remove(images, f"{OLD}.sfs")


def remove_tree(store):
    with image_store.Store(store.home_fd) as images:
        catalog.remove(images, f"{TREE}.tree")


def reap(store):
    now = time.time() + 100 * 86400
    reaper.run_once(store.home_fd, now=now, max_age_days=1, max_bytes=None, clean_records=records.clean_at)


def record(store):
    with home.open_home({b"SANDBOX_HOME": os.fsencode(store.home)}, say=lambda _: None) as opened:
        plan = Plan(Mode.ROOT, PlanFlag(0), os.getuid(), os.getgid(), opened.source(), (), ())
        made = records.new_record(opened, (b"true",), plan, [os.fsencode(store.where)])
        records.clean_stale(opened, say=lambda _: None)
        made.remove()


# What may be there afterwards: the state before, and the state after, and which name tells them apart.
OPERATIONS = {
    "publish": (publish, f"{NEW}.sfs"),
    "publish without O_TMPFILE": (publish, f"{NEW}.sfs"),
    "publish_copy": (publish_copy, f"{NEW}.sfs"),
    "publish_dir": (publish_dir, f"{NEW}.tree"),
    "replace_file": (replace, None),
    "replace_file without O_TMPFILE": (replace, None),
    "switch_name": (switch, None),
    "delete_file": (delete, f"{OLD}.sfs"),
    "catalog.remove an image": (remove_image, f"{OLD}.sfs"),
    "catalog.remove a tree": (remove_tree, f"{TREE}.tree"),
    "reaper": (reap, f"{OLD}.sfs"),
    "record": (record, None),
}


@pytest.fixture(scope="module")
def image(session_area):
    path = archives.make_squashfs(session_area / "crash.sfs", [Entry("f", b"content")])
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_call(operation, image, session_area):
    act, telling = OPERATIONS[operation]
    before = no_tmpfile.forbid if operation.endswith("without O_TMPFILE") else lambda: None
    stride = STRIDE if operation in ("reaper", "record") else 1
    seen = set()
    killed, at = True, 0
    # Everything lazy is imported before the first fork, and once the whole of it without a death.
    for kill_at in (1 << 30, *range(1, 100_000, stride)):
        store = Store(session_area / f"crash-{os.urandom(4).hex()}", image)
        try:
            ending = killing.run(lambda store=store: act(store), kill_at=kill_at, before=before)
            store.check()
            seen.add((store.cache_path / telling).exists() if telling else None)
            store.repair()
            store.check()
            if ending.killed:
                _again(act, store)
                store.check()
        finally:
            with contextlib.suppress(FileNotFoundError):
                store.close()
        killed, at = ending.killed, len(ending.calls)
        if kill_at != 1 << 30 and not killed:
            break
    print(f"CRASH {operation}: killed at {'each' if stride == 1 else f'every {stride}th'} of {at} system calls")
    assert not killed
    assert at >= 5
    assert seen == ({True, False} if telling else {None})


def _again(act, store):
    """The next one is not hindered by what the dead one left."""
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        act(store)
