"""Cgroups (version 2) that belong to an ordinary user, for as long as a test takes."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import cgroups
from sandbox.errors import HostError
from tests.support.users import Identity

NEEDED = {"memory", "pids", "cpu"}
_FILES = (".", "cgroup.procs", "cgroup.subtree_control")


def place() -> Path:
    """Where this process may make cgroups with every controller; skips where it may not."""
    try:
        return Path(os.fsdecode(cgroups.place(NEEDED, ask_systemd=False)))
    except HostError as error:
        pytest.skip(f"needs cgroup v2: {error.message}; python -m tests.vm -- tests/e2e/test_cgroups.py has one")


def give(directory: Path, who: Identity) -> None:
    """As cgroups(7) says of delegation."""
    for name in _FILES:
        os.chown(directory / name, who.uid, who.gid)


def enable(directory: Path) -> None:
    """Every controller for its children."""
    (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))


@contextlib.contextmanager
def subtree(user: Identity) -> Iterator[Path]:
    """A cgroup that is the user's, with this process in a leaf of it."""
    top = place()
    if os.geteuid() != 0 and os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd makes a scope for each run of a user: tests/e2e/test_systemd_scope.py")
    if os.geteuid() != 0:
        yield top
        return
    before = Path(os.fsdecode(cgroups._own(cgroups._mount_point())))
    own = top / f"sbx-test-{secrets.token_hex(4)}"
    leaf = own / "leaf"
    own.mkdir()
    enable(own)
    leaf.mkdir()
    for directory in (own, leaf):
        give(directory, user)
    (leaf / "cgroup.procs").write_text("0")
    yield own
    (before / "cgroup.procs").write_text("0")
    left = [entry.name for entry in own.iterdir() if entry.is_dir()]
    leaf.rmdir()
    for name in set(left) - {"leaf"}:
        (own / name).rmdir()
    own.rmdir()
    assert left == ["leaf"], "a run left its cgroup behind"
