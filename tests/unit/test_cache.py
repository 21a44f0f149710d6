"""The cache, on real files: built once, found again, never half there."""

import json
import lzma
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.errors import SandboxError, SourceError
from sandbox.images import catalog, convert, formats
from sandbox.images.cache import Cache, Cached
from sandbox.images.store import Store
from tests.unit.image_tools import directory, image_tree, member, memory, tar, zipped

LIMIT = 1 << 30
OLD = 1_000_000_000


class Bench:
    """A home, and a source file whose times are long past."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir(0o700)
        self.fd = os.open(self.home, os.O_RDONLY)
        self.said: list[str] = []
        self.root = root

    def source(self, data: bytes, name: str = "source") -> Path:
        path = self.root / name
        path.write_bytes(data)
        return path

    def use(self, path: Path, *, tree: bool = False, limit: int = LIMIT) -> Cached:
        fd = os.open(path, os.O_RDONLY)
        try:
            kind = formats.detect(fd, "test")
            with Cache(self.fd, say=self.said.append) as cache:
                if tree:
                    return cache.tree(fd, kind, label="test", max_unpacked=limit)
                return cache.image(fd, kind, label="test", max_unpacked=limit, uid=os.getuid(), gid=os.getgid())
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.home / "cache"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three seconds pass for the digests."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_000_000_000)


def test_an_image_is_built_once_and_found_again(bench: Bench, tmp_path: Path) -> None:
    path = bench.source(tar(member("f", b"content")))
    first, second = bench.use(path), bench.use(path)
    assert (first.hit, second.hit) == (False, True)
    assert first.name == second.name
    assert os.fstat(first.fd).st_ino == os.fstat(second.fd).st_ino
    assert image_tree(second.fd, tmp_path / "out")[b"f"].content == b"content"
    key = first.name.decode().removesuffix(".sfs")
    assert bench.names() == [f"{key}.json", f"{key}.sfs", f"{key}.uses"]
    assert os.stat(bench.home / "cache" / f"{key}.uses").st_size == 2
    assert json.loads((bench.home / "cache" / f"{key}.json").read_text())["source"] == "test"
    assert stat.S_IMODE(os.stat(bench.home / "cache").st_mode) == 0o700
    assert os.listdir(bench.home / "locks") == []


def test_the_same_content_elsewhere_is_a_hit(bench: Bench) -> None:
    data = zipped({"f": b"x"})
    assert bench.use(bench.source(data, "one")).name == bench.use(bench.source(data, "two")).name


def test_digests_are_remembered_only_when_the_times_are_settled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.source(tar(member("f", b"1")))
    bench.use(path)
    assert len(os.listdir(bench.home / "digests")) == 1  # of the image, which nobody else writes to
    settled(monkeypatch)
    bench.use(path)
    assert len(os.listdir(bench.home / "digests")) == 2


def test_a_change_with_the_same_size_and_mtime_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.source(tar(member("f", b"1")))
    os.utime(path, ns=(OLD, OLD))
    settled(monkeypatch)
    first = bench.use(path)
    path.write_bytes(tar(member("f", b"2")))
    os.utime(path, ns=(OLD, OLD))
    assert bench.use(path).name != first.name


def test_a_warm_hit_imports_nothing_heavy(bench: Bench, tmp_path: Path) -> None:
    path = bench.source(tar(member("f", b"1")))
    os.utime(path, ns=(OLD, OLD))
    script = f"""
import os, sys
before = set(sys.modules)
from sandbox.images import cache, formats
fd, home = os.open({str(path)!r}, os.O_RDONLY), os.open({str(bench.home)!r}, os.O_RDONLY)
with cache.Cache(home) as store:
    owner = {{'uid': {os.getuid()}, 'gid': {os.getgid()}}}
    found = store.image(fd, formats.detect(fd, 'x'), label='x', max_unpacked=1 << 20, **owner)
heavy = {{'libarchive', 'rich', 'psutil', 'prctl', 'subprocess', 'hashlib', 'json', 'argparse', 'logging'}}
print(found.hit, sorted(heavy & set(sys.modules)))
"""
    time.sleep(2.1)  # until the digest may be remembered
    run = [subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE).stdout for _ in range(2)]
    assert run[1] == b"True []\n"


def test_a_kept_tree(bench: Bench) -> None:
    path = bench.source(tar(directory("ro", 0o555), member("ro/f", b"content")))
    first, second = bench.use(path, tree=True), bench.use(path, tree=True)
    assert (first.hit, second.hit, second.name[-5:]) == (False, True, b".tree")
    with open(os.open("ro/f", os.O_RDONLY, dir_fd=second.fd), "rb") as file:
        assert file.read() == b"content"


def test_elf_and_text_sources_keep_their_inner_image(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "i.sqfs"
    subprocess.run(["tar2sqfs", "-q", "-c", "lz4", str(image)], input=tar(member("f", b"x")), check=True)
    found = bench.use(bench.source(Path("/bin/true").read_bytes() + image.read_bytes()))
    with open(found.fd, "rb") as file:
        assert file.read() == image.read_bytes()


def test_a_directory_is_keyed_by_its_content(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "dir"
    source.mkdir()
    (source / "f").write_bytes(b"1")

    def use() -> Cached:
        fd = os.open(source, os.O_RDONLY)
        with Cache(bench.fd) as cache:
            return cache.directory_image(fd, label="test", max_unpacked=LIMIT, uid=os.getuid(), gid=os.getgid())

    first = use()
    assert use() == (first.fd + 2, first.name, True) or use().name == first.name
    (source / "f").write_bytes(b"2")
    second = use()
    assert (second.hit, second.name != first.name) == (False, True)
    assert image_tree(second.fd, tmp_path / "out")[b"f"].content == b"2"


def test_a_failed_conversion_leaves_nothing(bench: Bench) -> None:
    kept = bench.use(bench.source(tar(member("f", b"1")), "good"))
    before = bench.names()
    for tree in (False, True):
        for data in (tar(member("../f", b"1")), tar(member("f", bytes(5000)))[:2000]):
            with pytest.raises(SandboxError):
                bench.use(bench.source(data), tree=tree)
    assert bench.names() == before
    assert os.fstat(kept.fd).st_nlink == 1


def test_a_source_that_changes_while_it_is_read_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.source(tar(member("f", bytes(3 << 20))))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: (os.utime(path), real(*a))[1])
    with pytest.raises(SourceError, match="changes while"):
        bench.use(path)


_FIRST_RUN = """
import os, sys
from sandbox.images import cache, formats
fd, home = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDONLY)
sys.stdin.read()
with cache.Cache(home, say=lambda text: print(text, flush=True)) as store:
    kind = formats.detect(fd, 'x')
    if sys.argv[3] == "tree":
        found = store.tree(fd, kind, label='x', max_unpacked=1 << 30)
    else:
        found = store.image(fd, kind, label='x', max_unpacked=1 << 30, uid=0, gid=0)
print(found.hit, os.fstat(found.fd).st_ino)
"""


@pytest.mark.parametrize("what", ["image", "tree"])
def test_parallel_first_runs_build_once(bench: Bench, what: str) -> None:
    path = bench.source(tar(*(member(f"f{index}", os.urandom(20_000)) for index in range(500))))
    command = [sys.executable, "-c", _FIRST_RUN, str(path), str(bench.home), what]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    said = []
    for run in runs:
        assert run.stdout is not None
        with run.stdout as output:
            said.append(output.read())
    assert [run.wait() for run in runs] == [0] * 8
    assert sum("converted" in text for text in said) == 1
    assert len({text.split()[-1] for text in said}) == 1
    assert any("waiting" in text for text in said)


def test_disk_full(tmp_path: Path) -> None:
    """On a small tmpfs in a mount namespace of its own: one line, nothing left, what was there stays."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    good, big, bomb = tmp_path / "good", tmp_path / "big", tmp_path / "bomb"
    good.write_bytes(tar(member("f", b"1")))
    big.write_bytes(tar(member("f", os.urandom(20 << 20))))
    # Much larger as an image than as an archive: nothing can be known before.
    text = os.urandom(100_000)
    bomb.write_bytes(lzma.compress(tar(*(member(f"f{number}", bytes([number]) + text) for number in range(200)))))
    script = f"""
import os, sys
from sandbox.errors import SandboxError
from sandbox.images import cache, formats
home = os.open("/mnt", os.O_RDONLY)
store = cache.Cache(home)
for path in {[str(good), str(big), str(bomb)]!r}:
    for what in ("image", "tree"):
        fd = os.open(path, os.O_RDONLY)
        kind = formats.detect(fd, "x")
        try:
            if what == "tree":
                store.tree(fd, kind, label="x", max_unpacked=1 << 30)
            else:
                store.image(fd, kind, label="x", max_unpacked=1 << 30, uid=0, gid=0)
            print("done")
        except SandboxError as error:
            print(error)
print(len(os.listdir("/mnt/cache")), os.listdir("/mnt/locks"))
"""
    command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=4m tmpfs /mnt && exec "$@"', "sh"]
    run = subprocess.run([*command, sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    lines = run.stdout.splitlines()
    assert lines[:2] == ["done", "done"]
    assert all("needs about" in line and "are free" in line for line in lines[2:4]), lines
    assert all("no space left" in line for line in lines[4:6]), lines
    assert lines[6].startswith("6 ")


def test_builders_survive_the_threads_of_their_caller(bench: Bench) -> None:
    """PR_SET_PDEATHSIG fires when the parent thread ends: threads that come and go must not take builders along."""
    path = bench.source(tar(*(member(f"f{index}", os.urandom(50_000)) for index in range(200))))
    results: list[Cached] = []
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()

    churner = threading.Thread(target=churn)
    builder = threading.Thread(target=lambda: results.append(bench.use(path)))
    churner.start()
    builder.start()
    builder.join()
    stop.set()
    churner.join()
    assert [result.hit for result in results] == [False]


def test_builders_die_with_the_launcher(tmp_path: Path) -> None:
    """A source that never ends keeps the builders busy; the launcher is killed; they go."""
    script = """
import os, sys, threading
from sandbox.images import convert
read, write = os.pipe()
out = os.memfd_create("out")
print("ready", flush=True)
convert._build(convert.Output(out, "x", 1 << 20, 0, 0), "unpack", read)
"""
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    launcher.stdout.readline()
    children: list[int] = []
    deadline = time.monotonic() + 10
    while len(children) < 2 and time.monotonic() < deadline:
        children = children_of(launcher.pid)
        time.sleep(0.01)
    time.sleep(0.3)  # until both have asked for the signal
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(children) == 2
    assert not any(is_alive(pid) for pid in children)


def children_of(pid: int) -> list[int]:
    path = f"/proc/{pid}/task/{pid}/children"
    return [int(child) for child in Path(path).read_text().split()] if os.path.exists(path) else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_removing(bench: Bench) -> None:
    image = bench.use(bench.source(tar(member("f", b"1"))))
    tree = bench.use(bench.source(tar(member("f", b"1"))), tree=True)
    store = Store(bench.fd)
    cache = store.cache
    listed = {one.name: one for one in catalog.list_images(cache)}
    assert set(listed) == {image.name.decode(), tree.name.decode()}
    assert all((one.uses, one.source) == (1, "test") and one.size > 0 for one in listed.values())
    for used in (image, tree):
        with pytest.raises(catalog.InUseError):
            catalog.remove(store, used.name.decode())
        os.close(used.fd)
    for name in listed:
        catalog.remove(store, catalog.find(cache, name[:10]))
    assert bench.names() == []
    with pytest.raises(SandboxError, match="has no"):
        catalog.find(cache, "beef")


def test_an_image_in_memory_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = memory(tar(member("f", os.urandom(1 << 20))))
    options = {"label": "test", "max_unpacked": LIMIT, "uid": 0, "gid": 0}
    image = convert.image_in_memory(fd, formats.Kind.TAR, **options)  # type: ignore[arg-type]
    with pytest.raises(PermissionError):
        os.ftruncate(image, 0)
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 200 if name == "SC_PHYS_PAGES" else real(name))
    with pytest.raises(SandboxError, match="memory"):
        convert.image_in_memory(fd, formats.Kind.TAR, **options)  # type: ignore[arg-type]


def test_programs_are_never_looked_up_in_the_callers_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=tmp_path) as marker:
        fake = tmp_path / "tar2sqfs"
        fake.write_text(f"#!/bin/sh\nrm {marker.name}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        fd = memory(tar(member("f", b"x")))
        make: Callable[..., int] = convert.image_in_memory
        os.close(make(fd, formats.Kind.TAR, label="test", max_unpacked=LIMIT, uid=0, gid=0))
        assert os.path.exists(marker.name)
