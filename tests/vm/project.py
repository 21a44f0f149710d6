"""A disk with this checkout as it stands, its native programs, and what the tests import: no network inside."""

import compileall
import json
import py_compile
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.support import debian, wheels
from tests.support.install import REPOSITORY
from tests.vm import packages, store, variant

# The Python of the root (packages.RELEASE); what is compiled comes as Debian's packages.
_PYTHON = "3.11"
_FROM_DEBIAN = ("psutil", "python-prctl")
PLACE = Path("/srv/sandbox")
_COMMAND = f"#!{PLACE}/.venv/bin/python\nimport sys\nfrom sandbox.cli.main import main\nsys.exit(main())\n"


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _requirements() -> list[str]:
    told = _pyproject()
    wanted = [*told["project"]["dependencies"], *told["project"]["optional-dependencies"]["test"]]
    # The man pages are made outside.
    wanted += [line for line in told["build-system"]["requires"] if line.startswith("setuptools")]
    return sorted(line for line in wanted if not line.startswith(_FROM_DEBIAN))


def _site_packages() -> Path:
    wanted = _requirements()

    def make(where: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        place = ["--target", str(where), "--python-version", _PYTHON, "--only-binary=:all:"]
        packages.run(*pip, *place, *wanted)

    return store.kept("site-packages", (wanted, _PYTHON), make)


def _register(site: Path) -> None:
    """What an installer writes so that pytest finds its plugin: the entry points (packaging.python.org)."""
    told = site / "sandbox-0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: sandbox\nVersion: 0\n")
    lines = []
    for group, entries in _pyproject()["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _tracked() -> list[str]:
    """What git knows or would add."""
    listed = packages.run("git", "-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def _downloads() -> tuple[Path, ...]:
    """What `make test` fetches."""
    return wheels.zig_wheel(), wheels.sdist(wheels.EXTENSION), debian.source(debian.C_PROJECT)


def make_disk(job: dict[str, Any], scratch: Path, target: Path) -> None:
    """`job` is for tests/vm/guest.py."""
    tree = scratch / "project"
    natives = [f"sandbox/bin/{name}" for name in ("sandbox-engine", "sandbox-helper")]
    for name in [*_tracked(), *(name for name in natives if (REPOSITORY / name).exists())]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tree / name)
    venv = tree / ".venv"
    site = venv / f"lib/python{_PYTHON}/site-packages"
    shutil.copytree(_site_packages(), site)
    (site / "project.pth").write_text(f"{PLACE}\n")
    _register(site)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    # As setup.py has it: the native front, where it was built, and the command that it starts for what is new to it.
    for name in ("sandbox-python", "sandbox"):
        (venv / "bin" / name).write_text(_COMMAND)
        (venv / "bin" / name).chmod(0o755)
    if (front := REPOSITORY / natives[0]).exists():
        shutil.copy(front, venv / "bin/sandbox")
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {_PYTHON}\n")
    if sys.version_info[:2] == tuple(map(int, _PYTHON.split("."))):
        # Else each module is compiled inside, at its first import, and that is slow there.
        compileall.compile_dir(tree, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    if job["tools"]:
        shutil.copytree(packages.tools(*job["tools"]), tree / "tools", symlinks=True)
    downloads = tree / Path(variant.DOWNLOADS).relative_to(PLACE)
    for archive in _downloads() if job["downloads"] else ():
        downloads.mkdir(exist_ok=True)
        shutil.copy(archive, downloads)
    (tree / "job.json").write_text(json.dumps(job))
    for entry in tree.rglob("*"):
        if not entry.is_symlink():
            entry.chmod(entry.stat().st_mode & ~0o022 | (0o755 if entry.is_dir() else 0o444))
    tree.chmod(0o755)
    packages.make_disk(tree, target)
