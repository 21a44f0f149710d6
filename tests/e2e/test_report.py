"""--report and --trace: what they say, where they go, and that they are there when a launch fails."""

import hashlib
import json
import os
import subprocess

import pytest

from tests.support import archives, reports
from tests.support.archives import Entry

ENGINES = ("python", "native")


@pytest.fixture(params=ENGINES)
def engine(request):
    return ["--engine", request.param]


def test_what_it_says(run_sandbox, engine, who, area):
    where = area.dir(who.as_user)
    archives.make_zip(where / "a.zip", [Entry("f", b"x")])
    (where / "d").mkdir()
    args = ["run", *engine, "--report", "r.json", "-s", "a.zip", "-d", "d", "--", "sh", "-c", "exit 3", "\udcff"]
    assert run_sandbox(args, as_user=who.as_user).returncode == 3
    told = reports.read(where / "r.json")
    assert told["command"] == ["sh", "-c", "exit 3", "\udcff"]
    assert (told["cause"], told["exit_code"], told["signal"]) == ("exited", 3, None)
    digest = "sha256:" + hashlib.sha256((where / "a.zip").read_bytes()).hexdigest()
    assert told["images"][0] == {"name": "a", "source": str(where / "a.zip"), "use": "static", "digest": digest}
    assert told["images"][1]["digest"] is None
    assert [mount["on"] for mount in told["mounts"]] == ["PROCDIR", "PROCDIR/static/a", "PROCDIR/dynamic/d"]
    assert [mount["read_only"] for mount in told["mounts"]] == [False, True, False]
    names = [phase["name"] for phase in told["phases"]]
    assert names.index("Prepare") < names.index("Unshare") < names.index("Exec") < names.index("Command")
    assert told["peak_memory_bytes"] > 0
    assert told["wall_seconds"] > 0
    assert (where / "r.json").stat().st_mode & 0o777 == 0o644
    assert (where / "r.json").stat().st_uid == who.uid


def test_processor_time_of_the_whole_job_counts(run_sandbox, engine, who, area):
    busy = "(sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done' & wait); exit 0"
    run_sandbox(["run", *engine, "--report", "r.json", "--", "sh", "-c", busy], as_user=who.as_user, check=True)
    assert reports.read(area.dir(who.as_user) / "r.json")["user_seconds"] > 0.02


def test_writing_is_counted(run_sandbox, engine, who, area):
    script = "dd if=/dev/zero of=x bs=1M count=8 conv=fsync 2>/dev/null; rm x"
    run_sandbox(["run", *engine, "--report", "r.json", "--", "sh", "-c", script], as_user=who.as_user, check=True)
    assert reports.read(area.dir(who.as_user) / "r.json")["written_bytes"] >= 8 << 20


def test_to_the_standard_output_after_the_command_s(run_sandbox, engine, who):
    done = run_sandbox(["run", *engine, "--report", "-", "--", "echo", "own"], as_user=who.as_user, check=True)
    first, rest = done.stdout.split("\n", 1)
    assert first == "own"
    assert reports.check(rest)["exit_code"] == 0


def test_to_a_descriptor_that_the_command_does_not_get(run_sandbox, engine, who):
    reader, writer = os.pipe()
    script = f"[ -e /proc/self/fd/{writer} ] && exit 1; exit 0"
    args = ["run", *engine, "--report", f"fd:{writer}", "--", "sh", "-c", script]
    run_sandbox(args, as_user=who.as_user, pass_fds=[writer], check=True)
    os.close(writer)
    with open(reader) as file:
        assert reports.check(file.read())["cause"] == "exited"


def test_of_a_killed_command(run_sandbox, engine, who, area):
    args = ["run", *engine, "--report", "r.json", "--", "sh", "-c", "kill -SEGV $$"]
    assert run_sandbox(args, as_user=who.as_user).returncode == -11
    told = reports.read(area.dir(who.as_user) / "r.json")
    assert (told["cause"], told["exit_code"], told["signal"]) == ("signalled", None, 11)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["-s", "none.zip", "--", "true"], 125),
        (["--timeout", "soon", "--", "true"], 125),
        (["--nofile", "2147483648", "--", "true"], 125),
        (["--", "/none/such"], 127),
        (["--"], 125),
    ],
)
def test_when_the_launch_fails(run_sandbox, engine, who, area, args, code):
    done = run_sandbox(["run", *engine, "--report", "r.json", *args], as_user=who.as_user)
    assert done.returncode == code
    told = reports.read(area.dir(who.as_user) / "r.json")
    assert (told["cause"], told["exit_code"]) == ("launcher", code)
    assert done.stderr == f"sandbox: {told['error']}\n"


def test_trace(run_sandbox, engine, who, area):
    run_sandbox(["run", *engine, "--trace", "t.json", "--", "true"], as_user=who.as_user, check=True)
    events = json.loads((area.dir(who.as_user) / "t.json").read_text())["traceEvents"]
    assert {"Prepare", "Unshare", "Exec", "Command", "Clean up"} <= {event["name"] for event in events}
    for event in events:
        assert event.keys() == {"name", "ph", "pid", "tid", "ts", "dur"}
        assert event["ph"] == "X"


def test_show(run_sandbox, who, area):
    args = ["run", "--timeout", "0.2", "--report", "r.json", "--", "sleep", "1000"]
    assert run_sandbox(args, as_user=who.as_user).returncode == 124
    shown = run_sandbox(["report", "show", "r.json"], as_user=who.as_user, check=True).stdout
    assert "its time was up" in shown
    assert "sleep 1000" in shown
    assert "Unshare" in shown
    other = '{"schema": 2, "cause": "exited", "phases": []}'
    torn = '{"schema": 1, "cause": "exited", "phases": [1], "limit": null, "command": [], "error": null}'
    for text in ("{}", "no json", other, torn, "[" * 100_000):
        (area.dir(who.as_user) / "bad.json").write_text(text)
        done = run_sandbox(["report", "show", "bad.json"], as_user=who.as_user)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "no report" in done.stderr


@pytest.mark.parametrize("where", ["none/such/r.json", "", "d/", "..", "fd:99", "fd:", "fd:x", "/proc/r.json"])
def test_a_place_that_is_none_is_refused_before_the_command_runs(run_sandbox, engine, who, area, where):
    (area.dir(who.as_user) / "d").mkdir()
    args = ["run", *engine, f"--report={where}", "--", "touch", "ran"]
    done = run_sandbox(args, as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "--report: " in done.stderr
    assert not (area.dir(who.as_user) / "ran").exists()


def test_faster_than_it_is_read(run_sandbox, engine, who, area):
    """Nobody reads: the command blocks, and its time ends all the same."""
    args = ["run", *engine, "--timeout", "0.3", "--report", "r.json", "--", "yes"]
    process = run_sandbox.popen(args, as_user=who.as_user, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.wait(20) == 124
    assert reports.read(area.dir(who.as_user) / "r.json")["cause"] == "timeout"


@pytest.mark.parametrize(
    "options",
    [
        ["--trace", "same", "--report", "d/../same"],
        ["--log", "same", "--report", "same"],
        ["--log", "same", "--trace", "link/../same"],
        ["--log", "same", "--report", "same.1"],
        ["--keep", "kx=new", "--report", "new"],
        ["--keep", "kx=d/", "--report", "link/kx"],
        ["--keep", "kx=new", "--log", "new"],
        ["--keep", "kx=new", "--keep", "ky=./new"],
    ],
    ids=" ".join,
)
def test_each_file_has_a_place_of_its_own(run_sandbox, who, area, options):
    """The one that is written later would take the place of the other: also of one that is there from before."""
    where = area.dir(who.as_user)
    (where / "d").mkdir()
    (where / "link").symlink_to("d")
    (where / "same").write_text("from before\n")
    for name in ("d", "same"):
        os.chown(where / name, who.uid, who.gid)
    done = run_sandbox(["run", "--isolation", "job", *options, "--", "sh", "-c", "echo ran"], as_user=who.as_user)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
    assert f"{options[0]} and {options[2]} name one and the same file" in done.stderr
    # What is wrong with the words is found before they are looked at as a whole.
    early = run_sandbox(["run", "--timeout", "soon", *options, "--", "true"], as_user=who.as_user)
    assert (early.returncode, early.stderr.count("\n")) == (125, 1), early.stderr
    assert (where / "same").read_text() == "from before\n"


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize("what", ["report", "trace"])
def test_what_cannot_be_written_is_called_by_its_name(run_sandbox, user, engine, what):
    with open("/dev/full", "w") as full:
        options = ["--engine", engine, f"--{what}", f"fd:{full.fileno()}"]
        done = run_sandbox(["run", *options, "true"], as_user=user.as_user, pass_fds=[full.fileno()])
    assert f"cannot write the {what}: No space left on device" in done.stderr
    assert f"only its {what} is missing" in done.stderr


@pytest.mark.parametrize("option", ["--status-fd", "--report", "--trace"])
def test_a_descriptor_that_is_passed_on_as_well(run_sandbox, user, option):
    with open("/dev/null", "w") as null:
        number = str(null.fileno())
        options = ["--isolation", "job", option, number if option == "--status-fd" else f"fd:{number}"]
        words = ["run", *options, "--pass-fd", number, "true"]
        done = run_sandbox(words, as_user=user.as_user, pass_fds=[null.fileno()])
    assert done.returncode == 125
    assert f"{option} and --pass-fd name the same descriptor" in done.stderr
