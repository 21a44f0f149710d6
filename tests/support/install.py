"""A `sandbox` command that the test account can execute."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from tests.support.users import Identity

REPOSITORY = Path(__file__).resolve().parents[2]


def command_for(identities: list[Identity], area: Path) -> Path:
    """This interpreter's own `sandbox` when every identity can run it, else a copy installed below `area`.

    A checkout below a directory of mode 0700 (a CI job's clone) is out of the test account's reach.
    """
    here = Path(sysconfig.get_path("scripts"), "sandbox")
    if here.exists() and all(_can_import(Path(sys.executable), who) for who in identities):
        return here
    return _relocated(_reachable_interpreter(identities), area / "installed")


def _can_import(python: Path, who: Identity) -> bool:
    return _runs([str(python), "-c", "import sandbox, prctl, libarchive"], who)


def _runs(command: list[str], who: Identity) -> bool:
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, check=False, **who.popen_options())  # type: ignore[call-overload]
    except PermissionError:
        return False
    return bool(done.returncode == 0)


def _reachable_interpreter(identities: list[Identity]) -> Path:
    """A base interpreter of this very version, since compiled modules are copied along."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    test = ["-c", f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"]
    candidates = [
        str(getattr(sys, "_base_executable", sys.executable)),
        f"/usr/bin/python{version}",
        "/usr/bin/python3",
    ]
    for candidate in candidates:
        if all(_runs([candidate, *test], who) for who in identities):
            return Path(candidate)
    raise RuntimeError(f"no Python {version} that the test account can execute; tried {', '.join(candidates)}")


def _ours(top: str) -> Callable[[str, list[str]], set[str]]:
    """What of a directory is not copied: this project, as it is installed there, and byte code."""
    here, below = (shutil.ignore_patterns(*names, "__pycache__") for names in (("sandbox*", "__editable__*"), ()))
    # toolz has a package toolz.sandbox.
    return lambda directory, names: (here if directory == top else below)(directory, names)


def _relocated(base: Path, where: Path) -> Path:
    """A real (not editable) install of the project, with this interpreter's packages beside it."""
    subprocess.run([str(base), "-m", "venv", "--without-pip", str(where)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = where / "lib" / version / "site-packages"
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        shutil.copytree(source, packages, symlinks=True, dirs_exist_ok=True, ignore=_ours(source))
    # What an earlier build left there would be packed into the wheel, deleted modules and all.
    shutil.rmtree(REPOSITORY / "build", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--python", str(where / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(REPOSITORY)], check=True)
    return where / "bin" / "sandbox"
