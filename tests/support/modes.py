"""Which (engine, mode) pairs this machine supports, and whether each of them ran."""

import contextlib
import os
from pathlib import Path

import prctl
import pytest

import sandbox
from sandbox import setuid
from sandbox.engine import syscalls
from tests.support.users import Identity

Pair = tuple[str, str]


def native_engine() -> Path | None:
    """The native program inside the package, where it was built."""
    program = Path(sandbox.__file__).parent / "bin" / "sandbox-engine"
    return program if os.access(program, os.X_OK) else None


def userns_works(who: Identity) -> bool:
    """Whether `who` may make a user and mount namespace with a map, tried in a process of its own."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            if os.geteuid() == 0 and who.as_user:
                os.setgroups(who.groups)
                os.setresgid(who.gid, who.gid, who.gid)
                os.setresuid(who.uid, who.uid, who.uid)
                # A change of ids takes the right to write one's own uid_map (proc(5)).
                prctl.set_dumpable(1)
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
            Path("/proc/self/uid_map").write_text(f"{who.uid} {who.uid} 1")
            syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def require(engine: str, mode: str, user: Identity) -> None:
    """Skip the test where there is no such pair, with the reason. Of the setuid helper its fixture says it."""
    if mode == "root" and os.geteuid() != 0:
        pytest.skip("mode root is root's: an ordinary user started the suite")
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built")
    if mode == "userns" and not userns_works(user):
        pytest.skip("the kernel lets this user make no user namespace")


def expected(user: Identity | None) -> set[Pair]:
    """Every pair that a complete run of the suite must have tried here."""
    engines = ["python", *(["native"] if native_engine() else [])]
    modes = ["root"] if os.geteuid() == 0 else []
    if user is not None and userns_works(user):
        modes.append("userns")
    pairs = {(engine, mode) for engine in engines for mode in modes}
    # As root the suite installs the helper for itself: the fixture `setuid_system` says whether that worked.
    return pairs | ({("native", "setuid")} if setuid.obstacle() is None else set())
