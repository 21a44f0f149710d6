"""What is said: steps with -v as they happen, tracebacks with --debug only, no colours where they are not wanted."""

import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sandbox.engine import native
from tests.support.archives import Entry, make_zip
from tests.support.jobs import Terminal, spare_python

NATIVE = pytest.mark.skipif(not native.available(), reason="without the front, Python itself says where it was met")


def test_steps_as_they_happen(launch):
    """All of them, in order, when the launch succeeds; up to the one that fails, when one does."""
    explained = launch("--explain", "--", "true", check=True).stdout.splitlines()
    steps = [line[6:] for line in explained if re.match(r" *\d+  ", line)]
    done = launch("-v", "--", "true", check=True)
    lines = [line.removeprefix("sandbox: ") for line in done.stderr.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("mode ")) + 1
    # Whose job it is is another uid each time.
    plain = [[re.sub(r"\d+", "N", line) for line in found] for found in (lines[at:], steps)]
    assert plain[0] == plain[1]
    failing = launch("-v", "--nofile", "2147483648", "--", "true")
    assert failing.returncode == 125
    told = failing.stderr.splitlines()
    assert len(told) > len(steps)
    assert "open files to 2147483648" in told[-1]
    assert launch("--", "true", check=True).stderr == ""


def test_they_come_while_the_launch_goes_on(launch):
    """Not when all is over."""
    spare_python(launch)
    process = launch("-v", "--", "cat", popen=True, stdin=-1, stderr=-1, stdout=-1)
    told = ""
    while "seccomp filter" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    process.communicate(timeout=30)


def test_a_reader_that_is_slow(launch):
    """The command starts, and ends, while its supervisor cannot write: its end is still the run's."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(size - 500))
    process = launch("-v", "--", "sh", "-c", "echo ready; sleep 0.2; exit 7", popen=True, stdout=-1, stderr=writer)
    os.close(writer)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until it has ended
    with open(reader) as told:
        assert "seccomp filter" in told.read()
    assert process.wait(30) == 7


def test_a_traceback_only_with_debug(run_sandbox, who):
    plain = run_sandbox(["run", "-s", "no-such", "--", "true"], as_user=who.as_user)
    debug = run_sandbox(["--debug", "run", "-s", "no-such", "--", "true"], as_user=who.as_user)
    assert plain.stderr.count("\n") == 1
    assert debug.stderr.startswith("Traceback (most recent call last):")
    assert debug.stderr.endswith(plain.stderr)
    assert (plain.returncode, debug.returncode) == (125, 125)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_bug_is_one_line_too(debug):
    """Whatever a command raises."""
    script = "from sandbox.cli import main, run\nrun.main = lambda words: 1 // 0\nmain.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *debug, "run", "true"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 125
    assert ("Traceback" in done.stderr) == bool(debug)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sandbox: internal error: ZeroDivisionError: ")
    assert debug or done.stderr.count("\n") == 1


@NATIVE
@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["ps"], ["ps", "--help"], ["cache", "ls"], ["config"], ["run", "--explain", "true"]],
)
@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_an_output_that_cannot_be_written(run_sandbox, who, words, env):
    """Is named, and the end is no success; but who reads no more, as head, knows."""
    with open("/dev/full", "w") as full:
        done = run_sandbox(words, as_user=who.as_user, env=env, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 125
    assert done.stderr == (
        "sandbox: cannot write to standard output: No space left on device"
        " (make room there, or redirect it to where it can be written)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        done = run_sandbox(words, as_user=who.as_user, env=env, stdout=nobody, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_output_that_does_not_block(run_sandbox, who):
    """As an event loop leaves a pipe that it shares."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader), open(writer, "w") as pipe:
        os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
        done = run_sandbox(["--version"], as_user=who.as_user, stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 125
    assert "cannot write to standard output: Resource temporarily unavailable" in done.stderr


@pytest.mark.parametrize("most", [5, 8])
def test_too_few_open_files(run_sandbox, who, area, most):
    """The limit is named, and no other home would help."""
    make_zip(area.dir(who.as_user) / "s.zip", [Entry("f", b"x")])
    lower = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # noqa: E731
    done = run_sandbox(["run", "-s", "s.zip", "--", "true"], as_user=who.as_user, preexec_fn=lower)
    assert done.returncode == 125
    assert "Too many open files" in done.stderr
    assert done.stderr.endswith("(raise the limit of open files: ulimit -n)\n")
    assert most == 5 or f", of which there may be {most} " in done.stderr


_WRONG = (
    # Layers above the first have no name of their own, which could be in the wrong place.
    (["run", "-s", "src+nosuch", "true"], "--static: cannot open nosuch: No such file or directory (check the path)"),
    (["run", "-s", "s.zip:nosuch", "true"], "(the name comes first: --static nosuch:s.zip)"),
    (["run", "-s", "/:s.zip", "true"], "must be an absolute path without '..', and not / (the root itself is --root"),
    (["run", "-s", "/etc/passwd:s.zip", "true"], "cannot mount on /etc/passwd: Not a directory (name a directory)"),
    (["run", "--mkdir", "-s", "/etc/passwd:s.zip", "true"], "Not a directory (name a directory)"),
    (["run", "-s", "/no/such:s.zip", "true"], "(create the directory, or let --mkdir do it)"),
    (["run", "--bind", "s.zip:etc/x", "true"], "--bind: 'etc/x' must be an absolute path"),
    (["run", "--bind-try", "s.zip:etc/x", "true"], "--bind-try: 'etc/x' must be an absolute path"),
    (["run", "--bind", "nosuch:etc/x", "true"], "cannot open nosuch:etc/x: No such file or directory"),
    (["image", "import", "/dev/zero"], "cannot import /dev/zero: it is not a regular file (name an image)"),
    (["inspect", "a", "b"], "sandbox inspect: unrecognized arguments: b (see sandbox inspect --help)"),
    (["ps", "x"], "(see sandbox ps --help)"),
    (["cache", "ls", "x"], "(see sandbox cache ls --help)"),
    (["cache"], "arguments are required: ACTION (see sandbox cache --help)"),
    (["image"], "arguments are required: ACTION (see sandbox image --help)"),
    (["exec", "--nosuch", "ID"], "(see sandbox exec --help)"),
    ([], "there is no command (sandbox --help lists them)"),
    ([""], "there is no command ''"),
    (["--debug"], "there is no command (sandbox --help lists them)"),
)


@pytest.mark.parametrize(("words", "says"), _WRONG, ids=[" ".join(words) for words, _ in _WRONG])
def test_what_is_wrong_and_what_to_do(run_sandbox, user, area, words, says):
    where = area.dir(True)
    make_zip(where / "s.zip", [Entry("f", b"x")])
    (where / "src").mkdir()
    done = run_sandbox(words, as_user=True)
    assert (done.returncode, done.stdout) == (125, "")
    assert says in done.stderr.splitlines()[-1]


def test_an_interrupt_while_it_starts(run_sandbox, who):
    """Ctrl-C ends it as it ends others, silently: in the front, while Python starts, and when it has."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [run_sandbox.popen(["ps"], as_user=who.as_user, **pipes) for _ in range(10)]
    for process in reversed(started):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert {said for said, _ in ends} == {""}
    assert {code for _, code in ends} <= {-signal.SIGINT, 0}


@NATIVE
def test_an_interrupt_waits_until_python_can_take_it(run_sandbox, who, area):
    """Where the caller has not blocked it, which Python is told; what it starts sees neither."""
    show = (
        "import os; print('SANDBOX_HELD' in os.environ, *(x for x in open('/proc/self/status') if x[:6] == 'SigBlk'))"
    )
    # One that every identity may execute.
    python = run_sandbox.command.with_name("sandbox-python").read_text().splitlines()[0].removeprefix("#!")
    front = area.path / "client" / "sandbox"
    front.parent.mkdir()
    shutil.copy(run_sandbox.command, front)
    beside = front.with_name("sandbox-python")
    beside.write_text(f"#!{python}\n{show}\n")
    beside.chmod(0o755)
    blocking = "import os, signal, sys; signal.pthread_sigmask(0, [2]); os.execv(sys.argv[1], sys.argv[1:])"
    own = [run_sandbox.command, "run", "--no-plan-cache", "--", python, "-c", show]
    for words, first, second in (([front, "ps"], "True", "False"), (own, "False", "False")):
        for before, told in (([], first), ([python, "-c", blocking], second)):
            options = {**who.popen_options(), "env": run_sandbox.environment(who.as_user), "cwd": area.dir(who.as_user)}
            done = subprocess.run([*before, *words], capture_output=True, text=True, check=True, timeout=60, **options)
            held, _, mask = done.stdout.split()
            # Of the command's mask it is the caller's that counts.
            assert (held, bool(int(mask, 16) & 2)) == (told, bool(before) or words[0] is front), done


def test_a_long_value_is_not_said_whole(launch):
    """By the command line, and by the engine that cannot execute a name like this."""
    path = "/" + "x" * 5000
    for words in (
        ["-s", "x" * 5000, "--", "true"],
        ["--", "x" * 3000],
        *([name, path, "--", "true"] for name in ("--chdir", "--hide", "--tmpfs")),
    ):
        refused = launch(*words)
        assert refused.returncode in (125, 126, 127)
        assert refused.stderr.startswith("sandbox: ")
        assert refused.stderr.count("\n") == 1
        assert re.search(r"x{400,} \[\.\.\. [0-9]+ characters \.\.\.\] x{400,}", refused.stderr)
        assert len(refused.stderr) < 1300


def test_a_fifo_keeps_nobody_waiting(run_sandbox, who, area):
    """No FIFO with a name, which may never have a writer; a pipe that a shell passes on is read to its end."""
    fifo = area.dir(who.as_user) / "fifo"
    os.mkfifo(fifo)
    for words in (["run", "--env-file", fifo], ["run", "--seccomp", fifo, "--isolation", "job"], ["report", "show"]):
        refused = run_sandbox([*words, *([fifo] if words[0] == "report" else ["--", "true"])], as_user=who.as_user)
        assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
        assert f"{fifo} is a FIFO (name a file, or" in refused.stderr
    reader, writer = os.pipe()
    os.fchown(reader, who.uid, -1)
    command = ["run", "--env-file", f"/dev/fd/{reader}", "--", "sh", "-c", "echo $A"]
    process = run_sandbox.popen(command, as_user=who.as_user, stdout=subprocess.PIPE, pass_fds=[reader])
    os.close(reader)
    with open(writer, "w") as file:
        file.write("A=passed\n")
    assert process.communicate(timeout=60)[0] == "passed\n"
    endless = run_sandbox(["run", "--env-file", "/dev/zero", "--", "true"], as_user=who.as_user)
    assert (endless.returncode, endless.stderr.count("\n")) == (125, 1)


def test_no_colour_where_none_is_wanted(run_sandbox, who):
    """NO_COLOR, https://no-color.org; and no colour ever where there is no terminal."""
    for env, wanted in (({"NO_COLOR": "1"}, False), ({}, None)):
        with Terminal() as terminal:
            options = terminal.popen_options()
            process = run_sandbox.popen(["doctor"], as_user=who.as_user, env={"TERM": "xterm", **env}, **options)
            process.wait(60)
            os.set_blocking(terminal.main, False)
            shown = b"".join(iter(lambda t=terminal: _read(t.main), b""))
        assert shown
        assert wanted is None or (re.search(rb"\x1b\[[0-9;]*3[0-9]m", shown) is not None) == wanted
    assert "\x1b" not in run_sandbox(["doctor"], as_user=who.as_user, env={"TERM": "xterm"}).stdout


def _read(fd):
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
