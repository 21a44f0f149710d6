"""The examples of the README and of the tutorial, run as they stand there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import Entry

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
EXPECTED = [
    "hi from C\n",
    "0.",
    "Makefile\nbuilt\n",
    "stdio.h\n",
    "hello from a zip\n",
    "hello from a zip\n",
    "no mistake found\n",
    "patched\n",
]


def test_there_are_eight_examples():
    assert len(EXAMPLES) == len(EXPECTED) == 8


@pytest.mark.big
@pytest.mark.timeout(1800)
def test_examples(run_sandbox, who, area, zig_wheel, zig_cache):
    where = area.dir(who.as_user)
    (where / "ziglang.whl").symlink_to(zig_wheel)
    (where / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hi from C"); return 0; }\n')
    source = [Entry("Makefile", b"all:\n\ttouch built\n"), Entry("docs/manual", b"x")]
    archives.make_tar(where / "src.tar.gz", source, compression="gzip")
    archives.make_zip(where / "tool.zip", [Entry.program("hello", "echo hello from a zip")])
    (where / "sandbox.toml").write_text("".join(re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)))
    env = run_sandbox.environment(who.as_user) | zig_cache
    env["PATH"] = f"{run_sandbox.command.parent}:{env['PATH']}"
    for example, expected in zip(EXAMPLES, EXPECTED, strict=True):
        done = subprocess.run(
            ["sh", "-ec", example],
            **who.popen_options(),
            env=env,
            cwd=where,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, (example, done.stdout, done.stderr)
        assert expected in done.stdout, (example, done.stdout, done.stderr)
    # Nothing but the compiler's output, the --mkdir directory and the home: the archives are as they were.
    assert (where / "src.tar.gz").exists()
    assert not (where / "docs").exists()


def test_the_other_blocks():
    """What is not run above: those of `make`, whose targets there are, the job file of the examples, and Python."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"", "sh", "toml", "python"}
    rules = re.findall(r"^([\w -]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    targets = {word for rule in rules for word in rule.split()}
    for text in (text for language, text in blocks if not language):
        words = [line.split() for line in text.splitlines()]
        assert all(line[0] == "make" and line[1] in targets for line in words), text


def test_the_example_in_python(tmp_path, monkeypatch):
    """As it stands there, with an import, of whoever runs this."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    archives.make_zip(tmp_path / "sdk.zip", [Entry("file", b"x")])
    (tmp_path / "Makefile").write_text("test:\n\t@cat $$SANDBOX_STATIC/sdk/file; touch built\n")
    names = {}
    exec("import sandbox\n" + example, names)
    assert names["done"].stdout == "x"
    assert not (tmp_path / "built").exists()


TUTORIAL = (README.parent / "docs/tutorial.md").read_text()
# Each block of commands, and what stands below it.
STEPS = re.findall(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", TUTORIAL, re.DOTALL)


def test_the_tutorial(run_sandbox, who, area):
    assert TUTORIAL.count("```sh") == len(STEPS) == TUTORIAL.count("\n## ") + 1
    where = area.dir(who.as_user)
    env = run_sandbox.environment(who.as_user)
    env["PATH"] = f"{run_sandbox.command.parent}:{env['PATH']}"
    # Root sees the sandboxes of everybody, so one of this name elsewhere would be in the way.
    name = f"box-{os.getpid()}-{who.uid}"
    for commands, expected in ((re.sub(r"\bbox\b", name, text) for text in step) for step in STEPS):
        done = subprocess.run(
            ["sh", "-ec", commands],
            **who.popen_options(),
            env=env,
            cwd=where,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (done.returncode, done.stdout) == (0, expected), (commands, done.stderr)
