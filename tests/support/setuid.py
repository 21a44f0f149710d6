"""The setuid helper, installed where only this session sees it."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox import setuid
from sandbox.doctor import packaged_program
from tests.support.private import PrivateSystem, private_system
from tests.support.users import Identity

# What a helper says that has no setuid part yet. Any other failure of the installation fails the tests.
UNFINISHED = ("must not run with more rights than its caller", "the plan needs setuid mode")


class SetuidSystem:
    """Where the helper is installed. `private` is None for the host's own installation, used without root."""

    def __init__(self, private: PrivateSystem | None, gid: int) -> None:
        self.private = private
        self.gid = gid

    @property
    def enters(self) -> bool:
        return self.private is not None

    def command(self, argv: Sequence[Any], *, who: Identity, cwd: Path, member: bool = True) -> list[Any]:
        """argv that runs there as `who`, in the helper's group unless not a `member`."""
        if self.private is None:
            return list(argv)
        return self.private.command(argv, who=who, groups=(self.gid,) if member else (), cwd=cwd)


@contextlib.contextmanager
def installed(identities: Mapping[bool, Identity], command: Path, top: Path) -> Iterator[SetuidSystem]:
    """Install it, and skip with the reason when that cannot be."""
    if os.geteuid() != 0:
        if (why := setuid.obstacle()) is not None:
            pytest.skip(f"mode setuid: {why}")
        yield SetuidSystem(None, os.stat(setuid.HELPER).st_gid)
        return
    if not os.access(packaged_program("sandbox-helper"), os.X_OK):
        pytest.skip("mode setuid: the helper was not built here (no cargo)")
    with private_system(top) as private:
        done = private.root(command, "setuid", "install")
        if done.returncode != 0 and any(words in done.stderr for words in UNFINISHED):
            pytest.skip(f"mode setuid: this build of the helper does not do it yet: {done.stderr.strip()}")
        assert done.returncode == 0, done.stdout + done.stderr
        gid = int(private.root("stat", "-c", "%g", setuid.HELPER).stdout)
        assert gid not in identities[True].groups
        yield SetuidSystem(private, gid)
