"""The completion scripts, in the shells they are for."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

# As readline takes lines apart (COMP_WORDBREAKS); prints what would be offered for each, sorted, in one line.
_BASH = r"""
source <(sandbox completion bash)
for line; do
  COMP_LINE=$line COMP_POINT=${#line}
  read -ra COMP_WORDS <<<"$(sed 's/[:=@]/ & /g' <<<"$line")"
  [[ $line != *' ' ]] || COMP_WORDS+=('')
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _sandbox
  echo $(printf '%s\n' "${COMPREPLY[@]}" | sort -u)
done
"""
_FISH = r"""
sandbox completion fish | source
for line in $argv
  echo (complete -C $line | cut -f1)
end
"""
# The line, what bash offers (readline has only what follows the last : = @), and what fish offers.
CASES = [
    ("sandbox doc", ["doctor"], ["doctor"]),
    ("sandbox image exp", ["export"], ["export"]),
    ("sandbox run --isol", ["--isolation"], ["--isolation"]),
    ("sandbox run --isolation s", ["strict"], ["strict"]),
    ("sandbox run --isolation=s", ["strict"], ["--isolation=strict"]),
    ("sandbox run -s ", ["@other", "@tool", "archive.zip", "sandbox.toml"], None),
    ("sandbox run -s @to", ["tool"], ["@tool"]),
    ("sandbox run -s name:@to", ["tool"], ["name:@tool"]),
    ("sandbox run -s name:arc", ["archive.zip"], ["name:archive.zip"]),
    ("sandbox run -s @tool+@oth", ["other"], ["@tool+@other"]),
    ("sandbox run --job ", ["build"], ["build"]),
    ("sandbox run -s archive.zip -- losetu", ["losetup"], None),
    ("sandbox image inspect @to", ["tool"], None),
    ("sandbox image rollback to", ["tool"], ["tool"]),
    ("sandbox exec na", ["nap"], ["nap"]),
    ("sandbox kill na", ["nap"], ["nap"]),
]


@pytest.fixture
def shell(run_sandbox, area):
    """Images @tool and @other, a job `build`, a sandbox `nap` that runs, and a shell that sees them."""
    where = area.dir(False)
    (where / "tree").mkdir()
    (where / "tree/file").write_text("x")
    work = where / "work"
    work.mkdir()
    (work / "archive.zip").write_text("x")
    (work / "sandbox.toml").write_text('[job.build]\ncommand = "true"\n')
    assert run_sandbox(["image", "build", "-q", str(where / "tree"), "-t", "tool"], as_user=False).returncode == 0
    assert run_sandbox(["image", "tag", "@tool", "other"], as_user=False).returncode == 0
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with run_sandbox.popen(["run", "--name", "nap", "--", "sh", "-c", "echo up; cat"], as_user=False, **pipes) as nap:
        nap.stdout.readline()
        environment = run_sandbox.environment(False)
        environment |= {"PATH": f"{run_sandbox.command.parent}:{environment['PATH']}", "HOME": str(where)}
        yield lambda argv: subprocess.run(
            argv, env=environment, cwd=work, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        nap.stdin.close()


def offers(shell, argv, at):
    """What each line of CASES must be offered, and is."""
    cases = {case[0]: case[at] for case in CASES if case[at] is not None}
    done = shell([*argv, *cases])
    assert done.stderr == ""
    shown = dict(zip(cases, map(str.split, done.stdout.splitlines()), strict=True))
    assert shown == cases


def test_bash(shell):
    offers(shell, ["bash", "--norc", "-c", _BASH, "bash"], 1)


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(shell):
    offers(shell, ["fish", "--no-config", "-c", _FISH], 2)


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("sandbox run --isolation s", "trict"),
        ("sandbox image rollback to", "ol"),
        ("sandbox run -s x -- losetu", "p"),
    ],
)
def test_zsh(shell, run_sandbox, area, line, completed):
    """Only a zsh with a terminal completes: what it writes after the line is what it completed."""
    functions = area.dir(False) / "functions"
    functions.mkdir()
    (functions / "_sandbox").write_text(run_sandbox(["completion", "zsh"], as_user=False).stdout)
    environment = run_sandbox.environment(False)
    environment |= {"PATH": f"{run_sandbox.command.parent}:{environment['PATH']}", "TERM": "dumb"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
    try:
        start = f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D; echo SET''UP\r"
        os.write(terminal, start.encode())
        _read_until(terminal, b"SETUP")
        os.write(terminal, line.encode() + b"\t")
        _read_until(terminal, (line + completed).encode())
    finally:
        os.close(terminal)  # a hangup ends it
        os.waitpid(pid, 0)


def _read_until(terminal, wanted):
    seen, end = b"", time.monotonic() + 120
    while wanted not in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x08.", b"", seen):
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)


def test_an_unknown_shell(run_sandbox):
    done = run_sandbox(["completion", "tcsh"], as_user=False)
    assert done.returncode == 125
    assert "bash" in done.stderr
    assert done.stderr.count("\n") == 1
