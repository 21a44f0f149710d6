"""For programs that drive it: --args and --status-fd."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.jobs import spare_python


class Status:
    """The lines of a run's status, as they come."""

    def __init__(self, reader):
        self.file = open(reader)  # noqa: SIM115 (closed by the fixture)

    def next(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def rest(self):
        with self.file:
            return [json.loads(line) for line in self.file]


@pytest.fixture
def start(launch):
    """`start(*words)`: a process, and its status."""
    opened = []

    def begin(*words, **options):
        reader, writer = os.pipe()
        process = launch("--status-fd", str(writer), *words, popen=True, pass_fds=[writer], **options)
        os.close(writer)
        opened.append(Status(reader))
        return process, opened[-1]

    begin.mode, begin.engine = launch.mode, launch.engine
    yield begin
    for status in opened:
        status.file.close()


# With the level as it is, with one that has no init, beside an attendant, and with a log.
KINDS = {
    "job": [],
    "pid 1": ["--as-pid-1"],
    "none": ["--isolation", "none"],
    "strict": ["--isolation", "strict"],
    "kept": ["--keep", "sh=kept"],
    "log": ["--log", "log"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_ready_started_ended(start, kind):
    """The pid is the command's own, as the host sees it; it is told while the command runs."""
    if kind not in ("job", "none"):
        spare_python(start)
    process, status = start(*KINDS[kind], "--", "sh", "-c", "read line; exit 3", stdin=-1, stderr=-1)
    ready, started = status.next(), status.next()
    level = kind if kind in ("none", "strict") else "job"
    told = {"event": "ready", "pid": process.pid, "mode": start.mode, "engine": start.engine, "level": level}
    # Where sandbox is installed in a namespace of the test's, that is another process.
    assert ready == told or start.mode == "setuid"
    assert started.keys() == {"event", "pid"}
    assert started["event"] == "started"
    assert Path(f"/proc/{started['pid']}/cmdline").read_bytes() == b"sh\0-c\0read line; exit 3\0"
    process.communicate("\n", timeout=30)
    (ended,) = status.rest()
    assert ended.pop("ended")
    assert ended == {
        "event": "ended",
        "cause": "exited",
        "limit": None,
        "error": None,
        "exit_code": 3,
        "signal": None,
    }


@pytest.mark.parametrize(
    ("words", "cause", "code", "killed_by"),
    [
        (["--timeout", "0.3", "--", "sleep", "1000"], "timeout", None, signal.SIGTERM),
        (["--", "sh", "-c", "kill -9 $$"], "signalled", None, signal.SIGKILL),
        (["--", "true"], "exited", 0, None),
    ],
)
def test_how_it_ended(start, words, cause, code, killed_by):
    """`started` comes before `ended`, however short the run was."""
    process, status = start(*words, stderr=-1)
    process.wait(30)
    events = status.rest()
    assert [event["event"] for event in events] == ["ready", "started", "ended"]
    assert (events[2]["cause"], events[2]["exit_code"], events[2]["signal"]) == (cause, code, killed_by)


@pytest.mark.parametrize(
    ("words", "code", "events"),
    [
        (["--", "no-such-command"], 127, ["ready", "ended"]),
        (["--nofile", "2147483648", "--", "true"], 125, ["ready", "ended"]),
        (["-s", "no-such-source", "--", "true"], 125, ["ended"]),
        (["--memory", "x", "--", "true"], 125, ["ended"]),
    ],
)
def test_what_does_not_start(start, words, code, events):
    if code != 127:
        spare_python(start)
    process, status = start(*words, stderr=-1)
    line = process.stderr.read()
    assert process.wait(30) == code
    told = status.rest()
    assert [event["event"] for event in told] == events
    assert (told[-1]["cause"], told[-1]["exit_code"]) == ("launcher", code)
    assert line == f"sandbox: {told[-1]['error']}\n"


def test_the_command_has_no_part_in_it(run_sandbox, who):
    """Neither of the status nor of the options' descriptor."""
    reader, writer = os.pipe()
    options, given = os.pipe()
    os.write(given, b"--status-fd\0%d\0-e\0A=from there\0" % writer)
    os.close(given)
    script = f'echo "$A"; for fd in {writer} {options}; do [ -e /proc/self/fd/$fd ] && echo has $fd; done; :'
    words = ["run", "--args", str(options), "-e", "B=1", "--", "sh", "-c", script]
    done = run_sandbox(words, as_user=who.as_user, pass_fds=[writer, options], check=True)
    os.close(writer)
    os.close(options)
    assert done.stdout == "from there\n"
    assert [event["event"] for event in Status(reader).rest()] == ["ready", "started", "ended"]


def test_a_status_that_nobody_reads(run_sandbox, who):
    """It stops nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    for engine in ("python", "auto"):
        words = ["run", "--engine", engine, "--status-fd", str(writer), "--", "echo", "done"]
        done = run_sandbox(words, as_user=who.as_user, pass_fds=[writer])
        assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    os.close(writer)


def test_words_are_in_their_place(run_sandbox, who, area):
    """What stands behind --args wins; values are any bytes; a --args in a value is a value."""
    options = area.path / "options"
    options.write_bytes(b"--env\0A=1\0--env=B=\n \xff\0-e\0C=--args\0")
    script = 'printf "%s|" "$A" "$B" "$C"'
    for given, wanted in ((["--args", "0", "-e", "A=2"], "2"), (["-e", "A=2", "--args=0"], "1")):
        with options.open() as file:
            words = ["run", *given, "--", "sh", "-c", script]
            done = run_sandbox(words, as_user=who.as_user, check=True, stdin=file)
        assert done.stdout.encode(errors="surrogateescape") == wanted.encode() + b"|\n \xff|--args|"
    done = run_sandbox(["run", "--args", "0", "--", "echo", "nothing"], as_user=who.as_user, check=True)
    assert done.stdout == "nothing\n"


@pytest.mark.parametrize(
    ("words", "given", "why"),
    [
        (["--args", "77"], "", "cannot read descriptor 77: Bad file descriptor"),
        (["--args", "x"], "", "'x' is not a descriptor"),
        (["--args", "1"], "", "cannot read descriptor 1"),
        (["--args", "0"], "true\0", "'true' is no option"),
        (["--args", "0"], "--cache\n", "unrecognized arguments: --cache"),
        (["--args", "0"], "--env\0A=1\0" * 200000, "are those options?"),
        (["--status-fd", "77"], "", "descriptor 77 is not open for writing"),
        (["--status-fd", "0"], "", "'0' is not a descriptor above 0"),
    ],
)
def test_refused(run_sandbox, who, words, given, why):
    with open(os.devnull, "w") as null:
        done = run_sandbox(["run", *words, "--", "true"], as_user=who.as_user, input=given, stdout=null, stderr=-1)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
    assert why in done.stderr
