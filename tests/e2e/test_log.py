"""--log: bounded, and in nobody's way."""

import fcntl
import os
import signal
import struct
import subprocess
import termios
import time

import pytest

from tests.support.jobs import Terminal, spare_python


def test_bounded(run_sandbox, who, area):
    """Neither file is larger than asked for, and what is in them is the end of what was written, whole."""
    where = area.dir(who.as_user)
    (where / "log").write_text("from an earlier run\n")
    os.chown(where / "log", who.uid, who.gid)
    words = ["run", "--log", "log", "--log-size", "64K"]
    done = run_sandbox([*words, "--", "sh", "-c", "echo; seq 50000"], as_user=who.as_user, check=True)
    old, new = ((where / name).read_text() for name in ("log.1", "log"))
    assert max(len(old), len(new)) <= 64 << 10 < len(old) + len(new)
    assert done.stdout.endswith(old + new)
    assert done.stdout == "\n" + "".join(f"{number}\n" for number in range(1, 50001))
    run_sandbox([*words, "--", "echo", "more"], as_user=who.as_user, check=True)
    assert (where / "log").read_text() == new + "more\n"


def test_a_reader_that_is_gone(launch):
    """The command is told as it is without a log, and the run ends."""
    reader, writer = os.pipe()
    process = launch("--log", "log", "--", "sh", "-c", "yes; echo $? >&2", popen=True, stdout=writer, stderr=-1)
    os.close(writer)
    assert os.read(reader, 2) == b"y\n"
    os.close(reader)
    assert process.stderr.read() == f"{128 + signal.SIGPIPE}\n"
    assert process.wait(30) == 0


@pytest.mark.parametrize("forced", [["--timeout", "1.5"], []], ids=["time", "signal"])
def test_a_reader_that_does_not_read(launch, area, forced):
    """Its pipe is full: the command waits, the other stream goes on, and an end by force comes all the same."""
    spare_python(launch)
    reader, writer = os.pipe()
    # At its timeout a job is asked as a whole: `yes` may have gone already.
    script = "yes & trap 'kill %1 2>/dev/null' TERM; echo begun >&2; wait; echo asked >&2"
    process = launch(*forced, "--log", "log", "--", "bash", "-c", script, popen=True, stdout=writer, stderr=-1)
    os.close(writer)
    assert process.stderr.readline() == "begun\n"
    if not forced:
        # Only now is the pipe known to be full: the rest waits in pipes of the log's.
        _wait_until_full(reader)
        process.terminate()
    assert process.wait(60) == (124 if forced else 0)
    assert process.stderr.readline() == "asked\n"
    os.close(reader)


def _wait_until_full(reader):
    capacity = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    deadline = time.monotonic() + 30
    while struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0] <= capacity - 4096:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_slow_reader_gets_everything(run_sandbox, who):
    """Also what it takes only after the command has ended."""
    reader, writer = os.pipe()
    process = run_sandbox.popen(
        ["run", "--log", "log", "--", "seq", "40000"], as_user=who.as_user, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _wait_until_full(reader)
    with open(reader) as file:
        assert file.read() == "".join(f"{number}\n" for number in range(1, 40001))
    assert process.wait(30) == 0


def test_one_order_where_both_are_one_file(launch, area):
    script = "for i in 1 2 3; do echo $i; echo $i >&2; done"
    done = launch("--log", "log", "--", "sh", "-c", script, stderr=-2, stdout=-1)
    assert done.stdout == "1\n1\n2\n2\n3\n3\n"


def test_closed_descriptors(run_sandbox, who, area):
    """What nobody is to get is in the log all the same."""
    shell = 'exec "$0" run --log log -- sh -c "echo a; echo b >&2" >&- 2>&-'
    env = run_sandbox.environment(who.as_user)
    subprocess.run(
        ["sh", "-c", shell, run_sandbox.command], env=env, cwd=area.dir(who.as_user), **who.popen_options(), check=True
    )
    assert sorted((area.dir(who.as_user) / "log").read_text().split()) == ["a", "b"]


def test_a_terminal_of_its_own(launch, area):
    with Terminal() as terminal:
        process = launch(
            "-t", "--log", "log", "--", "sh", "-c", "tty; stty size", popen=True, **terminal.popen_options()
        )
        terminal.expect("/dev/pts/0\r\n")
        assert process.wait(30) == 0
    assert (area.dir(launch.as_user) / "log").read_bytes() == b"/dev/pts/0\r\n24 80\r\n"


def test_refused(run_sandbox, who, area):
    """In one line, with nothing left behind, whatever has that name."""
    where = area.dir(who.as_user)
    (where / "directory").mkdir()
    os.mkfifo(where / "fifo")
    (where / "link").symlink_to("elsewhere")
    (where / "taken.1").mkdir()
    run = ["run", "--log"]
    for words, why in (
        ([*run, "directory", "--", "true"], "is there and no regular file"),
        ([*run, "fifo", "--", "true"], "is there and no regular file"),
        ([*run, "link", "--", "true"], "is there and no regular file"),
        ([*run, "taken", "--", "true"], "taken.1 is there and no regular file"),
        ([*run, "no/such", "--", "true"], "No such file or directory"),
        ([*run, "/", "--", "true"], "Is a directory"),
        ([*run, "log", "--log-size", "100", "--", "true"], "at least 4096 bytes"),
        ([*run, "log", "--leave-running", "--", "true"], "leave one of them out"),
        ([*run, "log", "--report", "-", "--", "true"], "write the report to a file"),
        ([*run, "log", "-s", "no-such-source", "--", "true"], "no-such-source"),
    ):
        done = run_sandbox(words, as_user=who.as_user)
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
        assert why in done.stderr
        assert "fd:" not in done.stderr, "a log is a file"
    assert set(os.listdir(where)) - {"sandbox-home"} == {"directory", "fifo", "link", "taken.1"}


def test_another_run_writes_to_it(run_sandbox, who, area):
    first = run_sandbox.popen(
        ["run", "--log", "log", "--", "sh", "-c", "echo begun; read line"],
        as_user=who.as_user,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout.readline() == "begun\n"
    second = run_sandbox(["run", "--log", "log", "--", "echo", "never"], as_user=who.as_user)
    assert (second.returncode, second.stdout) == (125, "")
    assert "another run writes to it" in second.stderr
    first.communicate("\n", timeout=30)
    assert (area.dir(who.as_user) / "log").read_text() == "begun\n"


def test_the_log_of_a_users_run_cannot_be_roots(run_sandbox, who, area):
    if not who.as_user:
        pytest.skip("root may write everywhere")
    theirs = area.path / "theirs"
    theirs.write_text("")
    done = run_sandbox(["run", "--log", theirs, "--", "true"], as_user=True)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "belongs to somebody else" in done.stderr


def test_a_log_that_cannot_go_on(run_sandbox, who, area):
    """The command goes on, its output is passed on, and the exit code says that something is missing."""
    for code, wanted in (("0", 125), ("7", 7)):
        words = ["run", "--log", "log", "--log-size", "4K", "--", "sh", "-c", "mkdir log.1; seq 5000; exit $0", code]
        done = run_sandbox(words, as_user=who.as_user)
        assert (done.returncode, done.stdout.count("\n")) == (wanted, 5000)
        assert done.stderr == "sandbox: warning: the log log is not complete: Is a directory\n"
        (area.dir(who.as_user) / "log.1").rmdir()


@pytest.mark.parametrize("engine", ["python", "native"])
def test_output_that_cannot_be_passed_on(run_sandbox, who, area, engine):
    """The command goes on, the log has all of it, and neither a line nor the exit code says that all is well."""
    script = "seq 30000; sleep 0.2; seq 30000; exit $0"
    for code, wanted in (("0", 125), ("7", 7)):
        with open("/dev/full", "wb") as full:
            words = ["run", "--engine", engine, "--log", "log", "--", "sh", "-c", script, code]
            process = run_sandbox.popen(words, as_user=who.as_user, stdout=full, stderr=subprocess.PIPE)
            _, err = process.communicate(timeout=60)
        assert process.returncode == wanted
        told = "sandbox: warning: the standard output is in the log log alone: No space left on device\n"
        assert err == told
        assert (area.dir(who.as_user) / "log").read_text() == "".join(f"{number}\n" for number in range(1, 30001)) * 2
        (area.dir(who.as_user) / "log").unlink()


def test_a_log_whose_place_the_job_may_write_to(launch, area):
    """It gives the name of its log to a link, or to another file of the workspace: nothing is written there."""
    fill = "seq 3000; sleep 0.2; seq 3000"
    where = area.dir(launch.as_user)
    for trick in ("ln -s ../victim log", "ln victim log", "mkfifo log"):
        script = f"echo safe > victim; rm -f log log.1; {trick}; {fill}"
        done = launch("--workspace", "rw", "--log", "log", "--log-size", "8K", "--", "sh", "-c", script, cwd=where)
        assert "the log log is not complete" in done.stderr, done.stderr
        assert (where / "victim").read_text() == "safe\n"
        (where / "log").unlink()
