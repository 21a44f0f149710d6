"""Progress bars: on a terminal only, not with --quiet; and JSON of every listing."""

import json
import os
import pty
import subprocess

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.runner import Area, Runner
from tests.support.users import Identity

# The command as it is, but that its bars do not wait for a second to pass.
_AT_ONCE = """
import sys
from sandbox.images import progress
progress._AFTER = 0.0
from sandbox.cli.main import main
sys.exit(main())
"""


class Terminal:
    """Runs `sandbox image` with a terminal, or a pipe, for its standard error."""

    def __init__(self, run_sandbox: Runner, who: Identity, area: Area) -> None:
        self.python = run_sandbox.command.parent / "python"
        self.environment = {**run_sandbox.environment(who.as_user), "TERM": "xterm", "COLUMNS": "120"}
        self.options = {"cwd": area.dir(who.as_user), **who.popen_options()}

    def __call__(self, *args: str, terminal: bool = True) -> tuple[str, str]:
        """What it writes to standard output and error."""
        ours, theirs = pty.openpty() if terminal else os.pipe()
        process = subprocess.Popen(
            [self.python, "-c", _AT_ONCE, "image", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=self.environment,
            **self.options,  # type: ignore[call-overload]
        )
        os.close(theirs)
        said = b""
        while chunk := self._read(ours):
            said += chunk
        os.close(ours)
        out = process.communicate()[0].decode()
        assert process.returncode == 0, (out, said)
        return out, said.decode()

    @staticmethod
    def _read(fd: int) -> bytes:
        try:
            return os.read(fd, 1 << 16)
        except OSError:  # EIO: nobody has the other side of the terminal open any more
            return b""


@pytest.fixture
def image(run_sandbox: Runner, who: Identity, area: Area) -> Terminal:
    where = area.dir(who.as_user)
    tree = archives.make_tree(where / "tree", [Entry("f", os.urandom(100_000)), Entry("d/g", b"x")])
    tar = archives.make_tar(where / "s.tar", [Entry("f", os.urandom(100_000))])
    for path in (tar, tree, *tree.rglob("*")):
        os.chown(path, who.uid, who.gid)
    return Terminal(run_sandbox, who, area)


def test_bars_on_a_terminal(image: Terminal) -> None:
    commands = {
        ("build", "s.tar", "-t", "a"): "converting s.tar",
        ("build", "tree", "-t", "b"): "converting tree",
        ("build", "@a", "--compress", "small"): "converting",
        ("verify", "a"): "verifying sha256:",
        ("export", "a", "a.sfs"): "checking a.sfs",
        ("import", "a.sfs", "-t", "c"): "verifying a.sfs",
    }
    for args, words in commands.items():
        _, said = image(*args)
        bars = [line for line in said.split("\r") if words in line and "━" in line]
        assert bars, (args, said)
        assert any("100" in line or "0:00:0" in line for line in bars)
        # What was drawn is taken away again: the cursor goes up and the line is cleared.
        assert "\x1b[2K" in said
        assert said.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h")) or "converted" in said


@pytest.mark.parametrize(("terminal", "options"), [(True, ("--quiet",)), (False, ()), (False, ("--quiet",))])
def test_plain_lines_otherwise(image: Terminal, terminal: bool, options: tuple[str, ...]) -> None:
    quiet = "--quiet" in options
    for args in (("build", "s.tar", "-t", "a"), ("verify", "a"), ("export", "a", "a.sfs"), ("import", "a.sfs")):
        out, said = image(*args, *options, terminal=terminal)
        assert "\x1b" not in out + said
        assert "━" not in out + said
        assert said.count("\n") == (2 if args[0] == "build" and not quiet else 0), said
        lines = 0 if quiet and args[0] in ("verify", "export") else 1
        assert len(out.splitlines()) == lines


def test_every_listing_as_json(run_sandbox: Runner, who: Identity, area: Area, image: Terminal) -> None:
    image("build", "s.tar", "-t", "a")
    image("build", "tree", "-t", "a")
    image("build", "s.tar", "-t", "b")

    def told(*args: str) -> object:
        done = run_sandbox([*args, "--json"], as_user=who.as_user, check=True)
        assert done.stderr == ""
        return json.loads(done.stdout)

    assert len(told("image", "ls")) == 2
    assert [(entry["name"], entry["size"]) for entry in told("image", "ls", "a", "/")] == [("d", 0), ("f", 100_000)]
    assert [(entry["name"], entry["size"]) for entry in told("image", "ls", "a", "f")] == [("f", 100_000)]
    assert [entry["name"] for entry in told("image", "ls", "a", "d")] == ["g"]
    assert told("image", "inspect", "a")["names"] == ["a"]
    assert [one["current"] for one in told("image", "history", "a")] == [True, False]
    assert [one["problem"] for one in told("image", "verify", "--all")] == ["", ""]
    assert {one["path"]: one["change"] for one in told("image", "diff", "b", "a")} == {
        "d": "added",
        "d/g": "added",
        "f": "changed",
    }
    assert len(told("cache", "ls")) == 2
