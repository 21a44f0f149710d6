"""Other versions of this project, built for real: a copy of the checkout in which only the numbers of the plan's
versions are others, and since which version Python says a time limit, as if that were new.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import sandbox
from sandbox import versions
from sandbox.setuid import HELPER
from tests.support.install import REPOSITORY
from tests.support.setuid import SetuidSystem

_PARTS = (".cargo", "setuid-helper", "sandbox", "packaging", "pyproject.toml")
_QUICK = {"LTO": "off", "OPT_LEVEL": "0", "CODEGEN_UNITS": "16"}
_NOT_COPIED = shutil.ignore_patterns("target", "fuzz", "__pycache__", "sandbox-engine", "sandbox-helper")
# What `sandbox` starts for all that is no stored plan: that version's Python, with the libraries of these tests.
_PYTHON = """#!{python} -I
import sys
sys.path.insert(0, {site!r})
from sandbox.cli.main import main
main()
"""


class Version(NamedTuple):
    """`text` as programs say it, and the plans it takes. Its Python says a time limit since plans of `limits_since`."""

    text: str
    first: int
    last: int
    limits_since: int = 2


LAST, NEXT, FAR = Version("0.0.9", 1, 1), Version("0.2.0", 1, 3, 3), Version("9.0.0", 3, 4)
TODAY = Version(sandbox.__version__, versions.FIRST, versions.LAST)


class Neighbour(NamedTuple):
    """The command of one version, and its helper, which is not setuid there."""

    command: Path
    helper: Path


class Builder:
    """One directory in which each version is built in turn, so that cargo compiles what they share once."""

    def __init__(self, where: Path, python: Path) -> None:
        self._where, self._python = where, python
        where.mkdir()

    def helper(self, version: Version) -> Path:
        """The helper of a version of which nothing else is needed."""
        self._compile(version, "sandbox-helper")
        return Path(shutil.copy(self._where / "target/release/sandbox-helper", self._where / f"helper-{version.text}"))

    def all(self, version: Version) -> Neighbour:
        """As a distribution's packages have it."""
        source = self._compile(version, "sandbox-helper", "sandbox-engine")
        root = self._where / f"root-{version.text}"
        self._run(source, sys.executable, "packaging/install.py", root, "/usr/lib/site")
        site = root / "usr/lib/site"
        (site / "sandbox/bin/sandbox-python").write_text(_PYTHON.format(python=self._python, site=str(site)))
        return Neighbour(root / "usr/bin/sandbox", root / HELPER[1:])

    def _compile(self, version: Version, *programs: str) -> Path:
        source = self._where / "source"
        shutil.rmtree(source, ignore_errors=True)
        for name in _PARTS:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, source / name, ignore=_NOT_COPIED)
            else:
                shutil.copy(REPOSITORY / name, source / name)
        _change(source, version)
        wanted = [word for program in programs for word in ("--bin", program)]
        manifest = ("--manifest-path", "setuid-helper/Cargo.toml")
        self._run(source, "cargo", "build", "--quiet", "--locked", "--release", *manifest, *wanted)
        return source

    def _run(self, source: Path, *command: str | Path) -> None:
        # Quick to compile: how fast these are is not in question.
        env = os.environ | {f"CARGO_PROFILE_RELEASE_{name}": value for name, value in _QUICK.items()}
        env |= {"CARGO_TARGET_DIR": str(self._where / "target")}
        done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _change(source: Path, version: Version) -> None:
    since = f"Since(Timeout, {version.limits_since},"
    _write(source / "sandbox/__init__.py", r'__version__ = ".*"', f'__version__ = "{version.text}"')
    _write(source / "sandbox/versions.py", r"FIRST, LAST = \d+, \d+", f"FIRST, LAST = {version.first}, {version.last}")
    _write(source / "sandbox/versions.py", r"Since\(Timeout, \d+,", since)
    crate = source / "setuid-helper"
    for file in ("Cargo.toml", "Cargo.lock"):
        name = r'(name = "sandbox[a-z-]*"\nversion = )".*"'
        _write(crate / file, name, rf'\g<1>"{version.text}"')
    _write(crate / "src/plan/mod.rs", r"FIRST_VERSION: u16 = \d+", f"FIRST_VERSION: u16 = {version.first}")
    _write(crate / "src/plan/mod.rs", r"LAST_VERSION: u16 = \d+", f"LAST_VERSION: u16 = {version.last}")


def _write(file: Path, pattern: str, text: str) -> None:
    """Every one of these is there once: a change of the sources that this does not know fails here."""
    changed, count = re.subn(pattern, text, file.read_text())
    assert count == 1, f"{pattern} is {count} times in {file}"
    file.write_text(changed)


def put_helper(system: SetuidSystem, program: Path) -> None:
    """Upgrade it as a package manager does: written beside the old one, given its owner and mode, renamed over it."""
    assert system.private is not None
    fresh = f"{HELPER}.new"
    script = f'cp "$1" {fresh} && chown root:{system.gid} {fresh} && chmod 4750 {fresh} && mv {fresh} {HELPER}'
    done = system.private.root("sh", "-ec", script, "sh", program)
    assert done.returncode == 0, done.stderr
