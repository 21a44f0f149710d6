"""The ziglang wheel: a real, large archive (a C compiler) that every test of size uses."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ZIG = "ziglang==0.17.0"


def cache_directory() -> Path:
    """Outside the tree, kept between sessions."""
    base = os.environ.get("SANDBOX_TESTS_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandbox-tests"


def zig_wheel() -> Path:
    """Download it unless it is there; safe for several test sessions at once."""
    where = cache_directory()
    where.mkdir(parents=True, exist_ok=True)
    with (where / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        name, version = ZIG.split("==")
        present = sorted(where.glob(f"{name}-{version}-*.whl"))
        if not present:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", str(where), ZIG], check=True)
            present = sorted(where.glob(f"{name}-{version}-*.whl"))
    return present[0]


def place(wheel: Path, directory: Path) -> Path:
    """The wheel under a directory that every identity can reach; linked, where one filesystem holds both."""
    target = directory / wheel.name
    try:
        target.hardlink_to(wheel)
    except OSError:
        shutil.copyfile(wheel, target)
    return target
