"""`sandbox doctor`, what goes beyond mounting: isolation, limits, networks, terminals, the front and its store."""

import os
import sys
from pathlib import Path

from sandbox import cgroups, host, network, subordinate
from sandbox.doctor import Check, sysctl_value
from sandbox.engine import syscalls
from sandbox.errors import HostError, SandboxError
from sandbox.plan_types import Mode
from sandbox.preparing import choose_mode
from sandbox.remedies import Family, install, run_as_root, sysctl
from sandbox.spec import Spec

_LANDLOCK_NEWEST_USED = 6
_ONE_IS_ENOUGH = "one of slirp4netns, pasta and (as root) nft is enough"
_CONTROLLERS = ("memory", "pids", "cpu")
_LIBRARIES = {
    "pyroute2": "--net private in modes root and userns",
    "psutil": "sandbox ps, top and inspect",
    "rich": "tables on a terminal",
    "shtab": "sandbox completion",
}


def examine(family: Family) -> list[Check]:
    """Every check, in the order a person wants to read them."""
    return [
        _landlock(),
        _filter(family),
        _namespaces(),
        *_limits(),
        *(_program(name, "for --as-root of ordinary users", family) for name in subordinate.PROGRAMS),
        _subordinate_ids(family),
        _private_network(family),
        *(_program(name, _ONE_IS_ENOUGH, family) for name in (network.SLIRP, network.PASTA, network.NFT)),
        _terminal(),
        *_front(),
        *(_python_library(name, what) for name, what in _LIBRARIES.items()),
    ]


def _landlock() -> Check:
    abi = syscalls.landlock_abi()
    if not abi:
        remedy = "boot Linux 5.13 or later with landlock in lsm=; until then no --allow-read, --allow-write"
        return Check("landlock", False, "this kernel has none", remedy)
    lacks = "" if abi >= _LANDLOCK_NEWEST_USED else f"; ABI {_LANDLOCK_NEWEST_USED} (Linux 6.12) also fences sockets"
    return Check("landlock", True, f"ABI {abi}{lacks}")


def _filter(family: Family) -> Check:
    from sandbox import seccomp

    try:
        length = len(seccomp.compile_filter(()))
    except SandboxError as error:
        remedy = f"{install('libseccomp.so.2', family)}; until then levels need --seccomp none"
        return Check("system call filter", False, error.message, remedy)
    return Check("system call filter", True, f"libseccomp makes it, {length} instructions")


def _limits() -> list[Check]:
    """Each controller by itself: a host may have some of them."""
    found = []
    for controller in _CONTROLLERS:
        name = f"--{controller}" if controller != "cpu" else "--cpus"
        try:
            where = cgroups.place({controller}, ask_systemd=False, change=False)
        except HostError as error:
            found.append(Check(f"limit {name}", False, error.message, error.hint))
        else:
            found.append(Check(f"limit {name}", True, f"cgroup v2 below {os.fsdecode(where)}"))
    return found


def _private_network(family: Family) -> Check:
    try:
        mode = choose_mode(Spec(net="private"), host.probe())
        found = network.look(mode, "job")
    except HostError as error:
        is_device = network.TUN in error.message
        remedy = run_as_root("modprobe tun; chmod 666 /dev/net/tun") if is_device else install(network.SLIRP, family)
        return Check("--net private", False, error.message, remedy)
    way = ", set up by the setuid helper" if mode is Mode.SETUID else ""
    return Check("--net private", True, f"by {os.path.basename(os.fsdecode(found.program))}{way}")


def _program(name: str, what: str, family: Family) -> Check:
    from sandbox.host import find_program

    found = find_program(name)
    if found:
        return Check(name, True, os.fsdecode(found))
    return Check(name, False, f"not found; {what}", install(name, family))


def _namespaces() -> Check:
    """Those that only the levels need; a limit of 0 forbids them also where the kernel has them (namespaces(7))."""
    name, kinds = "namespaces of the levels", ("pid", "net", "ipc", "uts", "cgroup")
    absent = [kind for kind in kinds if not os.path.exists(f"/proc/self/ns/{kind}")]
    if absent:
        remedy = "boot your distribution's own kernel; until then only level none"
        return Check(name, False, f"this kernel has no {', '.join(absent)} namespaces", remedy)
    forbidden = [f"user.max_{kind}_namespaces" for kind in kinds if sysctl_value(f"user/max_{kind}_namespaces") == "0"]
    if forbidden:
        return Check(name, False, f"{', '.join(forbidden)} is 0", sysctl(forbidden[0], "15000"))
    return Check(name, True, ", ".join(kinds))


def _subordinate_ids(family: Family) -> Check:
    """What --as-root has beside root; without any, root inside is the only id there."""
    name = "ids for --as-root"
    found = subordinate.look(Mode.ROOT if os.geteuid() == 0 else Mode.USERNS)
    if isinstance(found, str):
        return Check(name, False, f"{found}; --as-root has no other id than root", _ids_remedy(family))
    count = min(found.uids[1], found.gids[1])
    return Check(name, True, f"{count} beside root, of /etc/subuid and /etc/subgid" if count else "root needs none")


def _ids_remedy(family: Family) -> str:
    import pwd

    from sandbox.host import find_program

    if missing := next((name for name in subordinate.PROGRAMS if not find_program(name)), None):
        return install(missing, family)
    if os.geteuid() == 0:
        return "start it in the host's own user namespace, with all capabilities"
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "give this uid a name: useradd -u UID NAME"
    if not subordinate.is_listed(user):
        numbers = "{}-{}".format(*subordinate.free_range())
        return run_as_root(f"usermod --add-subuids {numbers} --add-subgids {numbers} {user}")
    return "as root, mend what is wrong there: chmod u+s newuidmap newgidmap, or ranges that are nobody else's"


def _terminal() -> Check:
    """What `-t` gives a job."""
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as error:
        return Check(
            "terminals", False, f"{error.strerror}", run_as_root("mount -t devpts -o ptmxmode=666 devpts /dev/pts")
        )
    return Check("terminals", True, "devpts gives one")


def command() -> list[str]:
    """How to start `sandbox` as the user did: the front beside this program, else this interpreter."""
    front = Path(sys.argv[0]).absolute().with_name("sandbox")
    return [str(front)] if os.access(front, os.X_OK) else [sys.executable, "-m", "sandbox"]


def _front() -> list[Check]:
    name, start = "front", Path(command()[0])
    try:
        native = start.name == "sandbox" and start.read_bytes()[:4] == b"\x7fELF"
    except OSError as error:
        return [Check(name, False, f"{start}: {error.strerror}", "install sandbox again")]
    if not native:
        remedy = "install again with cargo (Rust 1.85 or later) on PATH; until then each start costs Python's"
        return [Check(name, False, f"{start} is not native", remedy)]
    if os.environ.get("SANDBOX_PLAN_CACHE") == "0":
        return [
            Check(name, True, str(start)),
            Check("store of plans", False, "SANDBOX_PLAN_CACHE is 0", "unset SANDBOX_PLAN_CACHE"),
        ]
    return [Check(name, True, f"{start}; plans are stored")]


def _python_library(name: str, what: str) -> Check:
    import importlib

    try:
        importlib.import_module(name)
    except Exception as error:
        return Check(name, False, " ".join(str(error).split()), f"pip install {name}; it is for {what}")
    return Check(name, True, f"loads; for {what}")
