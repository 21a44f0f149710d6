"""What `make wheel` and `make sdist` make, installed into empty environments and used there."""

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.install import REPOSITORY

SOAK = pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="compiles everything anew: make soak")
CARGO = pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo")
# No cargo is found there.
BARE = "/usr/sbin:/usr/bin:/sbin:/bin"


def build(kind: str, dist: Path, **env: str) -> Path:
    """The package, made as `make KIND` does once everything is set up."""
    program = [REPOSITORY / "packaging" / "build.sh", kind]
    where = {"DIST": str(dist), "VENV": sys.prefix, **env}
    done = subprocess.run(program, env={**os.environ, **where}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = map(Path, done.stdout.split())
    return made


def environment(where: Path, *, borrow: bool) -> Path:
    """A new virtual environment; with `borrow`, the dependencies are found where this interpreter has them."""
    subprocess.run([sys.executable, "-m", "venv", *(["--without-pip"] if borrow else []), where], check=True)
    if borrow:
        packages = next((where / "lib").glob("python3*/site-packages"))
        (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return where


def pip(*words: object, **env: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(environment: Path, home: Path, *words: str, code: int = 0) -> str:
    command = [environment / "bin" / "sandbox", *words]
    env = {"PATH": BARE, "HOME": str(home), "SANDBOX_HOME": str(home / "sandbox")}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_sdist_builds_where_only_python_is(area):
    first, second = (build("sdist", area.path / name) for name in ("one", "two"))
    assert filecmp.cmp(first, second, shallow=False)
    # No build isolation: a machine of the tests has no network for certain. What builds is this environment's.
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", area.path, first, PATH=f"{sys.prefix}/bin:{BARE}")
    (wheel,) = area.path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    place = environment(area.path / "env", borrow=True)
    pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    assert run(place, area.path, "run", "--", "echo", "fine") == "fine\n"
    assert run(place, area.path, "run", "--engine", "native", "--", "true", code=125) == ""


@SOAK
@CARGO
def test_wheel_in_an_empty_environment(area):
    """With its dependencies from the index. Two builds that share nothing give the same bytes."""
    first, second = (
        build("wheel", area.path / name, CARGO_TARGET_DIR=str(area.path / f"cargo-{name}")) for name in ("one", "two")
    )
    assert filecmp.cmp(first, second, shallow=False)
    assert first.name.partition("-py3-none-")[2].startswith("manylinux")
    names = zipfile.ZipFile(first).namelist()
    assert {"sandbox/bin/sandbox-engine", "sandbox/bin/sandbox-helper"} <= set(names)
    place = environment(area.path / "env", borrow=False)
    pip("--python", place / "bin" / "python", "install", first)
    assert run(place, area.path, "run", "--engine", "native", "--", "echo", "fine") == "fine\n"
    script = "import sandbox; print(sandbox.run(['echo', 'fine'], capture_output=True, text=True).stdout, end='')"
    done = subprocess.run([place / "bin" / "python", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
