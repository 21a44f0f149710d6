"""Limits of a whole job, by cgroup v2, in every engine and mode. Here where there is one with controllers, else in the
machines of tests/vm.
"""

import os
import re
import sys
import time

import pytest

from tests.support import modes, reports
from tests.support.living import Living, wait_for

COMBINATIONS = [
    ("python", "root"),
    ("python", "userns"),
    ("native", "root"),
    ("native", "userns"),
    ("native", "setuid"),
]
FORK_BOMB = "bomb() { while :; do bomb & done; }; bomb"
_PIDS = "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/pids.max"
# Classic BPF: load the number; if it is clone3, return ENOSYS (38), else allow.
_HIDE = """
import os, sys
from sandbox.engine import syscalls
def op(code, yes, no, value): return code | yes << 16 | no << 24 | value << 32
syscalls.install_seccomp((op(0x20, 0, 0, 0), op(0x15, 0, 1, 435), op(6, 0, 0, 0x50000 | 38), op(6, 0, 0, 0x7FFF0000)))
os.execvp(sys.argv[1], sys.argv[1:])
"""
DETACH = "(setsid sh -c 'exec >/dev/null 2>&1 </dev/null; (sleep 1000 &) ; exec sleep 1000' &)"


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def pair(request, delegated, run_sandbox, identities):
    """Engine and mode."""
    engine, mode = request.param
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    return engine, mode


@pytest.fixture
def start(pair, run_sandbox):
    """start(*options): how a command ended that prints how many processes it may have."""
    head = ["run", "--engine", pair[0], "--mode", pair[1]]
    return lambda *options: run_sandbox([*head, *options, "--", "sh", "-c", _PIDS], as_user=pair[1] != "root")


@pytest.fixture
def run(pair, run_sandbox, area):
    """run(options, script): the report, and what was printed."""
    engine, mode = pair

    def run(options, script, command=("run",)):
        args = [*command, "--engine", engine, "--mode", mode, "--report", "r.json", *options, "--", "sh", "-c", script]
        done = run_sandbox(args, as_user=mode != "root")
        return reports.read(area.dir(mode != "root") / "r.json"), done

    return run


@pytest.fixture
def no_room(delegated):
    """`no_room()`: one more process may start where the tests are, which is `sandbox` itself, and no other."""
    if os.geteuid() != 0:
        pytest.skip("only root can limit the cgroup that the tests are in")
    leaf = delegated / "leaf"

    def settled():
        """The number of threads that there are, once those that have ended count no more."""
        count = len((leaf / "cgroup.threads").read_text().split())
        return count if int((leaf / "pids.current").read_text()) == count else 0

    yield lambda: (leaf / "pids.max").write_text(str(wait_for(settled) + 1))
    (leaf / "pids.max").write_text("max")


class WithoutClone3:
    """Starts `sandbox` behind a filter that hides this call, as older ones of container engines do."""

    enters = True

    def __init__(self, system):
        if os.geteuid() != 0:
            pytest.skip("only root can start set-id programs behind a filter")
        self.system = system

    def command(self, argv, *, who, cwd):
        become = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"] if who.as_user else []
        start = ["env", "-C", cwd, *become, *argv]
        start = start if self.system is None else self.system.command(argv, who=who, cwd=cwd)
        # Without no_new_privs, which would hold the setuid helper.
        return [sys.executable, "-c", _HIDE, *map(os.fspath, start)]


def test_a_run_is_born_in_it(start, run_sandbox, no_room):
    """Outside of it there is no room for any of its processes; one that is to move there needs some first."""
    assert start("--pids", "100").stdout == "100\n"
    no_room()
    assert start("--pids", "100").stdout == "100\n"
    run_sandbox.system = WithoutClone3(run_sandbox.system)
    refused = start("--pids", "100")
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1), refused.stderr
    assert "fork" in refused.stderr


def test_a_run_enters_it_where_clone3_is_hidden(start, run_sandbox):
    run_sandbox.system = WithoutClone3(run_sandbox.system)
    done = start("--pids", "100")
    assert (done.stdout, done.stderr) == ("100\n", "")


@pytest.mark.parametrize("mode", ["userns", "setuid"])
def test_a_job_is_born_in_it_as_an_init(request, delegated, run_sandbox, identities, no_room, mode):
    """In its own namespaces at once. Jobs of root's have other processes to start outside, for their files."""
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require("native", mode, identities[True])
    args = ["run", "--engine", "native", "--mode", mode, "--isolation", "job", "--pids", "100", "--", "echo", "ran"]
    for limit in (lambda: None, no_room):
        limit()
        done = run_sandbox(args, as_user=True)
        assert (done.stdout, done.stderr) == ("ran\n", "")


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS[:4], ids="-".join)
@pytest.mark.parametrize("level", [(), ("--isolation", "job")], ids=["none", "job"])
def test_who_joins_is_born_in_it(run_sandbox, no_room, identities, engine, mode, level):
    modes.require(engine, mode, identities[True])
    live = Living(run_sandbox, engine, mode)
    joined = live.start(*level, "--pids", "20", "--name", "it")
    no_room()
    # Python joins where there are options.
    words = ["it"] if engine == "native" else ["-e", "A=1", "it"]
    done = live("exec", *words, "--", "cat", "/proc/self/cgroup")
    joined.terminate()
    joined.wait(30)
    # Seen from the cgroup namespace of a job, which begins there: what is outside of it has a way up in its path.
    assert re.fullmatch("0::/\n" if level else r"0::/.*/sandbox-[0-9a-f]{32}\n", done.stdout), done


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS[:4], ids="-".join)
def test_who_joins_counts(run_sandbox, delegated, identities, engine, mode):
    """Against the limit of the run, with what the run has; and what was started there ends with it."""
    modes.require(engine, mode, identities[True])
    live = Living(run_sandbox, engine, mode)
    joined = live.start("--isolation", "job", "--pids", "12", "--name", "it")
    for count, ended in ((2, 0), (20, 2)):
        script = f"n=0; while [ $n -lt {count} ]; do n=$((n + 1)); sleep 1000 >/dev/null 2>&1 & done; echo all"
        done = live("exec", "it", "--", "sh", "-c", script)
        assert (done.returncode, done.stdout) == (ended, "" if ended else "all\n"), done
    assert "fork" in done.stderr
    joined.terminate()
    joined.wait(30)


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
    ("options", "script", "why"),
    [
        (
            ("--memory=48M", "--timeout=120"),
            "head -c 500M /dev/zero | tail",
            r"its memory was used up \(--memory 50331648; \d+ killed\): .*",
        ),
        (
            ("--pids=40", "--timeout=3"),
            FORK_BOMB,
            r"(a limit was reached \(--pids 40; \d+ new|its time was up \(--timeout 3\)).*",
        ),
    ],
    ids=["memory", "forks"],
)
def test_a_hog_of_a_ci_system_s(run, options, script, why):
    """`sandbox ci run` names the limit that ended it."""
    options = ["--marks=plain", "--title=t", "--failure-code=3", *options, "--kill-after=0.5"]
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
