"""sandbox cleanup: what is left when processes of a sandbox are killed at random moments, and that it all goes."""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox import processes
from tests.support import archives, leaks, living, modes
from tests.support.archives import Entry
from tests.support.living import Living, wait_for

ROUNDS = 25 * int(os.environ.get("SANDBOX_SOAK", "1")) if os.environ.get("SANDBOX_SOAK") else 8
TREE = [Entry("f", b"hello\n" * 1000), Entry.directory("sub"), Entry("sub/g", b"g\n")]
LEVELS = ([], ["--isolation", "job"], ["--isolation", "strict"])
REAPER = "sandbox-reaper"
BUILDERS = {"sqfs2tar", "tar2sqfs", "mksquashfs", "unsquashfs"}
SOURCES = (
    ["-s", "t:{d}/tree.sfs"],
    ["-d", "t:{d}/tree.zip"],
    ["--cache", "-d", "t:{d}/tree.zip"],
    ["-d", "t:{d}/tree"],
)


@pytest.fixture
def inputs(session_area):
    where = session_area / "cleanup-inputs"
    if not where.exists():
        where.mkdir(mode=0o755)
        archives.make_squashfs(where / "tree.sfs", TREE)
        archives.make_zip(where / "tree.zip", TREE)
        archives.make_tree(where / "tree", TREE)
    return where


class Rounds:
    """Sandboxes that start, are joined, and are killed piece by piece. `killed` counts by role."""

    def __init__(self, run_sandbox, as_user: bool, chance: random.Random) -> None:
        self.run, self.as_user, self.chance = run_sandbox, as_user, chance
        self.killed: collections.Counter[str] = collections.Counter()
        self.launchers: list[subprocess.Popen[str]] = []
        self.clients: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        # Output to nowhere: what stays behind would keep a pipe open.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return self.run.popen(list(words), as_user=self.as_user, **quiet)

    def victims(self) -> dict[int, str]:
        """Whoever belongs to these sandboxes now, and what they are: reapers too, which nobody is the parent of."""
        everybody = processes.table()
        children = processes.by_parent((process.pid, process.parent) for process in everybody.values())
        found = {pid: "reaper" for pid in processes.below(os.getpid(), children) if _name(everybody, pid) == REAPER}
        for starters, role in ((self.launchers, "supervisor"), (self.clients, "exec client")):
            for process in starters:
                if process.poll() is None:
                    below = processes.below(process.pid, children)
                    found |= {pid: _role(_name(everybody, pid), pid) for pid in below} | {process.pid: role}
        return found

    def kill_one(self) -> None:
        everyone = self.victims()
        if not everyone:
            return
        # Each role has the same chance, however many have it.
        role = self.chance.choice(sorted(set(everyone.values())))
        victim = self.chance.choice([pid for pid, of in everyone.items() if of == role])
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(victim)
            try:
                # The number may have changed hands before it was opened: only what is still ours is killed.
                if victim in self.victims():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    self.killed[role] += 1
            finally:
                os.close(pidfd)

    def wait(self) -> None:
        """For all that were started. Meanwhile this process does what pid 1 would, as the orphans are its: a pid
        namespace cannot end before whoever joined it was waited for.
        """
        started = [*self.launchers, *self.clients]
        own = {process.pid for process in started}

        def has_ended() -> bool:
            for child in processes.table().values():
                if child.parent == os.getpid() and child.pid not in own:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(child.pid, os.WNOHANG)
            return sum(process.poll() is None for process in started) == 0

        wait_for(has_ended, 120)
        self.launchers.clear()
        self.clients.clear()


def _name(everybody: dict[int, processes.Process], pid: int) -> str:
    return everybody[pid].name if pid in everybody else ""


def _role(name: str, pid: int) -> str:
    """Of somebody below a launcher: the init of a pid namespace, who builds an image, or who else is there."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        if status.partition("NSpid:")[2].split("\n")[0].split()[1:] == ["1"]:
            return "init"
    return "builder" if name in BUILDERS or name.startswith("python") else "command"


def drafts(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.name.startswith(".tmp-")] if home.exists() else []


def on_the_network() -> set[str]:
    """Names of veth pairs and nftables tables that may be ours."""
    found = {f"link {name}" for name in os.listdir("/sys/class/net") if name.startswith("sbx")}
    if os.geteuid() == 0 and shutil.which("nft"):
        told = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        found |= {line for line in told.splitlines() if " sbx" in line}
    return found


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("engine", "mode"), living.COMBINATIONS, ids=lambda value: value)
def test_nothing_is_left_after_kills_at_random(engine, mode, run_sandbox, identities, area, inputs, request):
    """Supervisors, inits, builders, reapers and clients of exec are killed; then one sandbox cleanup."""
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    as_user = mode != "root"
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rounds, before = Rounds(run_sandbox, as_user, chance), on_the_network()
    # A kill is to come at any moment of a launch, however long one takes here.
    started = time.monotonic()
    run_sandbox(["run", "--engine", engine, "--mode", mode, "--isolation", "job", "--", "true"], as_user=as_user)
    pace = max(0.2, time.monotonic() - started)
    # What daemonises and ignores requests is left when its supervisor dies at level none.
    script = f"(trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 &) ; sleep {1.5 * pace:.2f}"
    for number in range(ROUNDS):
        options = [*chance.choice(LEVELS), *(word.replace("{d}", str(inputs)) for word in chance.choice(SOURCES))]
        options += ["--name", f"n{number}"] if number % 2 else []
        command = ["run", "--engine", engine, "--mode", mode, *options, "--", "sh", "-c", script]
        # A reaper is due again.
        with contextlib.suppress(FileNotFoundError):
            os.utime(area.home(as_user) / "locks" / "reaper", (0, 0))
        rounds.launchers.append(rounds.start(*command))
        time.sleep(chance.uniform(0, 2 * pace))
        if number % 2:
            python = run_sandbox.command.with_name("sandbox-python")
            run_sandbox.instead["exec"] = python if number % 4 == 3 and python.exists() else run_sandbox.command
            rounds.clients.append(rounds.start("exec", f"n{number}", "sh", "-c", script))
            time.sleep(chance.uniform(0, pace))
        for _ in rounds.launchers:
            if chance.random() < 0.7:
                rounds.kill_one()
        if number % 4 == 3:
            rounds.wait()
    rounds.wait()
    print(f"killed: {dict(rounds.killed)}")

    # Builders that lost their parents end when they notice, and a draft must have lain there for two seconds.
    def is_quiet() -> bool:
        leaks.reap_orphans()
        everybody = processes.table()
        below = {_name(everybody, pid) for pid in processes.below(os.getpid())}
        return not below & BUILDERS and not any(name.startswith(("sandbox", "python")) for name in below)

    wait_for(is_quiet)
    time.sleep(2.1)
    done = run_sandbox(["cleanup", "--json"], as_user=as_user)
    assert done.returncode == 0, done.stderr
    assert not drafts(area.home(as_user))
    assert not run_sandbox.left_procdirs()
    assert run_sandbox(["cleanup"], as_user=as_user).stdout == "nothing is left behind\n"
    # Mounts, loop devices, processes and files are the fixture's to look at. Tables go with their dying owners.
    wait_for(lambda: on_the_network() <= before)
    if ROUNDS >= 100:
        expected = {"supervisor", "init", "builder", "reaper", "exec client", "command"}
        assert set(rounds.killed) >= expected, rounds.killed


@pytest.fixture(params=[("python", "userns"), ("native", "root")], ids="-".join)
def live(request, run_sandbox, identities):
    modes.require(*request.param, identities[True])
    return Living(run_sandbox, *request.param)


def fall(live: Living, *options: str) -> None:
    """A run whose supervisor was killed, with a process that survives it."""
    process = live.start(*options, script="(trap '' TERM; setsid sleep 1000 >/dev/null 2>&1 &)")
    process.kill()
    process.wait(20)


def test_what_lives_is_left_alone_and_a_dry_run_changes_nothing(live):
    process = live.start("--name", "alive")
    fall(live, "--name", "dead", "--scratch", str(live.area))
    home = live.run.area.home(live.as_user)
    (home / "procdirs" / "4000000").mkdir()
    (home / "cache").mkdir(exist_ok=True)
    (home / "cache" / ".tmp-0123456789abcdef").write_text("half")
    (home / "cache" / ".tmp-fedcba9876543210").mkdir()
    who = live.run.identities[live.as_user]
    for path in (home / "cache", *(home / "cache").iterdir(), home / "procdirs" / "4000000"):
        os.chown(path, who.uid, who.gid)
    time.sleep(2.1)

    def tree() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_ino) for path in live.area.rglob("*") if "locks" not in path.parts)

    before = tree()
    told = live("cleanup", "--dry-run").stdout.splitlines()
    assert [line.split()[:2] for line in told] == [
        ["left:", "run"],
        ["left:", "procdir"],
        ["left:", "draft"],
        ["left:", "draft"],
    ]
    assert told[0].startswith("left: run dead sh -c")
    assert tree() == before
    kinds = [finding["kind"] for finding in json.loads(live("cleanup", "--json").stdout)]
    assert kinds == ["run", "procdir", "draft", "draft"]
    assert [path.name for path in (home / "records").iterdir()] == ["alive"]
    assert not [path for path in live.area.iterdir() if path.name.startswith("sandbox-") and path != home]
    assert live("cleanup").stdout == "nothing is left behind\n"
    assert process.poll() is None
    assert live("kill", "alive").stdout == "alive: ended\n"
    process.wait(20)


def test_a_record_that_names_the_directories_of_others(run_sandbox, who, area):
    """Scratch directories are removed only under the name of the run, and not through a link in its place."""
    home, where = area.home(who.as_user), area.dir(who.as_user)
    run_sandbox(["run", "true"], as_user=who.as_user, check=True)
    number = "ab" * 16
    for name in ("precious", f"other/sandbox-{number}x", "linked"):
        (where / name).mkdir(parents=True)
        (where / name / "f").write_text("keep")
    (where / "parent").mkdir()
    (where / "parent" / f"sandbox-{number}").symlink_to(where / "linked")
    scratch = [where / "precious", where / f"other/sandbox-{number}x", where / "parent" / f"sandbox-{number}"]
    scratch += ["/", "", f"/proc/self/sandbox-{number}"]
    facts = {"id": number, "host": os.uname().nodename, "boot_id": "-", "scratch": list(map(str, scratch))}
    (home / "records" / "77").write_text(json.dumps(facts) + "\n")
    for path in (home / "records" / "77", *where.rglob("*")):
        os.chown(path, who.uid, who.gid, follow_symlinks=False)
    assert run_sandbox(["cleanup"], as_user=who.as_user).returncode == 0
    kept = [where / "precious/f", where / f"other/sandbox-{number}x/f", where / "linked/f"]
    assert [path.read_text() for path in kept] == ["keep"] * 3
    assert not list((home / "records").iterdir())


def test_what_no_run_made_is_told_of_and_stays(run_sandbox, who, area):
    home = area.home(who.as_user)
    run_sandbox(["run", "true"], as_user=who.as_user, check=True)
    foreign = [home / "procdirs" / "1" / "f", home / "procdirs" / "file"]
    foreign[0].parent.mkdir()
    (home / "procdirs" / "2").mkdir()
    for path in foreign:
        path.write_text("keep")
    done = run_sandbox(["cleanup"], as_user=who.as_user)
    assert (done.returncode, done.stdout) == (125, "removed: procdir 2\n")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "cannot remove the procdir 1",
        "cannot remove the procdir file",
    ]
    assert [path.read_text() for path in foreign] == ["keep"] * 2
    assert not list((home / "records").iterdir())
    for path in foreign:
        path.unlink()
    foreign[0].parent.rmdir()
    (home / "procdirs").rmdir()
    (home / "procdirs").write_text("")
    done = run_sandbox(["run", "true"], as_user=who.as_user)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "procdirs in it is no directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")
def test_loop_devices(run_sandbox, area, inputs):
    """One of ours that nobody uses is detached; one that is mounted, and one of somebody else's, are not."""
    run_sandbox(["run", "-s", f"t:{inputs}/tree.sfs", "true"], as_user=False, check=True)
    image, other = area.path / "mine.sfs", area.path / "other.sfs"
    for path in (image, other):
        path.write_bytes((inputs / "tree.sfs").read_bytes())

    def attach(path: Path) -> str:
        done = subprocess.run(["losetup", "--show", "-rf", path], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    ours, theirs = attach(image), attach(other)
    status = image.stat()
    lock = area.home(False) / "locks" / f"loop-{status.st_dev}-{status.st_ino}"
    lock.write_text(ours.removeprefix("/dev/loop"))
    try:
        # Shared by no one, but in use.
        with open(ours, "rb"):
            assert f"left: loop device {ours}\n" in run_sandbox(["cleanup", "-n"], as_user=False).stdout
        assert f"removed: loop device {ours}\n" in run_sandbox(["cleanup"], as_user=False).stdout
        wait_for(lambda: not Path(f"/sys/block/{ours[5:]}/loop").exists())
        assert Path(f"/sys/block/{theirs[5:]}/loop").exists()
    finally:
        subprocess.run(["losetup", "-d", theirs], check=True)
