"""`sandbox ci run`: marks in the log, the limit that failed, JUnit, signals, and what a hostile job makes of them."""

import json
import os
import re
import signal
import subprocess
import xml.etree.ElementTree as ET

import pytest

from tests.support import escapes, reports


def _ci(run_sandbox, who, *words, **options):
    return run_sandbox(["ci", "run", *words], as_user=who.as_user, **options)


def test_a_job_between_marks(run_sandbox, who):
    done = _ci(run_sandbox, who, "--title", "unit tests", "--", "sh", "-c", "id -u; exit 0")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[0], lines[2]) == (0, "sandbox: begin: unit tests", "sandbox: end: unit tests")
    assert who.as_user or lines[1] != "0", "the level is job"


def test_a_long_command_has_a_short_title(run_sandbox, user):
    done = _ci(run_sandbox, user, "--", "sh", "-c", f"exit 3 # {'x' * 9000}")
    assert [len(line) for line in done.stdout.splitlines()] == [16 + 200, 17 + 200 + len(": exit code 3")]


LIMITS = [
    (["--timeout", "0.3s"], "sleep 60", 124, r"its time was up \(--timeout 0\.3\)"),
    (
        ["--fsize", "4K"],
        "dd if=/dev/zero of=f bs=1K count=8",
        -25,
        r".*\(--fsize 4096\): killed by SIGXFSZ",
    ),
    ([], "kill -SEGV $$", -11, "killed by SIGSEGV"),
    ([], "exit 7", 7, "exit code 7"),
    (["--keep", "missing=kept"], "true", 125, "cannot keep missing: .*"),
    (["-s", "no-such.zip"], "true", 125, ".*no-such.zip.*"),
]


@pytest.mark.parametrize(("options", "script", "code", "why"), LIMITS, ids=[why for *_, why in LIMITS])
def test_what_failed_is_said(run_sandbox, user, area, options, script, code, why):
    words = ["--title", "t", "--junit", "j.xml", "--report", "r.json", *options, "--", "sh", "-c", script]
    if script.startswith("dd"):
        words = [*words[:-3], *script.split()]
    done = _ci(run_sandbox, user, *words)
    assert done.returncode == code, done.stderr
    assert re.fullmatch(f"sandbox: FAILED: t: {why}", done.stdout.splitlines()[-1])
    where = area.dir(user.as_user)
    told = json.loads((where / "r.json").read_text())
    case = ET.parse(where / "j.xml").getroot().find("testsuite/testcase")
    assert case.get("name") == "t"
    (bad,) = case
    assert bad.tag == ("error" if told["cause"] == "launcher" else "failure")
    assert re.fullmatch(why, bad.get("message"))


IN_THE_WAY = [
    (["--junit", "j"], "j", "mkdir $0; exit 1"),
    (["--report", "r"], "r", "mkdir $0; exit 1"),
    (["--report", "r", "--engine", "python"], "r", "mkdir $0"),
]


@pytest.mark.parametrize(("options", "name", "script"), IN_THE_WAY)
def test_a_job_in_the_way_of_its_summary(run_sandbox, user, options, name, script):
    """It may write where that is to be: what is missing is an error, and not one of sandbox's own."""
    words = ["--workspace", "rw", *options, "--", "sh", "-c", script, name]
    for more, code in ((["--failure-code", "3"], 3), ([], 125)):
        done = _ci(run_sandbox, user, *more, *words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert f"cannot write the report {name}: Is a directory" in done.stderr
        (run_sandbox.area.dir(user.as_user) / name).rmdir()


def test_a_link_in_the_place_of_a_summary(run_sandbox, user, area):
    """It is replaced, and not followed."""
    other = area.dir(user.as_user) / "other"
    other.write_text("mine\n")
    os.chown(other, user.uid, user.gid)
    _ci(run_sandbox, user, "--workspace", "rw", "--junit", "j", "--", "ln", "-s", "other", "j", check=True)
    assert other.read_text() == "mine\n"
    assert ET.parse(area.dir(user.as_user) / "j").getroot().tag == "testsuites"


@pytest.mark.parametrize(
    ("options", "script", "code"),
    [([], "exit 125", 3), ([], "kill -KILL $$", 3), ([], "true", 0), (["-s", "no-such.zip"], "true", 125)],
)
def test_a_failure_code_of_the_caller_s(run_sandbox, user, options, script, code):
    """A job cannot end as if sandbox itself had failed."""
    done = _ci(run_sandbox, user, "--failure-code", "3", *options, "--", "sh", "-c", script)
    assert done.returncode == code


def test_success_in_junit_and_what_was_kept(run_sandbox, who, area):
    done = _ci(run_sandbox, who, "--junit", "j.xml", "--keep", "f=kept", "--", "sh", "-c", "echo 1 > f")
    assert done.returncode == 0, done.stderr
    where = area.dir(who.as_user)
    assert done.stdout.splitlines()[-1] == "sandbox: kept f as kept: 1 files, 2 bytes"
    assert (where / "kept").read_text() == "1\n"
    suite = ET.parse(where / "j.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    assert list(suite.find("testcase")) == []


HOSTILE = "</testcase>\x1b[2J\x01\r\n::error::%0A`&\"'\udcff\ufffe"


def test_hostile_words_stay_words(run_sandbox, user, area):
    summary = area.dir(user.as_user) / "summary"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    options = ["--junit", "j.xml", "--title", HOSTILE, "--keep", "f=##[add-mask]f"]
    done = _ci(run_sandbox, user, *options, "--", "sh", "-c", "echo 1 >f; exit 1", HOSTILE, env=env)
    assert done.returncode == 1
    assert (area.dir(user.as_user) / "##[add-mask]f").exists()
    assert "##[" not in done.stdout, "its runner takes these anywhere in a line"
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [re.match("::([a-z-]*)", line)[1] for line in commands[:2]] == ["group", "stop-commands"]
    assert [line[:12] for line in commands[3:]] == ["::endgroup::", "::error title"[:12]]
    assert len(commands) == 5
    assert ET.parse(area.dir(user.as_user) / "j.xml").getroot().get("failures") == "1"
    assert len(summary.read_text().splitlines()) == 1


STEAL = """
import os
fd = os.open('/proc/self/fd/1', os.O_RDONLY | os.O_NONBLOCK)
try: print('read', os.read(fd, 4096))
except OSError as error: print('read nothing')
print('::error::mine')
print('::set-output name=a::b', end='')
"""


def test_commands_of_a_job_mean_nothing_to_github(run_sandbox, who):
    """They come while commands are stopped, and what would start them again the job cannot read."""
    env = {"GITHUB_ACTIONS": "true"}
    done = _ci(run_sandbox, who, "--", "/usr/bin/python3", "-c", STEAL, env=env, check=True)
    lines = done.stdout.splitlines()
    word = lines[1].removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", word)
    assert lines[2] == "read nothing"
    inside = lines[2 : lines.index(f"::{word}::")]
    assert inside[-2:] == ["::error::mine", "::set-output name=a::b"], done.stderr
    assert not any(word in line for line in inside)
    assert lines[-1] == "::endgroup::"


@pytest.mark.parametrize(("sign", "first"), [("GITLAB_CI", "\x1b[0Ksection_start:"), ("BUILDKITE", "--- x")])
def test_the_marks_of_the_system_that_is_there(run_sandbox, user, sign, first):
    done = _ci(run_sandbox, user, "--title", "x", "--", "sh", "-c", "printf 1; exit 3", env={sign: "true"})
    assert done.returncode == 3
    assert done.stdout.startswith(first)
    assert "\n1\n" in done.stdout, "marks begin a line"


READY = "trap '' TERM; echo ready; while :; do sleep 0.1; done"


def test_a_job_that_will_not_end_is_ended(run_sandbox, who):
    words = ["ci", "run", "--timeout", "10m", "--kill-after", "0.2s", "--", "sh", "-c", READY]
    process = run_sandbox.popen(words, as_user=who.as_user, stdout=subprocess.PIPE)
    assert [process.stdout.readline() for _ in range(2)][1] == "ready\n"
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == -signal.SIGKILL
    assert "killed by SIGKILL" in rest


@pytest.mark.leaves_procdirs
@pytest.mark.parametrize("beside", [(), ("--log", "log")], ids=["alone", "logged"])
@pytest.mark.parametrize("mode", ["root", "userns", "setuid"])
def test_it_dies_with_who_watches_it(request, run_sandbox, user, mode, beside):
    """Killed alone, by KILL. Starting a setuid program the kernel forgets who is to die with whom (prctl(2))."""
    if mode != "userns" and os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    as_user = mode != "root" and user.as_user
    if mode == "setuid":
        _as_helper(request, run_sandbox)
    words = ["ci", "run", "--mode", mode, *beside, "--", "sh", "-c", READY]
    process = run_sandbox.popen(words, as_user=as_user, stdout=subprocess.PIPE)
    assert [process.stdout.readline() for _ in range(2)][1] == "ready\n"
    process.kill()
    assert process.stdout.read() == "", "the end of the last writer"
    assert process.wait(60) == -signal.SIGKILL
    run_sandbox(["ci", "run", "--mode", mode, "--", "true"], as_user=as_user, check=True)  # which cleans up behind it


def _as_helper(request, run_sandbox):
    if os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    run_sandbox.system = request.getfixturevalue("setuid_system")
    return request.getfixturevalue("user")


def _probed(run_sandbox, who, user):
    with escapes.targets(user.home) as words:
        done = _ci(run_sandbox, who, "--report", "r.json", "--", "/usr/bin/python3", "-c", escapes.PROBE, *words)
    assert done.returncode == 0, done.stderr
    escapes.check("\n".join(done.stdout.splitlines()[1:-1]))
    return json.loads((run_sandbox.area.dir(who.as_user) / "r.json").read_text())["mode"]


def test_a_hostile_job_gains_nothing(run_sandbox, who, user):
    assert _probed(run_sandbox, who, user) == ("userns" if who.as_user else "root")


def test_a_hostile_job_of_the_helper_s_gains_nothing(request, run_sandbox):
    who = _as_helper(request, run_sandbox)
    assert _probed(run_sandbox, who, who) == "setuid"


def test_a_job_of_the_helper_s_is_ended_and_its_limit_told(request, run_sandbox):
    who = _as_helper(request, run_sandbox)
    words = ["--timeout", "0.3s", "--kill-after", "0.2s", "--title", "t", "--", "sh", "-c", "trap '' TERM; sleep 60"]
    done = _ci(run_sandbox, who, *words)
    assert done.returncode == 124
    assert done.stdout.splitlines()[-1] == "sandbox: FAILED: t: its time was up (--timeout 0.3)"


@pytest.mark.parametrize(
    "words",
    [
        ["--explain", "--", "true"],
        ["--junit", ".", "--", "true"],
        ["--junit", "one", "--report", "./one", "--", "true"],
        ["--marks=x", "true"],
        [],
        ["--failure-code=125", "true"],
        ["--failure-code=00011000", "true"],
    ],
)
def test_what_is_asked_wrongly(run_sandbox, user, words):
    done = _ci(run_sandbox, user, *words)
    assert (done.returncode, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_name_and_a_report_of_what_has_no_words(run_sandbox, who, area):
    """What is refused has its report; what --run names, its title."""
    where = area.dir(who.as_user)
    assert _ci(run_sandbox, who, "--report", "r.json").returncode == 125
    assert reports.read(where / "r.json")["error"].startswith("no command to run")
    (where / "tree").mkdir()
    (where / "tree/tool").write_text("#!/bin/sh\necho ran\n")
    (where / "tree/tool").chmod(0o755)
    done = _ci(run_sandbox, who, "-s", "tree", "--run", "tree/tool", check=True)
    assert "tree/tool" in done.stdout.splitlines()[0], done.stdout
