"""What a variant of `make test-vm` is: a machine, and what is run in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MODULES = ("loop", "squashfs", "overlay", "fuse", "erofs", "tun")
# Where the tests look for what they would download (tests/support/wheels.py).
DOWNLOADS = "/srv/sandbox/downloads"


class Session(NamedTuple):
    """One pytest. Sessions of one lane run in turn, the lanes at once: the machine has two processors."""

    name: str
    args: tuple[str, ...]
    as_user: bool = False
    lane: int = 0

    def share(self, number: int, of: int) -> "Session":
        """With the part of its tests that tests/vm/share.py deals a machine."""
        return self._replace(args=("-p", "tests.vm.share", "--share", f"{number}/{of}", *self.args))

    def data(self, env: Mapping[str, str]) -> dict[str, Any]:
        """As tests/vm/guest.py wants it."""
        return {**self._asdict(), "env": env}


def lanes(name: str, *args: str, by: str = "test") -> tuple[Session, Session]:
    """Tests of a variant with `shares`, half for each lane. By "file" where no two of one may run at once, as with
    `pytest -n 2 --dist loadfile`: root sees what both lanes run.
    """
    first, second = ((f"--{by}-lane", f"{number}/2", *args) for number in (1, 2))
    return Session(name, first), Session(f"{name}-beside", second, lane=1)


def halves(name: str, file: str, words: str, beside: str) -> tuple[Session, Session]:
    """A file's tests for both lanes: those that the words do not select, and as NAME-BESIDE those that they do."""
    return (
        Session(name, (file, "-k", f"not ({words})")),
        Session(f"{name}-{beside}", (file, "-k", words), lane=1),
    )


# `sandbox setuid install`, in `Variant.fails`.
INSTALL = "install"
# The table's own lines; every variant begins with them.
EXPECTATIONS = halves("expectations", "tests/vm/expectations.py", "setuid or install", "setuid")


class Variant(NamedTuple):
    """A machine. `sysctls` are set and `setup` (shell lines) is run by root before the sessions.

    `fails`: (mode, feature), a mode alone or INSTALL, and words of the one line that is said; all else must work.
    `images`: what an ordinary user's images are served by in mode userns, as stat(1) names its filesystem.
    `features`: what is tried in each mode, of those in tests/vm/expectations.py; all of them where it names none.
    `tools`: a suite and packages of it, for /srv/sandbox/tools.
    `downloads`: whether what the tests take from PyPI and Debian is in the machine.
    `timeout`: when the machine counts as hung, in seconds. `default`: part of `make test-vm` without VM=, in half
    an hour.
    `shares`: over how many machines the tests of each session are dealt, so that each machine takes minutes.
    """

    name: str
    why: str
    kernel: str = "6.1"
    cmdline: str = ""
    sysctls: Mapping[str, str] = {}
    setup: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES
    fails: Mapping[str | tuple[str, str], str] = {}
    images: str = "tmpfs"
    features: tuple[str, ...] = ()
    tools: tuple[str, tuple[str, ...]] | None = None
    sessions: tuple[Session, ...] = EXPECTATIONS
    downloads: bool = False
    timeout: float = 900
    default: bool = True
    shares: int = 1

    def failure(self, mode: str, feature: str) -> str:
        """Words of the line that this variant must say there, or nothing where it must work."""
        return self.fails.get((mode, feature)) or self.fails.get(mode, "")

    def dealt(self) -> tuple["Variant", ...]:
        """A machine for each share, named NAME/1 and so on; the variant itself where it has only one."""
        if self.shares == 1:
            return (self,)
        return tuple(
            self._replace(
                name=f"{self.name}/{number}",
                sessions=tuple(session.share(number, self.shares) for session in self.sessions),
                shares=1,
            )
            for number in range(1, self.shares + 1)
        )

    def job(self) -> dict[str, Any]:
        """What tests/vm/guest.py reads."""
        env = {"SANDBOX_VM_VARIANT": self.name}
        if self.downloads:
            env["SANDBOX_TESTS_CACHE"] = DOWNLOADS
        return {
            "modules": self.modules,
            "sysctls": dict(self.sysctls),
            "setup": self.setup,
            "tools": self.tools,
            "downloads": self.downloads,
            "sessions": [session.data(env) for session in self.sessions],
        }
