"""How a launch ends, and what the command finds; the same in every mode."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox.plan import Attach, Chdir, Mkdir, Run, Tree, UnsetEnv
from tests.native import only
from tests.support.launcher import below, memory_file, source


def test_exit_codes(native):
    native.check(native.plan(), "exit 42", "", 42)
    for argv, code, text in (
        (["no-such-command"], 127, "command not found"),
        (["/nowhere/at/all"], 127, "command not found"),
        ([str(native.tree / "f/x")], 127, "command not found"),
        ([str(native.tree / "broken")], 126, "interpreter"),
        ([str(native.tree / "f")], 126, "Permission denied"),
        (["/tmp"], 126, "Permission denied"),
        ([], 125, "no command"),
    ):
        got, out, err = native.run(native.plan(), *argv)
        assert (got, out, err.count("\n")) == (code, "", 1), err
        assert err.startswith("sandbox: ")
        assert text in err


def test_death_by_signal(native):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN):
        native.check(native.plan(), f"kill -{int(number)} $$", "", -number)


def test_signals_are_forwarded(native):
    script = "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    process = native.start(native.plan(), "sh", "-c", script)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert (process.communicate(timeout=10)[0], process.returncode) == ("usr1\n", 3)


def test_stop_and_continue(native):
    process = native.start(native.plan(), "sh", "-c", "echo ready; kill -STOP $$; echo again")
    assert process.stdout.readline() == "ready\n"
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert (process.communicate(timeout=10)[0], process.returncode) == ("again\n", 0)


def test_what_is_left_is_ended(native):
    script = "setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' & sleep 0.2; exit 3"
    native.check(native.plan(), script, "", 3)


def test_leave_running(native):
    script = "(echo x >$T/f; sleep 0.7; cat $T/f >$1/out) >/dev/null 2>&1 & exit 3"
    plan = native.plan(flags=1, death=False)
    assert native.run(plan, "sh", "-c", script, "sh", str(native.disk))[0] == 3
    native.check(native.plan(), "true", "")  # cleans nothing that lives
    assert len(os.listdir(native.home / "procdirs")) == 1
    deadline = time.monotonic() + 10
    while os.listdir(native.home / "records") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (native.disk / "out").read_text() == "x\n"
    assert native.run(plan, "true") == (0, "", "")


def test_dispositions(native):
    def ignore():
        for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    got, out, _ = native.run(native.plan(), "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status", then=ignore)
    # What the suite itself was started with ignored (a CI's wrapper may do that) stays so, but for PIPE and XFSZ.
    status = Path("/proc/self/status").read_text()
    before = int(status.split("SigIgn:")[1].split()[0], 16) & ~(1 << 12 | 1 << 24)
    assert (got, out) == (0, f"SigBlk:\t{0:016x}\nSigIgn:\t{before | 1 | 1 << 16:016x}\n")


@only("root", "userns", "root-userns")
def test_descriptors(native):
    reader, writer = os.pipe()
    fd = memory_file(native.plan())
    argv = [native.program, "run", str(fd), "-", "--", "sh", "-c", "ls -x /proc/$$/fd"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    got = subprocess.run(argv, pass_fds=(fd, writer), text=True, **pipes, **native.become())
    assert sorted(got.stdout.split()) == sorted(["0", "1", "2", str(writer)])
    for number in (fd, reader, writer):
        os.close(number)


@only("root", "userns", "root-userns")
def test_closed_standard_descriptors(native):
    listing = f"sh -c 'ls -x /proc/$$/fd > \"{native.disk}/out\"'"
    script = f'exec {native.program} run 9 - -- {listing} 9<"$1" 0<&- 1>&- 2>&-'
    (native.area / "plan").write_bytes(native.plan())
    assert subprocess.run(["sh", "-c", script, "sh", native.area / "plan"], **native.become()).returncode == 0
    assert "3" not in (native.disk / "out").read_text().split()


@only("root", "userns", "root-userns")
def test_environment(native):
    env = b"A=1\0B=x\ny\0GONE=1\0PATH=/usr/bin:/bin\0"
    _, out, _ = native.run(native.plan(UnsetEnv(b"GONE")), "env", "-0", env=env)
    assert [entry.partition("=")[0] for entry in out.split("\0")] == ["A", "B", "PATH", "T", ""]


@only("root", "userns", "root-userns")
def test_environment_of_the_program(native):
    """`-` in place of a descriptor: the command gets what the program was started with."""
    _, out, _ = native.run(native.plan(), "env", env=None, program_env={"A": "1", "PATH": "/usr/bin:/bin"})
    assert [entry.partition("=")[0] for entry in out.splitlines()] == ["A", "PATH", "T"]


def test_run_and_chdir(native):
    tree = source(native.tree)
    steps = [Tree(1, 0, 0), Mkdir(below("s/t"), 0o755), Attach(1, below("s/t"), 7)]
    plan = native.plan(*steps, Run(below("s/t"), b"tool"), Chdir(below("s/t")), sources=(tree,))
    assert native.run(plan, "a", "b c") == (0, "tool a b c\n", "")
    plan = native.plan(*steps, Chdir(below("s/t/sub")), sources=(tree,))
    native.check(plan, "cat g; touch x 2>/dev/null || echo ro", "g\nro\n")
    for path, code in ((b"f", 126), (b"sub", 126), (b"none", 127), (b"../../../../../bin/sh", 127)):
        got, _, err = native.run(native.plan(*steps, Run(below("s/t"), path), sources=(tree,)))
        assert (got, err.count("\n")) == (code, 1), err


@only("root", "userns", "root-userns")
def test_refusals(native):
    good = native.plan()
    native.refused(good[:-1], "cannot decode")
    native.refused(b"", "cannot decode")
    native.refused(bytes(3 << 20), "longer than")
    native.refused(good[:10] + b"\2" + good[11:], "setuid mode")
    native.refused(good[:12] + b"\1\0\0\0" + good[16:], "is for user 1")


@only("root")
@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["run"],
        ["run", "x", "-", "--"],
        ["run", "99", "-", "--", "true"],
        ["run", "0", "0", "--"],
        ["run", "0"],
    ],
)
def test_a_wrong_command_line(native, argv):
    got = subprocess.run([native.program, *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert (got.returncode, got.stderr.startswith("sandbox: ")) == (125, True)
