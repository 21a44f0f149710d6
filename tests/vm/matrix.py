"""The variants of `make test-vm`: data. Kernel, boot options, what is run in the machine, what must hold in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Name of a kernel here: the suite whose linux-image-amd64 it is.
KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
MODULES = ("loop", "squashfs", "overlay", "fuse")
MODES = ("root", "setuid", "userns")


class Session(NamedTuple):
    """One pytest. Sessions of one lane run in turn, the lanes at once: the machine has two processors."""

    name: str
    args: tuple[str, ...]
    as_user: bool = False
    lane: int = 0

    def data(self, variant: str) -> dict[str, Any]:
        """As tests/vm/guest.py wants it."""
        return {**self._asdict(), "env": {"SANDBOX_VM_VARIANT": variant}}


# The table's own lines; every variant begins with them.
EXPECTATIONS = Session("expectations", ("tests/vm/expectations.py",))
_CASES = "tree.sfs or tree.zip or own or killed or denied"
_CONFORMANCE = Session("conformance", ("tests/conformance", "-k", _CASES), lane=1)
_SETUID = (
    Session("setuid-trees", ("tests/conformance", "-k", "setuid and (static or dynamic)"), lane=1),
    Session("setuid-others", ("tests/conformance", "-k", "setuid and not (static or dynamic)")),
)
_USER = Session("user", ("tests/conformance", "-k", f"userns and ({_CASES})"), as_user=True)
_CORE = (EXPECTATIONS, _CONFORMANCE)


class Variant(NamedTuple):
    """A machine. `sysctls` are set and `setup` (shell lines) is run by root before the sessions.

    `fails`: (mode, feature) or a mode alone, and words of the one line that is said then; all else must work.
    `timeout`: when the machine counts as hung, in seconds. `default`: part of `make test-vm` without VM=, in half
    an hour.
    """

    name: str
    why: str
    kernel: str = "6.1"
    cmdline: str = ""
    sysctls: Mapping[str, str] = {}
    setup: tuple[str, ...] = ()
    modules: tuple[str, ...] = MODULES
    fails: Mapping[str | tuple[str, str], str] = {}
    sessions: tuple[Session, ...] = (EXPECTATIONS,)
    timeout: float = 900
    default: bool = True

    def failure(self, mode: str, feature: str) -> str:
        """Words of the line that this variant must say there, or nothing where it must work."""
        return self.fails.get((mode, feature)) or self.fails.get(mode, "")

    def job(self) -> dict[str, Any]:
        """What tests/vm/guest.py reads."""
        return {
            "variant": self.name,
            "modules": self.modules,
            "sysctls": dict(self.sysctls),
            "setup": self.setup,
            "sessions": [session.data(self.name) for session in self.sessions],
        }


_TOO_OLD = dict.fromkeys(MODES, "sandbox needs 5.12")
_NO_LOOP = "modprobe loop"
_DISK = "/dev/vdd"


def _home(name: str, *setup: str) -> Variant:
    """Homes, caches and sources on a filesystem of their own: the tests' areas are below /var/tmp."""
    return Variant(f"home-{name}", f"homes on {name}", setup=(*setup, "chmod 1777 /var/tmp"))


def _images_fail(words: str) -> dict[str | tuple[str, str], str]:
    return {(mode, feature): words for mode in ("root", "setuid") for feature in ("static image", "dynamic image")}


def with_systemd(variant: Variant) -> Variant:
    """Booted by systemd, with the setuid helper and a session of systemd's for the user of the machine."""
    units = "dbus.socket systemd-logind.service user@$(id -u tester).service"
    setup = (
        "/srv/sandbox/.venv/bin/sandbox setuid install",
        "usermod -aG sandbox tester",
        f"systemctl start {units} || {{ journalctl -b -n 60 --no-pager; exit 1; }}",
    )
    return variant._replace(cmdline=f"{variant.cmdline} vm.systemd", setup=setup)


_PROVEN = (
    Variant("6.1", "Debian 12", sessions=_CORE),
    Variant("6.12", "Debian 13's kernel", kernel="6.12", sessions=_CORE),
    Variant("newest", "the newest kernel of the package source", kernel="newest", sessions=_CORE),
    Variant("5.10", "Debian 11's kernel, below the baseline", kernel="5.10", fails=_TOO_OLD),
    Variant(
        "userns-max-0",
        "user namespaces off, by their number",
        sysctls={"user.max_user_namespaces": "0"},
        fails={"userns": "user.max_user_namespaces=15000"},
        sessions=(EXPECTATIONS, *_SETUID),
    ),
)
# Asked for by name: `make test-vm VM='systemd no-loop'`. Their expectations have not been seen to hold yet.
_BY_NAME = (
    Variant(
        "userns-clone-0",
        "user namespaces off, by Debian's switch",
        sysctls={"kernel.unprivileged_userns_clone": "0"},
        fails={"userns": "kernel.unprivileged_userns_clone=1"},
    ),
    Variant("user", "an ordinary user's own session of the suite", sessions=(EXPECTATIONS, _USER._replace(lane=1))),
    with_systemd(
        Variant(
            "systemd",
            "systemd as init, its cgroups, its /dev",
            sessions=(
                EXPECTATIONS,
                Session("scopes", ("tests/e2e/test_systemd_scope.py", "tests/e2e/test_cgroups.py"), lane=1),
                Session("scopes-user", ("tests/e2e/test_systemd_scope.py",), as_user=True, lane=1),
            ),
        )
    ),
    Variant("fuse-open", "/dev/fuse open to users", setup=("chmod 666 /dev/fuse",)),
    Variant("loop-max-1", "one loop device made at boot", cmdline="loop.max_loop=1"),
    Variant("no-loop", "no loop module", cmdline="module_blacklist=loop", fails=_images_fail(_NO_LOOP)),
    Variant("no-squashfs", "no squashfs module", cmdline="module_blacklist=squashfs", fails=_images_fail("squashfs")),
    Variant("no-overlay", "no overlay module", cmdline="module_blacklist=overlay"),
    Variant("hidepid", "hidepid=2", setup=("mount -o remount,hidepid=2 /proc",)),
    Variant("ptrace-3", "nobody may trace", sysctls={"kernel.yama.ptrace_scope": "3"}),
    Variant("apparmor", "AppArmor mediates user namespaces", kernel="6.12", cmdline="lsm=landlock,yama,apparmor"),
    _home("tmpfs", "mount -t tmpfs home /var/tmp"),
    _home("ext4", f"mkfs.ext4 -q {_DISK}", f"mount {_DISK} /var/tmp"),
    _home("xfs", f"mkfs.xfs -q {_DISK}", f"mount {_DISK} /var/tmp"),
    _home("btrfs", f"mkfs.btrfs -q {_DISK}", f"mount {_DISK} /var/tmp"),
    _home(
        "overlay",
        "mount -t tmpfs layers /mnt && mkdir /mnt/upper /mnt/work",
        "mount -t overlay -o lowerdir=/var/tmp,upperdir=/mnt/upper,workdir=/mnt/work home /var/tmp",
    ),
    _home("noexec", "mount -t tmpfs -o noexec home /var/tmp"),
    _home("nosuid", "mount -t tmpfs -o nosuid,nodev home /var/tmp"),
    *(
        Variant(
            f"full-{kernel}",
            f"the whole suite on {kernel}",
            kernel=kernel,
            sessions=(
                Session("suite", ("tests/conformance", "tests/e2e", "tests/native")),
                Session("attacks", ("tests/attack",), lane=1),
            ),
            timeout=7200,
        )
        for kernel in ("6.1", "6.12", "newest")
    ),
)
VARIANTS = (*_PROVEN, *(variant._replace(default=False) for variant in _BY_NAME))


def by_name(name: str) -> Variant:
    """KeyError when there is none of that name."""
    return {variant.name: variant for variant in VARIANTS}[name]
