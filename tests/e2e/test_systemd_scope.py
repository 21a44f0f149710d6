"""Limits of a whole job where systemd runs: in a scope that it makes, for root and for an ordinary user's session.

`python -m tests.vm --systemd [--user] -- tests/e2e/test_systemd_scope.py`: the machine there has the setuid helper
installed, and its user in the helper's group.
"""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from sandbox import setuid
from tests.support import modes, reports

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/run/systemd/system"),
    reason="systemd does not run here: python -m tests.vm --systemd -- tests/e2e/test_systemd_scope.py",
)
COMBINATIONS = [
    ("python", "root"),
    ("native", "root"),
    ("python", "userns"),
    ("native", "userns"),
    ("native", "setuid"),
]
_OWN = "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup) && pwd && cat memory.max pids.max cpu.max"
_SCOPE = r"/sandbox\.slice/sandbox-\d+-[0-9a-f]{8}\.scope/sandbox-[0-9a-f]{32}"


class Undelegated:
    """Starts root's runs in a scope that is systemd's alone; a user's own session is nothing else."""

    enters = False

    def command(self, argv, *, who, cwd):
        if who.as_user:
            return list(argv)
        return ["systemd-run", "--scope", "--quiet", "--collect", f"--working-directory={cwd}", *map(os.fspath, argv)]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def run(request, run_sandbox, area, identities):
    """run(options, script): the report, and what was printed."""
    engine, mode = request.param
    as_user = mode != "root"
    if as_user != (os.geteuid() != 0):
        pytest.skip("mode root is root's, and a user's session is asked by that user")
    if mode == "setuid" and (why := setuid.obstacle()) is not None:
        pytest.skip(f"mode setuid: {why}")
    if mode != "setuid":
        modes.require(engine, mode, identities[as_user])
    if as_user and not os.path.exists(f"/run/user/{os.geteuid()}/bus"):
        pytest.skip("this user has no session of systemd's")
    run_sandbox.system = Undelegated()
    bus = {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"} if as_user else {}

    def run(options, script):
        args = ["run", "--engine", engine, "--mode", mode, "--report", "r.json", *options, "--", "sh", "-c", script]
        done = run_sandbox(args, as_user=as_user, env=bus)
        return reports.read(area.dir(as_user) / "r.json"), done

    return run


def test_the_scope(run):
    """Its limits are the job's, it is systemd's, and it goes with the run."""
    told, done = run(["--memory", "48M", "--pids", "40", "--cpus", "0.5"], _OWN)
    assert (told["cause"], done.stderr) == ("exited", "")
    path, *limits = done.stdout.splitlines()
    assert limits == [str(48 << 20), "40", "50000 100000"]
    assert re.search(_SCOPE, path), path
    if os.geteuid() != 0:
        assert f"/user@{os.geteuid()}.service/" in path
    end = time.monotonic() + 30
    while (scope := Path(path).parent).exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not scope.exists()
    which = "--system" if os.geteuid() == 0 else "--user"
    env = {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"}
    listed = subprocess.run(["systemctl", which, "list-units", "--all", "sandbox-*"], capture_output=True, env=env)
    assert listed.returncode == 0, listed.stderr
    assert scope.name not in listed.stdout.decode()


def test_a_memory_hog(run):
    told, done = run(["--memory", "48M", "--timeout", "120"], "head -c 500M /dev/zero | tail; echo survived")
    assert (told["cause"], told["signal"], done.stdout) == ("oom", 9, "")
    assert told["oom_kills"] > 0


def test_a_fork_bomb(run):
    bomb = "bomb() { while :; do bomb & done; }; bomb"
    told, done = run(["--pids", "40", "--timeout", "5", "--kill-after", "0.5"], bomb)
    assert (told["cause"], told["limit"]) in (("timeout", None), ("limit", "pids"))
    assert done.returncode in (124, 2)
    assert told["forks_refused"] > 0


def test_without_a_way_to_systemd(run_sandbox):
    """One line that says what to do."""
    run_sandbox.system = Undelegated()
    as_user = os.geteuid() != 0
    env = {"XDG_RUNTIME_DIR": None, "DBUS_SESSION_BUS_ADDRESS": None, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    done = run_sandbox(["run", "--pids", "40", "--", "true"], as_user=as_user, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
    assert ("no systemd of this user's" if as_user else "systemd makes no scope") in done.stderr
    assert ("XDG_RUNTIME_DIR" if as_user else "busctl") in done.stderr
