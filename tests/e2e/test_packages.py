"""What `make wheel` and `make sdist` make, installed into empty environments and used there."""

import filecmp
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import sandbox
from sandbox import policy
from sandbox.doctor import packaged_program
from sandbox.setuid import HELPER
from tests.support.install import REPOSITORY

SOAK = pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="compiles everything anew: make soak")
CARGO = pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo")
# No cargo is found there.
BARE = "/usr/sbin:/usr/bin:/sbin:/bin"


def build(kind: str, dist: Path, **env: str) -> list[Path]:
    """The packages, made as `make KIND` does once everything is set up."""
    program = [REPOSITORY / "packaging" / "build.sh", kind]
    where = {"DIST": str(dist), "VENV": sys.prefix, **env}
    done = subprocess.run(program, env={**os.environ, **where}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.split()]


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
    (sdist,) = build("sdist", area.path)
    # No build isolation: a machine of the tests has no network for certain. What builds is this environment's.
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", area.path, sdist, PATH=f"{sys.prefix}/bin:{BARE}")
    (wheel,) = area.path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    place = environment(area.path / "env", borrow=True)
    pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    assert run(place, area.path, "run", "--", "echo", "fine") == "fine\n"
    assert run(place, area.path, "run", "--engine", "native", "--", "true", code=125) == ""


@pytest.mark.skipif(not packaged_program("sandbox-helper").exists(), reason="needs the native programs (no cargo)")
def test_what_distributions_install(area):
    """The layout that the Debian package and the RPM share; the packages themselves are make soak's."""
    release, root, site = area.path / "cargo" / "release", area.path / "root", "/usr/lib/python3/dist-packages"
    release.mkdir(parents=True)
    for name in ("sandbox-engine", "sandbox-helper"):
        shutil.copy(packaged_program(name), release)
    program = [sys.executable, REPOSITORY / "packaging" / "install.py", root, site]
    subprocess.run(program, env={**os.environ, "CARGO_TARGET_DIR": str(release.parent)}, check=True)
    engine = root / site[1:] / "sandbox" / "bin" / "sandbox-engine"
    assert {(root / "usr/bin" / name).resolve() for name in ("sandbox", "sandbox-run")} == {engine}
    assert os.access(engine.with_name("sandbox-python"), os.X_OK)
    assert (root / HELPER[1:]).stat().st_mode & 0o7777 == 0o755
    values, wrong = policy.parse((root / policy.PATH[1:]).read_bytes())
    assert (wrong, values["groups"], values.keys() & {"builder_uid", "builder_gid"}) == ([], [], set())
    distribution = importlib.metadata.Distribution.at(next(engine.parents[2].glob("*.dist-info")))
    assert (distribution.version, len(distribution.entry_points)) == (sandbox.__version__, 1)


@SOAK
def test_second_sdist_has_the_same_bytes(area):
    (first,), (second,) = (build("sdist", area.path / name) for name in ("one", "two"))
    assert filecmp.cmp(first, second, shallow=False)


@SOAK
@CARGO
def test_wheel_in_an_empty_environment(area):
    """With its dependencies from the index. Two builds that share nothing give the same bytes."""
    first, second = (
        build("wheel", area.path / name, CARGO_TARGET_DIR=str(area.path / f"cargo-{name}"))[0]
        for name in ("one", "two")
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


@SOAK
@CARGO
@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="needs rpmbuild and rpmlint (make rpm installs them)")
def test_rpm(area):
    """All that rpmlint says is explained; the same bytes again; the helper's group and mode, and the conffile."""
    made, again = (sorted(build("rpm", area.path / name)) for name in ("one", "two"))
    assert all(filecmp.cmp(*pair, shallow=False) for pair in zip(made, again, strict=True))
    directory = REPOSITORY / "packaging" / "rpm"
    done = subprocess.run(
        ["rpmlint", "--config", directory / "rpmlint.toml", directory / "sandbox.spec", *made],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    form = "[%{FILENAMES} %{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags}\\n]"
    query = ["rpm", "--dbpath", area.path / "db", "-qp", "--queryformat", form, *made]
    files = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    assert f"{HELPER} 104750 root sandbox " in files
    assert f"{policy.PATH} 100644 root root cn" in files
    assert f"{policy.BUILDER_DIRECTORY} 40000 _sandbox _sandbox " in files
    assert "/usr/bin/sandbox 120777 root root " in files
