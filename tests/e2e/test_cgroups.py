"""Limits of a whole job, by cgroup v2, in every engine and mode. Here where there is one with controllers, else in the
machines of tests/vm.
"""

import re
import time

import pytest

from tests.support import modes, reports

COMBINATIONS = [
    ("python", "root"),
    ("python", "userns"),
    ("native", "root"),
    ("native", "userns"),
    ("native", "setuid"),
]
FORK_BOMB = "bomb() { while :; do bomb & done; }; bomb"
DETACH = "(setsid sh -c 'exec >/dev/null 2>&1 </dev/null; (sleep 1000 &) ; exec sleep 1000' &)"


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def run(request, delegated, run_sandbox, area, identities):
    """run(options, script): the report, and what was printed."""
    engine, mode = request.param
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])

    def run(options, script, command=("run",)):
        args = [*command, "--engine", engine, "--mode", mode, "--report", "r.json", *options, "--", "sh", "-c", script]
        done = run_sandbox(args, as_user=mode != "root")
        return reports.read(area.dir(mode != "root") / "r.json"), done

    return run


def test_a_memory_hog(run):
    told, done = run(["--memory", "48M", "--timeout", "60"], "head -c 500M /dev/zero | tail; echo survived")
    assert (told["cause"], told["signal"], done.stdout) == ("oom", 9, "")
    assert told["oom_kills"] > 0
    assert told["peak_memory_of"] in ("cgroup", "largest process")


def test_a_tmpfs_filler(run):
    told, _ = run(["--memory", "48M", "--timeout", "60"], "cat /dev/zero > $SANDBOX_TMPDIR/x")
    assert told["cause"] == "oom"


def test_a_fork_bomb(run):
    told, done = run(["--pids", "40", "--timeout", "3", "--kill-after", "0.5"], FORK_BOMB)
    assert (told["cause"], told["limit"]) in (("timeout", None), ("limit", "pids"))
    assert done.returncode in (124, 2)
    assert told["forks_refused"] > 0
    assert told["processes"] is None or told["processes"] <= 40


@pytest.mark.parametrize(
    ("option", "script", "why"),
    [
        (
            "--memory=48M",
            "head -c 500M /dev/zero | tail",
            r"its memory was used up \(--memory 50331648; \d+ killed\): .*",
        ),
        ("--pids=40", FORK_BOMB, r"(a limit was reached \(--pids 40; \d+ new|its time was up \(--timeout 3\)).*"),
    ],
)
def test_a_hog_of_a_ci_system_s(run, option, script, why):
    """`sandbox ci run` names the limit that ended it."""
    options = ["--marks=plain", "--title=t", "--failure-code=3", option, "--timeout=3", "--kill-after=0.5"]
    _, done = run(options, script, command=("ci", "run"))
    assert done.returncode == 3
    assert re.fullmatch(f"sandbox: FAILED: t: {why}", done.stdout.splitlines()[-1]), done.stdout


def test_processors(run, delegated):
    told, done = run(["--cpus", "0.5"], "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/cpu.max")
    assert (told["cause"], done.stdout) == ("exited", "50000 100000\n")


def test_what_is_detached_ends_with_it(run):
    told, done = run(["--pids", "100"], f"{DETACH}; exit 4")
    assert (told["cause"], told["exit_code"], done.returncode) == ("exited", 4, 4)


def test_best_effort_is_not_needed_here(run):
    told, done = run(["--limits", "best-effort", "--memory", "200M"], "ulimit -d")
    assert (told["cause"], done.stdout, done.stderr) == ("exited", "unlimited\n", "")


@pytest.mark.leaves_procdirs
@pytest.mark.parametrize("engine", ["python", "native"])
def test_the_next_run_removes_a_dead_one_s(run_sandbox, delegated, area, engine, who):
    where = area.dir(who.as_user)
    script = (
        "mkdir /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/inner; setsid sleep 1000 & touch ready; sleep 1000"
    )
    args = ["run", "--engine", engine, "--pids", "100", "--", "sh", "-c", script]
    process = run_sandbox.popen(args, as_user=who.as_user)
    end = time.monotonic() + 20
    while not (where / "ready").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(delegated.glob("sandbox-*"))
    run_sandbox(["run", "--engine", engine, "--", "true"], as_user=who.as_user, check=True)
    assert not list(delegated.glob("sandbox-*"))
