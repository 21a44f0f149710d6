"""A C project from a Debian source package, for tests and benchmarks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import wheels
from tests.vm import packages, store

# Lua: 33 files of C, and a Makefile that asks for nothing but a compiler.
C_PROJECT = "lua5.4"
MAKE = ["make", "-j2", "posix"]


def source(package: str) -> Path:
    """Its upstream archive, from where this machine's apt gets Debian's packages; skips where that cannot be."""

    def fetch(empty: Path) -> None:
        env = packages.private_apt(empty / "apt", packages.RELEASE, kind="deb-src")
        packages.run("apt-get", "update", "-q", env=env)
        packages.run("apt-get", "source", "-q", "--download-only", package, env=env, cwd=empty)

    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get, for a Debian source package")
    try:
        return wheels.kept(f"{package}_*.orig.tar.*", fetch)
    except store.BuildError as error:
        pytest.skip(f"no source package of Debian's: {error}")


def c_project(directory: Path) -> Path:
    """Its source, unpacked below a directory."""
    subprocess.run(["tar", "-xf", source(C_PROJECT), "-C", directory], check=True)
    return next(directory.glob("lua-*"))
