"""Jobs that take what they get: each ends within its limits, with the cause in the report, and leaves nothing."""

import os

import pytest

from tests.support import bombs, jobs, reports

# Each prints what it got before it was refused.
_FORKS = """
import os, time
born = 0
try:
    while born < 300:
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        born += 1
except BlockingIOError:
    print(born < 60)
"""
_HOG = """
try: x = b"x" * (1 << 30)
except MemoryError: print(True)
"""
_LOOP = "while :; do sleep 1; done"
_BOMB = "bomb() { while :; do bomb & done; }; bomb"
_SOON = ("--timeout", "0.5", "--kill-after", "0.2s")
# Options, script, and how it ends: exit code, and cause with the limit.
BOMBS = {
    "ignores TERM": (_SOON, f"trap '' TERM; {_LOOP}", 124, "timeout"),
    "daemonises": (_SOON, f"(setsid sh -c 'trap \"\" TERM HUP; {_LOOP}' &); {_LOOP}", 124, "timeout"),
    "leaves daemons": ((), f"(setsid sh -c 'trap \"\" TERM HUP; {_LOOP}' >/dev/null 2>&1 &); exit 4", 4, "exited"),
    "closes everything": (_SOON, f"exec 0<&- 1>&- 2>&-; {_LOOP}", 124, "timeout"),
    "stops itself": (_SOON, "kill -STOP $$", 124, "timeout"),
    "writes a large file": (("--fsize", "1M"), "exec head -c 8M /dev/zero > f", -25, "limit fsize"),
    "forks": (("--limits", "best-effort", "--pids", "60", *_SOON), f"{_BOMB} & while :; do :; done", 124, "timeout"),
    "fills its tmpfs": (("--tmpfs-size", "8M"), "head -c 64M /dev/zero > /tmp/f; test $? = 1 && exit 5", 5, "exited"),
    "uses the processor": (("--cpu-time", "1"), "while :; do :; done", -24, "limit cpu-time"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_it_ends_within_its_limits(launch, area, name):
    jobs.spare_python(launch)
    options, script, code, cause = BOMBS[name]
    done = launch(*options, "--report", "r.json", "--", "sh", "-c", script)
    told = reports.read(area.dir(launch.as_user) / "r.json")
    assert (done.returncode, " ".join(filter(None, (told["cause"], told["limit"])))) == (code, cause), done.stderr


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_output_that_nobody_reads(launch, area, where):
    """The job waits for its reader, and the launcher for neither, also where it has something to say itself."""
    if where == "stderr" and launch.mode != "userns" and "SANDBOX_SOAK" not in os.environ:
        pytest.skip("takes the launcher's patience: in every mode in make soak only")
    words = [*_SOON, "--report", "r.json", "--", "sh", "-c", "yes >&2" if where == "stderr" else "yes"]
    process = launch(*words, popen=True, **{where: -1})
    assert process.wait(60) == 124
    assert reports.read(area.dir(launch.as_user) / "r.json")["cause"] == "timeout"


@pytest.mark.parametrize("bomb", [_FORKS, _HOG], ids=["forks", "memory"])
def test_without_a_cgroup(launch, area, bomb):
    """With limits of each process or user instead, as --limits best-effort has it; a cgroup's memory is no refusal."""
    words = ["--limits", "best-effort", "--pids", "60", "--memory", "256M", "--timeout", "30", "--report", "r.json"]
    done = launch(*words, "--", "/usr/bin/python3", "-c", bomb)
    told = reports.read(area.dir(launch.as_user) / "r.json")
    how = ("", -9, "oom") if told["oom_kills"] else ("True\n", 0, "exited")
    assert (done.stdout, done.returncode, told["cause"]) == how, done.stderr


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_the_host_goes_on(launch, identities, area, name):
    """With what limits there are here; tests/e2e/test_cgroup_bombs.py has a cgroup for each."""
    jobs.spare_python(launch)
    bombs.explode(name, launch, identities[launch.as_user], area)


def test_a_terminal_that_nobody_reads(launch, area):
    """The caller takes nothing of what the job prints: its end comes all the same."""
    jobs.spare_python(launch)
    with jobs.Terminal() as terminal:
        os.fchown(terminal.own, area.dir(launch.as_user).stat().st_uid, -1)  # as login(1) does
        options = {**terminal.popen_options(), "stderr": -3}  # what sandbox itself says is not in question
        process = launch(*_SOON, "-t", "--", "sh", "-c", "trap '' TERM; yes", popen=True, **options)
        code = process.wait(60)
    assert code == 124
