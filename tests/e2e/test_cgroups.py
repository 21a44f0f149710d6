"""Limits of a whole job, by cgroup v2, in every engine and mode. Here where there is one with controllers, else in the
machines of tests/vm.
"""

import os
import re
import secrets
import sys
import time
from pathlib import Path

import pytest

from sandbox import fsops
from sandbox.engine import syscalls
from tests.support import modes, reports
from tests.support.living import Living

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


@pytest.fixture
def moved(delegated):
    """Lines of the kernel's own account of processes that were moved into the cgroup of a run: see tracefs."""
    if os.geteuid() != 0:
        pytest.skip("only root can trace the kernel")
    with fsops.closing(syscalls.make_mount(b"tracefs", [], 0)) as mount:
        instance = Path(f"/proc/self/fd/{mount}/instances/sbx-test-{secrets.token_hex(4)}")
        instance.mkdir()
        try:
            (instance / "events/cgroup/cgroup_attach_task/enable").write_text("1")
            words = f"/{delegated.name}/sandbox-"
            yield lambda: [line for line in (instance / "trace").read_text().splitlines() if words in line]
        finally:
            instance.rmdir()


@pytest.mark.parametrize("level", ["none", "job"])
def test_a_run_is_born_in_it(run, moved, level):
    """And not moved there: none of its processes was ever outside."""
    told, _ = run(["--isolation", level, "--pids", "100"], "exit 4")
    assert (told["cause"], told["exit_code"], told["forks_refused"]) == ("exited", 4, 0)
    assert not moved()


class WithoutClone3:
    """Starts `sandbox` behind a filter that hides this call, as older ones of container engines do."""

    enters = True

    def __init__(self, system):
        self.system = system

    def command(self, argv, *, who, cwd):
        become = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"] if who.as_user else []
        start = ["env", "-C", cwd, *become, *argv]
        start = start if self.system is None else self.system.command(argv, who=who, cwd=cwd)
        # Root may install a filter without no_new_privs, which would hold the setuid helper.
        return [sys.executable, "-c", _HIDE, *map(os.fspath, start)]


def test_a_run_enters_it_where_clone3_is_hidden(run, run_sandbox, moved):
    run_sandbox.system = WithoutClone3(run_sandbox.system)
    _, done = run(["--pids", "100"], _PIDS)
    assert (done.stdout, len(moved())) == ("100\n", 1), done.stderr


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS[:4], ids="-".join)
@pytest.mark.parametrize("level", [(), ("--isolation", "job")], ids=["none", "job"])
def test_who_joins_is_born_in_it(run_sandbox, moved, identities, engine, mode, level):
    modes.require(engine, mode, identities[True])
    live = Living(run_sandbox, engine, mode)
    joined = live.start(*level, "--pids", "20", "--name", "it")
    # Python joins where there are options.
    words = ["it"] if engine == "native" else ["-e", "A=1", "it"]
    done = live("exec", *words, "--", "cat", "/proc/self/cgroup")
    joined.terminate()
    joined.wait(30)
    # Seen from the cgroup namespace of a job, which begins there: what is outside of it has a way up in its path.
    assert re.fullmatch("0::/\n" if level else r"0::/.*/sandbox-[0-9a-f]{32}\n", done.stdout), done
    assert not moved()


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
