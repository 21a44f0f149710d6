"""`--log-format json`: all that sandbox itself says is lines of JSON, whoever of its programs says it."""

import json
import os
import re
import subprocess
import sys

import pytest

import sandbox
from tests.e2e.test_front import PYTHON, Front
from tests.support.jobs import spare_python
from tests.support.modes import native_engine

MEMBERS = ["time", "level", "message", "hint", "exit_code"]
JSON = ("--log-format", "json")


def lines(text):
    """What was said; every line of it must be such an object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(list(line) == MEMBERS for line in found), text
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", line["time"]) for line in found)
    return found


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (("--", "no-such-command"), 127, "cannot run no-such-command: command not found", None),
        (("--timeout", "0.2", "--", "sleep", "100"), 124, "the command was ended: its time was up", "--timeout"),
        (("--chdir", "/not/there", "--", "true"), 125, "/not/there: No such file or directory", "name a directory"),
    ],
)
def test_an_error(launch, words, code, message, hint):
    """One line, with the code that sandbox ends with."""
    done = launch(*JSON, *words)
    (line,) = lines(done.stderr)
    assert (line["level"], line["exit_code"], done.returncode) == ("error", code, code)
    assert line["message"].endswith(message)
    assert line["hint"] is hint or line["hint"].startswith(hint)


def test_what_is_no_error(launch):
    """Steps as they happen, how it went; what the command says is the command's."""
    done = launch(*JSON, "-v", "--", "sh", "-c", "echo mine >&2; : > left-behind", check=True)
    said = done.stderr.splitlines(keepends=True)
    said.remove("mine\n")
    found = lines("".join(said))
    assert {line["level"] for line in found} == {"info", "step"}
    assert all(line["hint"] is None and line["exit_code"] is None for line in found)
    mode = next(line["message"] for line in found if line["message"].startswith("mode "))
    steps = [line for line in found if line["level"] == "step"]
    assert mode == f"mode {launch.mode}, engine {launch.engine}, {len(steps)} steps"
    assert "changed file" in found[-1]["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="these are of mode root")
@pytest.mark.parametrize("engine", ["python", "native"])
def test_from_python(engine, tmp_path, monkeypatch):
    """A program's sandboxes say it as those of the command line, with a Python of their own or without."""
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"name": "called"}):
        with sandbox.Sandbox(engine=engine, isolation="job", log_format="json", **options) as box:
            with pytest.raises(sandbox.SandboxError) as failed:
                box.run(["no-such-command"], capture_output=True, text=True)
            done = box.run(["sh", "-c", ": > left-behind"], capture_output=True, text=True)
        assert failed.value.exit_code == 127
        assert "changed file" in lines(done.stderr)[0]["message"]


def test_beside_a_log(launch, area):
    spare_python(launch)
    log = area.dir(launch.as_user) / "log"
    said = launch(*JSON, "--log", log, "--timeout", "0.2", "--", "sleep", "100")
    assert lines(said.stderr)[-1]["exit_code"] == 124
    assert log.read_text() == said.stderr


def test_a_launch_that_is_stored(run_sandbox, who, area):
    """The front says it as asked, whatever asked for it: the words, or a config.toml; and another launch does not."""
    area.home(who.as_user)
    front = Front(run_sandbox, who, area)
    configured = {"XDG_CONFIG_HOME": str(area.dir(who.as_user) / "config")}
    directory = area.dir(who.as_user) / "config" / "sandbox"
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text('[run]\nlog-format = "json"\n')
    for words, env in ((JSON, {}), (["--log-format=json"], {}), ([], configured)):
        assert lines(front.compile(*words, "--", "no-such-command", env=env).stderr)[0]["exit_code"] == 127
        again = front.again(*words, "--", "no-such-command", env=env)
        assert lines(again.stderr)[0]["exit_code"] == again.returncode == 127
    plain = front.compile("--", "no-such-command", *JSON)
    again = front.again("--", "no-such-command", *JSON)
    assert plain.stderr == again.stderr == "sandbox: cannot run no-such-command: command not found\n"
    assert front.again("--env", "A=1", "--", "true").returncode == PYTHON


@pytest.mark.parametrize(
    "words",
    [
        [*JSON, "ps", "--no-such-option"],
        ["--log-format=json", "kill", "nobody"],
        ["--debug", *JSON, "exec", "nobody", "--", "true"],
        [*JSON, "run", "-s", "/nowhere", "--", "true"],
        ["run", "--isolation", "unheard-of", *JSON, "--", "true"],
        ["run", *JSON, "--args", "99", "--", "true"],
        [*JSON, "no-such-command"],
        ["ci", "run", *JSON, "--no-such-option", "--", "true"],
    ],
)
def test_every_command(run_sandbox, who, words):
    """Also where the words themselves are wrong, and where a traceback is asked for."""
    done = run_sandbox(words, as_user=who.as_user)
    (said,) = (json.loads(line) for line in done.stderr.splitlines())
    assert list(said) == [*MEMBERS, *(["traceback"] if "--debug" in words else [])]
    assert (said["level"], said["exit_code"], done.returncode) == ("error", 125, 125)
    assert (said.get("traceback") or "Traceback").startswith("Traceback")


def test_before_python(run_sandbox, who):
    """The front refuses by itself to start anything with a directory for a standard descriptor."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for words in ([*JSON, "ps"], ["run", "--log-format=json", "true"]):
            done = run_sandbox(words, as_user=who.as_user, stdin=fd)
            (line,) = lines(done.stderr)
            assert (line["exit_code"], "descriptor 0" in line["message"], bool(line["hint"])) == (125, True, True)
    finally:
        os.close(fd)


@pytest.mark.parametrize("words", [["--log-format"], ["--log-format", "xml", "ps"], ["--log-format=", "ps"]])
def test_no_such_format(run_sandbox, words):
    done = run_sandbox(words, as_user=True)
    assert done.returncode == 125
    assert re.fullmatch(r"sandbox: --log-format: there is no format '(xml)?' \(one of: text, json\)\n", done.stderr)


def test_a_line_is_a_line_whatever_is_in_it():
    """Names are bytes: neither form has control characters or breaks, and an object stays one."""
    script = "from sandbox import errors\nfor form in ('text', 'json'):\n    errors.speak(form)\n"
    script += "    errors.warn('a\\x1b[31m\\udcff\\nb\\u2028')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    text, line = done.stderr.decode().split("\n", 1)
    assert text == "sandbox: warning: a\\x1b[31m\\xff b\\xe2\\x80\\xa8"
    (found,) = lines(line)
    assert (found["level"], found["message"]) == ("warning", "a\\x1b[31m\\xff b\\xe2\\x80\\xa8")
