"""action.yml, step by step as GitHub's runner carries it out, and the recipes of docs/github.md."""

import configparser
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import escapes

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "github.md").read_text()
SOAK = pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="installs from PyPI: in make soak")


class Step(NamedTuple):
    name: str
    env: dict[str, str]
    script: str


def _steps():
    """The steps of action.yml, which is as simple as this reader: `make soak` reads it as YAML too."""
    found = []
    for text in re.split(r"^    - name: ", (ROOT / "action.yml").read_text(), flags=re.MULTILINE)[1:]:
        name, rest = text.split("\n", 1)
        settings, script = rest.split("      run: |\n")
        found.append(
            Step(name, dict(re.findall(r"^        (\w+): (.*)$", settings, re.MULTILINE)), textwrap.dedent(script))
        )
    return found


class Runner:
    """GitHub's, with its temporary directory and files; `sudo` is a program that writes down its words."""

    def __init__(self, who, directory, environment):
        self.who, self.directory = who, directory
        self.temp, self.work = directory / "temp", directory / "work"
        for made in (self.temp, self.work, self.temp / "bin"):
            made.mkdir()
            os.chown(made, who.uid, who.gid)
        sudo = self.temp / "bin" / "sudo"
        sudo.write_text('#!/bin/sh\necho "$@" >> "${0%/bin/sudo}/asked"\n')
        sudo.chmod(0o755)
        self.path_file = self.temp / "path"
        self.env = environment | {"GITHUB_ACTIONS": "true", "GITHUB_PATH": str(self.path_file), "TOKEN": "s3cret"}
        self.env["PATH"] = f"{self.temp}/bin:{environment['PATH']}"

    def step(self, step, changes=(), **inputs):
        known = {"github.action_path": str(ROOT), "runner.temp": str(self.temp)}
        known |= {f"inputs.{name}": value for name, value in inputs.items()}
        env = {k: re.sub(r"\$\{\{ (\S+) \}\}", lambda match: known[match[1]], v) for k, v in step.env.items()}
        script = self.temp / "script.sh"
        script.write_text(step.script)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            **self.who.popen_options(),
            env=self.env | env | dict(changes),
            cwd=self.work,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


@pytest.fixture
def runner(run_sandbox, user, area):
    """Its directories have a name that a careless script would stumble over."""
    directory = area.dir(user.as_user) / 'it\'s a "runner" $(exit 3) `exit 3`'
    directory.mkdir()
    os.chown(directory, user.uid, user.gid)
    return Runner(user, directory, run_sandbox.environment(user.as_user))


@pytest.fixture
def checkout(run_sandbox, user, area):
    """One with a name that every tool can take."""
    return Runner(user, area.dir(user.as_user), run_sandbox.environment(user.as_user))


def _installed(runner, run_sandbox):
    """As if the first step had been carried out."""
    programs = runner.temp / "sandbox-venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "sandbox").symlink_to(run_sandbox.command)
    (programs / "python").symlink_to("/usr/bin/python3")
    return programs


def test_no_words_of_a_workflow_are_part_of_a_script():
    steps = _steps()
    assert [step.name for step in steps] == ["Install", "Allow user namespaces", "Run"]
    assert not any("${{" in step.script for step in steps)


def test_the_steps(runner, run_sandbox):
    install, allow, run = _steps()
    programs = _installed(runner, run_sandbox)
    assert runner.step(install).returncode == 0
    assert runner.path_file.read_text() == f"{programs}\n"
    restricted = runner.temp / "restricted"
    for value, asked in (("0", ""), ("1", "sysctl -q kernel.apparmor_restrict_unprivileged_userns=0\n")):
        restricted.write_text(f"{value}\n")
        assert runner.step(allow, {"SANDBOX_RESTRICTED": str(restricted)}).returncode == 0
        told = runner.temp / "asked"
        assert (told.read_text() if told.exists() else "") == asked
    inputs = {
        "run": "echo 'it works'\nenv\necho x > new\n",
        "title": "a title",
        "options": "--env 'A=b c' --keep new=kept",
    }
    done = runner.step(run, **inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "::group::a title"
    assert {"it works", "A=b c"} <= set(lines)
    assert "s3cret" not in done.stdout
    assert (runner.work / "kept").read_text() == "x\n"
    assert not (runner.work / "new").exists()
    failed = runner.step(run, **inputs | {"run": "false | true\necho never", "options": ""})
    assert failed.returncode == 1
    assert "never" not in failed.stdout
    assert failed.stdout.splitlines()[-1] == "::error title=a title::exit code 1"
    hostile = runner.step(run, **inputs | {"options": "$(touch made) --title `id`;"})
    assert hostile.returncode != 0
    assert list(runner.work.iterdir()) == [runner.work / "kept"]


def test_a_checkout_with_modules_of_python_s(runner, run_sandbox):
    """What is tested may have files of these names. Outside of the sandbox nobody imports them."""
    _installed(runner, run_sandbox)
    _hostile_modules(runner)
    done = runner.step(_steps()[2], run="echo 'it works'", title="t", options="--timeout 1m")
    assert "it works" in done.stdout.splitlines(), done.stdout + done.stderr
    assert not (runner.temp / "owned").exists()


def _hostile_modules(runner):
    for name in ("shlex", "argparse", "venv", "pip", "sandbox", "prctl", "sitecustomize", "subprocess", "logging"):
        package = runner.work / name
        package.mkdir()
        for file in ("__init__.py", "__main__.py"):
            (package / file).write_text(f"open({str(runner.temp / 'owned')!r}, 'w')\n")


INPUTS = [
    {"title": "-x", "options": "\n  --timeout 1m\n  --nofile 99\n"},
    {"title": "--help", "run": "--version", "code": 127},
    {"title": "a'b\"c $(touch made) `touch made`\r\n::set-output name=a::b", "options": "--env 'A=-- $(touch made)'"},
    {"title": "##[add-mask]x", "run": "echo '$(touch made)' \"it\" 'works\n'\n\n", "said": "$(touch made) it works"},
]


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_hostile_inputs_are_words(runner, run_sandbox, inputs):
    """No expansion, no option and no command of the runner's is made of them; the group is as it always is."""
    _installed(runner, run_sandbox)
    given = {"run": "echo 'it works'", "title": "t", "options": "", **inputs}
    done = runner.step(_steps()[2], **{name: given[name] for name in ("run", "title", "options")})
    assert done.returncode == inputs.get("code", 0), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [re.match("::([a-z-]*)", line)[1] for line in lines[:2]] == ["group", "stop-commands"]
    assert f"::{lines[1].removeprefix('::stop-commands::')}::" in lines
    if not done.returncode:
        assert inputs.get("said", "it works" if "run" not in inputs else "") in done.stdout
        assert lines[-1] == "::endgroup::"
    assert list(runner.work.iterdir()) == []


@pytest.mark.parametrize("options", ["--timeout '1m", "--title \\", "--net", "--root=/ --memory=lots"])
def test_options_that_are_none_run_nothing(runner, run_sandbox, options):
    """What cannot be read as it was meant is no run with fewer options."""
    _installed(runner, run_sandbox)
    done = runner.step(_steps()[2], run="echo ran", title="t", options=options)
    assert done.returncode != 0
    assert "ran" not in done.stdout.splitlines()
    said = [line for line in done.stderr.splitlines() if line.startswith("sandbox: ")]
    assert len(said) == len(done.stderr.splitlines()) == 1, done.stderr


def test_a_hostile_job_gains_nothing(runner, run_sandbox, user):
    _installed(runner, run_sandbox)
    with escapes.targets(user.home) as words:
        script = (
            f"cat >/tmp/probe.py <<'END'\n{escapes.PROBE}END\nexec /usr/bin/python3 /tmp/probe.py {' '.join(words)}\n"
        )
        done = runner.step(_steps()[2], {"CI_JOB_TOKEN": "s3cret"}, run=script, title="t", options="")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    escapes.check("\n".join(lines[2 : lines.index(f"::{lines[1].removeprefix('::stop-commands::')}::")]))
    assert sorted(path.name for path in runner.temp.iterdir()) == ["bin", "sandbox-venv", "script.sh"]


def _block(language, word):
    return next(block for block in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if word in block)


def _shell(runner, run_sandbox, line):
    env = runner.env | {"PATH": f"{run_sandbox.command.parent}:{runner.env['PATH']}", "GITHUB_ACTIONS": ""}
    how = {**runner.who.popen_options(), "env": env, "cwd": runner.work, "capture_output": True, "text": True}
    return subprocess.run(["sh", "-ec", line], **how, check=False, timeout=600)


def test_commands_of_the_recipes(checkout, run_sandbox):
    (checkout.work / "check.sh").write_text("echo checked; ! touch here 2>&-\n")
    entry = re.search(r"entry: (.*)", _block("yaml", "- repo: local"))[1]
    assert _shell(checkout, run_sandbox, entry).stdout == "checked\n"
    hook = re.search(r"entry: (.*)", (ROOT / ".pre-commit-hooks.yaml").read_text())[1]
    assert _shell(checkout, run_sandbox, f"{hook} sh check.sh").stdout == "checked\n"
    tox = configparser.ConfigParser()
    tox.read_string(_block("ini", "[testenv]"))
    line = tox["testenv"]["commands"].format(envdir="/usr/bin", envpython="/usr/bin/python3")
    assert "\ntested\n" in _shell(checkout, run_sandbox, line).stdout
    words = re.search(r"session\.run\((.*), external", _block("python", "import nox"))[1]
    line = " ".join(f"'{word}'" for word in re.findall(r'"((?:[^"])*)"', words)).replace(
        "'print('tested')'", "'print(\"tested\")'"
    )
    assert "\ntested\n" in _shell(checkout, run_sandbox, line).stdout


@SOAK
def test_the_action_installs_itself(runner):
    _hostile_modules(runner)
    install, _, run = _steps()
    done = runner.step(install, {"SANDBOX_SOURCE": str(_source(runner))})
    assert done.returncode == 0, done.stdout + done.stderr
    done = runner.step(run, run="echo 'it works'", title="t", options="")
    assert "it works" in done.stdout.splitlines(), done.stdout + done.stderr
    assert not (runner.temp / "owned").exists()


def _source(runner):
    """The tracked files, where the user may build."""
    copy = runner.temp / "source"
    copy.mkdir()
    listed = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], capture_output=True, check=True)
    subprocess.run(["tar", "x", "-C", copy], input=listed.stdout, check=True)
    subprocess.run(["chown", "-R", f"{runner.who.uid}:{runner.who.gid}", copy], check=True)
    return copy


@SOAK
def test_pre_commit_tox_and_nox(checkout, run_sandbox, session_area):
    tools = session_area / "tools"
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    pip = [tools / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, "pre-commit", "tox", "nox"], check=True)
    for path in ("action.yml", ".pre-commit-hooks.yaml"):
        load = f"import yaml; assert yaml.safe_load(open({str(ROOT / path)!r}))"
        subprocess.run([tools / "bin" / "python", "-c", load], check=True)
    for name, text in (
        (".pre-commit-config.yaml", _block("yaml", "- repo: local")),
        ("tox.ini", _block("ini", "[testenv]")),
        ("noxfile.py", _block("python", "import nox")),
        ("check.sh", "echo checked; ! touch here 2>&-\n"),
    ):
        (checkout.work / name).write_text(text)
    git = "git init -q . && git add -A"
    for line, word in (
        (f"{git} && {tools}/bin/pre-commit run --all-files --verbose", "checked"),
        (f"{tools}/bin/tox run", "tested"),
        (f"{tools}/bin/nox", "tested"),
    ):
        done = _shell(checkout, run_sandbox, line)
        assert done.returncode == 0, done.stdout + done.stderr
        assert word in done.stdout + done.stderr
