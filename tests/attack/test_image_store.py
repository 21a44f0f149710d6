"""Fifty processes at one store: building, tagging, rolling back, verifying, evicting and running, all at once."""

import fcntl
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.runner import Area, Runner
from tests.support.users import Identity

PROCESSES = 50
SECONDS = 8 * int(os.environ.get("SANDBOX_SOAK", "1"))
NAMES = ["a", "b", "c"]
SOURCES = 8

# What a command may say when it is late; anything else that fails is a bug.
REFUSALS = (
    "there is no image @",
    "there is no image sha256:",
    "there is no image @sha256:",
    "no generation before this one is kept",
    "it was removed just now",
    "a sandbox is using it",
    "a name keeps it",
    "it is being built",
    "the cache has no",
    "the result was removed at once",
    "images start with",
)


def action(rng: random.Random) -> list[list[str]]:
    name, source = rng.choice(NAMES), f"s{rng.randrange(SOURCES)}.tar"
    kept = f"{name}-{rng.randrange(1 << 40)}.sfs"
    return rng.choice(
        [
            [["image", "build", source, "-t", name, "--compress", rng.choice(["fast", "small"])]],
            [["image", "build", source]],
            [["image", "tag", rng.choice(NAMES), name]],
            [["image", "rollback", name]],
            [["image", "verify", "--all"]],
            [["image", "ls"], ["image", "history", name]],
            [["image", "export", name, kept], ["image", "import", kept, "-t", rng.choice(NAMES)]],
            [["image", "rm", name]],
            [["cache", "rm", "--all"]],
            [["cache", "clean", "--now"]],
            [["run", "-s", f"t:@{name}", "--", "sh", "-c", 'test "$(cat "$SANDBOX_STATIC/t/check")" = ok']] * 3,
            [["run", "--cache", "-d", f"t:{source}", "--", "sh", "-c", 'cat "$SANDBOX_DYNAMIC/t/check"']],
        ]
    )


def test_fifty_processes_at_one_store(run_sandbox: Runner, who: Identity, area: Area) -> None:
    where = area.dir(who.as_user)
    for number in range(SOURCES):
        entries = [Entry("check", b"ok"), Entry("data", random.Random(number).randbytes(50_000))]
        os.chown(archives.make_tar(where / f"s{number}.tar", entries), who.uid, who.gid)
    until = time.monotonic() + SECONDS

    def work(seed: int) -> list[str]:
        """What must not have happened."""
        rng, wrong = random.Random(seed), []
        while time.monotonic() < until:
            for args in action(rng):
                budget = {"SANDBOX_CACHE_MAX_BYTES": "200K"}
                done = run_sandbox(args, as_user=who.as_user, env=budget, timeout=250)
                refused = done.returncode == 125 and any(words in done.stderr for words in REFUSALS)
                if "Traceback" in done.stderr or "DAMAGED" in done.stdout or (done.returncode != 0 and not refused):
                    wrong.append(f"{args}: exit {done.returncode}: {done.stderr} {done.stdout}")
                if refused:
                    break  # what would follow rests on it
        return wrong

    with ThreadPoolExecutor(PROCESSES) as pool:
        assert [line for wrong in pool.map(work, range(PROCESSES)) for line in wrong] == []
    home = area.home(who.as_user)
    for link in home.glob("names/*"):
        assert link.exists(), f"{link} dangles: {os.readlink(link)}"
    run_sandbox(["image", "verify", "--all"], as_user=who.as_user, check=True, timeout=250)
    assert list(home.glob("*/.tmp-*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts over loop devices")
@pytest.mark.parametrize("engine", ["python", "native"])
def test_a_lock_removed_while_it_is_waited_for_is_made_anew(run_sandbox: Runner, area: Area, engine: str) -> None:
    """Otherwise who waited and who comes later would hold two locks of one name, and attach two devices."""
    image = archives.make_squashfs(area.dir(False) / "i.sfs", [Entry("f", b"x")])
    args = ["run", "--engine", engine, "-s", f"t:{image}", "--", "true"]
    run_sandbox(args, as_user=False, check=True)
    (lock,) = area.home(False).glob("locks/loop-*")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        inode = f":{os.fstat(held.fileno()).st_ino} "
        running = run_sandbox.popen(args, as_user=False)
        while not any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
            assert running.poll() is None, "it did not wait for the lock"
            time.sleep(0.01)
        lock.unlink()
    assert running.wait() == 0
    assert lock.exists()
