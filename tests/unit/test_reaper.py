"""The reaper: what goes, what stays, and how it runs."""

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.errors import UsageError
from sandbox.images import reaper

DAY = 86400.0


class Home:
    """A home with made-up cache entries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("cache", "digests", "locks"):
            (path / name).mkdir()
        self.fd = os.open(path, os.O_RDONLY)
        self.now = time.time()

    def image(self, letter: str, *, used: float, size: int = 4096, suffix: str = ".sfs") -> str:
        key = letter * 64
        path = self.path / "cache" / (key + suffix)
        if suffix == ".tree":
            path.mkdir()
            (path / "f").write_bytes(bytes(size))
        else:
            path.write_bytes(bytes(size))
        uses = self.path / "cache" / (key + ".uses")
        uses.write_bytes(b"..")
        os.utime(uses, (self.now - used, self.now - used))
        (self.path / "cache" / (key + ".json")).write_text("{}")
        return key + suffix

    def reap(self, age: float = 30, size: int | None = None) -> set[str]:
        report = reaper.run_once(self.fd, now=self.now, max_age_days=age, max_bytes=size)
        assert report.ran
        return set(report.evicted)

    def left(self) -> set[str]:
        return {name[0] for name in os.listdir(self.path / "cache")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_old_images_go(home: Home) -> None:
    old = {home.image("a", used=31 * DAY), home.image("b", used=40 * DAY, suffix=".tree")}
    home.image("c", used=29 * DAY)
    assert home.reap() == old
    assert home.left() == {"c"}


def test_age_zero_switches_ageing_off(home: Home) -> None:
    home.image("a", used=3000 * DAY)
    assert home.reap(age=0) == set()


def test_the_least_recently_used_go_until_the_rest_fits(home: Home) -> None:
    for letter, days in (("a", 1), ("b", 2), ("c", 3)):
        home.image(letter, used=days * DAY, size=1 << 20)
    assert home.reap(size=(2 << 20) + 8192) == {"c" * 64 + ".sfs"}
    assert home.reap(size=0) == {"a" * 64 + ".sfs", "b" * 64 + ".sfs"}


def test_what_was_used_a_moment_ago_stays(home: Home) -> None:
    home.image("a", used=30)
    assert home.reap(size=0) == set()


def test_what_is_being_built_stays(home: Home) -> None:
    home.image("a", used=90 * DAY)
    with open(home.path / "locks" / ("build-" + "a" * 64), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert home.reap() == set()
    assert len(home.reap()) == 1


def test_a_tree_in_use_stays(home: Home) -> None:
    name = home.image("a", used=90 * DAY, suffix=".tree")
    fd = os.open(home.path / "cache" / name, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert home.reap() == set()
    os.close(fd)
    assert home.reap() == {name}


def test_leftovers_go_after_an_hour(home: Home) -> None:
    (home.path / "cache" / ".tmp-file").write_bytes(b"x")
    (home.path / "cache" / ".tmp-tree" / "d").mkdir(parents=True)
    (home.path / "digests" / ".tmp-x").write_bytes(b"x")
    (home.path / "cache" / ("d" * 64 + ".uses")).write_bytes(b"x")
    os.symlink("/etc", home.path / "cache" / ".tmp-link")
    held = os.open(home.path / "cache" / ".tmp-file", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    home.reap()
    assert len(os.listdir(home.path / "cache")) == 4
    assert os.listdir(home.path / "digests") == [".tmp-x"]
    home.now += 3700
    home.reap()
    assert os.listdir(home.path / "cache") == [".tmp-file"]
    assert os.listdir(home.path / "digests") == []
    os.close(held)
    home.reap()
    assert os.listdir(home.path / "cache") == []
    assert os.path.exists("/etc/passwd")


def test_locks_go_that_nobody_holds(home: Home) -> None:
    """Those of loop devices and of builds; not the reaper's own, nor that of the names."""
    for name in ("loop-1-2", "loop-1-3", "build-" + "a" * 64, "names"):
        (home.path / "locks" / name).write_bytes(b"7")
    with open(home.path / "locks" / "loop-1-3") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home.reap()
        assert len(os.listdir(home.path / "locks")) == 5
        home.now += 3700
        home.reap()
        assert sorted(os.listdir(home.path / "locks")) == ["loop-1-3", "names", "reaper"]


def test_strangers_in_the_cache_stay(home: Home) -> None:
    (home.path / "cache" / "README").write_text("mine")
    home.now += 1000 * DAY
    home.reap(size=0)
    assert os.listdir(home.path / "cache") == ["README"]


def test_stale_digests_go(home: Home) -> None:
    kept = home.image("a", used=DAY).encode()[:64]
    for name, key, days in (("1-1", kept, 10), ("1-2", b"b" * 64, 2), ("1-3", b"b" * 64, 0.5), ("1-4", kept, 91)):
        path = home.path / "digests" / name
        path.write_bytes(b"\n".join((b"state", b"digest", b"parameters", key, b"")))
        os.utime(path, (home.now - days * DAY,) * 2)
    home.reap()
    assert sorted(os.listdir(home.path / "digests")) == ["1-1", "1-3"]


def test_only_one_at_a_time(home: Home) -> None:
    with open(home.path / "locks" / "reaper", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not reaper.run_once(home.fd, now=home.now, max_age_days=30, max_bytes=None).ran


def test_records_are_cleaned_by_the_hook(home: Home) -> None:
    called: list[int] = []
    reaper.run_once(home.fd, now=home.now, max_age_days=30, max_bytes=None, clean_records=called.append)
    assert called == [home.fd]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (30.0, None)),
        ({reaper.AGE_VARIABLE: "0.5", reaper.BYTES_VARIABLE: "10G"}, (0.5, 10 << 30)),
        ({reaper.AGE_VARIABLE: "0", reaper.BYTES_VARIABLE: "512k"}, (0.0, 512 << 10)),
        ({reaper.BYTES_VARIABLE: "77"}, (30.0, 77)),
    ],
)
def test_settings(environment: Mapping[str, str], expected: tuple[float, int | None]) -> None:
    assert tuple(reaper.settings(environment)) == expected


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e999", "\n"])
def test_a_bad_age_is_one_line(text: str) -> None:
    if not text.strip():
        assert reaper.settings({reaper.AGE_VARIABLE: text}).max_age_days == 30
        return
    with pytest.raises(UsageError, match=reaper.AGE_VARIABLE):
        reaper.settings({reaper.AGE_VARIABLE: text})


@pytest.mark.parametrize("text", ["x", "-1", "1.5G", "G", "1GG", "²", "1 G"])
def test_a_bad_size_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=reaper.BYTES_VARIABLE):
        reaper.settings({reaper.BYTES_VARIABLE: text})


def test_it_is_a_daemon_of_its_own(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own session, nobody's child, nothing inherited but the home, idle priority, a name of its own."""
    leaked, write = os.pipe()
    os.set_inheritable(write, True)
    report = home.path / "seen"

    def look(_: int) -> None:
        fds = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) < 3}
        facts = [
            Path("/proc/self/comm").read_text().strip(),
            str(os.getsid(0) != session),
            str(os.getsid(0) != os.getpid()),  # no session leader: it can never get a terminal
            str(fds == {"/dev/null"}),
            str(os.sched_getscheduler(0) == os.SCHED_IDLE),
            os.getcwd(),
            str(any("pipe:" in os.readlink(f"/proc/self/fd/{fd}") for fd in range(4, 20) if is_open(fd))),
        ]
        report.with_suffix(".new").write_text("\n".join(facts))
        os.rename(report.with_suffix(".new"), report)

    session = os.getsid(0)
    monkeypatch.delenv(reaper.AGE_VARIABLE, raising=False)
    first = next(iter(os.environ))  # put elsewhere in memory: naming the process must not depend on where it was
    monkeypatch.setenv(first, os.environ[first])
    home.image("a", used=40 * DAY)
    reaper.maybe_start(home.fd, clean_records=look)
    os.close(write)
    deadline = time.monotonic() + 20
    while not report.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.read(leaked, 1) == b""  # end of file: nobody holds the other end
    os.close(leaked)
    assert report.read_text().split("\n") == ["sandbox-reaper", "True", "True", "True", "True", "/", "False"]
    assert home.left() == set()


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_it_starts_once_an_hour(home: Home) -> None:
    reaper.maybe_start(home.fd)
    home.image("a", used=90 * DAY)
    time.sleep(0.2)
    reaper.maybe_start(home.fd)
    time.sleep(0.2)
    assert home.left() <= {"a"}
    stamp = home.path / "locks" / "reaper"
    os.utime(stamp, (home.now - 4000, home.now - 4000))
    reaper.maybe_start(home.fd)
    deadline = time.monotonic() + 20
    while home.left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert home.left() == set()


def test_bad_settings_stop_it_with_a_line(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(reaper.BYTES_VARIABLE, "many")
    reaper.maybe_start(home.fd)
    assert "many" in capfd.readouterr().err
    assert not (home.path / "locks" / "reaper").exists()
