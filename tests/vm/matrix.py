"""The variants of `make test-vm`: data. Kernel, boot options, what is run in the machine, what must hold in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Name of a kernel here: the suite whose linux-image-amd64 it is.
KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
MODULES = ("loop", "squashfs", "overlay", "fuse")


class Session(NamedTuple):
    """One pytest. Sessions of one lane run in turn, the lanes at once: the machine has two processors."""

    name: str
    args: tuple[str, ...]
    as_user: bool = False
    lane: int = 0

    def data(self, variant: str) -> dict[str, Any]:
        return {**self._asdict(), "env": {"SANDBOX_VM_VARIANT": variant}}


class Variant(NamedTuple):
    """`setup`: shell lines run by root first. `timeout` is when a machine counts as hung, in seconds."""

    name: str
    why: str
    sessions: tuple[Session, ...]
    kernel: str = "6.1"
    cmdline: str = ""
    sysctls: Mapping[str, str] = {}
    setup: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES
    timeout: float = 600

    def job(self) -> dict[str, Any]:
        """What tests/vm/guest.py reads."""
        return {
            "variant": self.name,
            "modules": self.modules,
            "sysctls": dict(self.sysctls),
            "setup": self.setup,
            "sessions": [session.data(self.name) for session in self.sessions],
        }
