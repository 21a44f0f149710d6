"""Our AppArmor profiles, read by Debian 13's parser and loaded; runs inside a machine (tests/vm/guest.py).

Ubuntu's kernels deny user namespaces to all programs that have no profile of their own. Here a profile denies them to
one program and what it starts, unless that has a profile of its own.
"""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.install import REPOSITORY
from tests.support.users import Identity
from tests.vm import matrix

_RESTRICTED = "/run/restricted"
# "pix": the profile that is attached to the program, else the same one. The flags: docs/setuid.md.
_DENYING = f"""abi <abi/4.0>,
profile restricted {_RESTRICTED} flags=(attach_disconnected,mediate_deleted) {{
  / rwlkm,
  /** rwlkm,
  /** pix,
  capability, network, mount, umount, pivot_root, ptrace, signal, unix, mqueue,
  deny userns,
}}
"""
# Where packages have it, and where it is in this machine: once more as the front, which there is a link to it.
_PACKAGED = "/usr/lib{,64}/python3*/{dist,site}-packages/sandbox/bin/sandbox-engine"
_HERE = f"{REPOSITORY}/{{.venv/bin/sandbox,sandbox/bin/sandbox-engine}}"
_REMEDY = "an AppArmor profile is on: allow it there, run as root, or sandbox setuid install"
_LABEL = ("--", "cat", "/proc/self/attr/current")


class _Restricted(NamedTuple):
    """What a Runner takes for `system`."""

    enters: bool = True

    def command(self, argv: Sequence[Any], *, who: Identity, cwd: Path) -> list[Any]:
        become = ["setpriv", "--reuid", str(who.uid), "--regid", str(who.gid), "--clear-groups"]
        return [_RESTRICTED, "env", "-C", str(cwd), *become, *argv]


@pytest.fixture(scope="module")
def restricted() -> Iterator[_Restricted]:
    subprocess.run(["cp", "/usr/bin/env", _RESTRICTED], check=True)
    with _loaded("restricted", _DENYING):
        yield _Restricted()
    Path(_RESTRICTED).unlink()


@contextlib.contextmanager
def _loaded(name: str, text: str) -> Iterator[None]:
    file = Path(f"/run/profile-{name}")
    file.write_text(text)
    parser = f"{matrix.PARSER} --skip-cache"
    subprocess.run(f"{parser} --replace {file}", shell=True, check=True)
    try:
        yield
    finally:
        subprocess.run(f"{parser} --remove {file}", shell=True, check=True)
        file.unlink()


def _packaged(name: str) -> str:
    return (REPOSITORY / "packaging/apparmor" / name).read_text()


@pytest.mark.parametrize("engine", ["native", "python"])
def test_who_has_no_profile_is_told_what_to_do(engine, restricted, run_sandbox):
    run_sandbox.system = restricted
    done = run_sandbox(["run", "--mode", "userns", "--engine", engine, *_LABEL], as_user=True)
    assert (done.returncode, done.stdout) == (125, "")
    assert _REMEDY in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_profile_of_packages_gives_user_namespaces_back(restricted, run_sandbox):
    """To the engine and the front, compiled and from the store of plans; what is started keeps the right."""
    text = _packaged("sandbox-engine")
    assert _PACKAGED in text
    run_sandbox.system = restricted
    with _loaded("sandbox-engine", text.replace(_PACKAGED, _HERE)):
        for _ in range(2):
            done = run_sandbox(["run", "--mode", "userns", *_LABEL], as_user=True)
            assert (done.stdout, done.stderr) == ("sandbox-engine (unconfined)\n", "")


def test_the_profile_of_the_helper_is_its_own(run_sandbox, setuid_system):
    run_sandbox.system = setuid_system
    with _loaded("sandbox-helper", _packaged("sandbox-helper")):
        done = run_sandbox(["run", "--mode", "setuid", "-s", "t:/etc/skel", *_LABEL], as_user=True)
        assert (done.stdout, done.stderr) == ("sandbox-helper (unconfined)\n", "")
