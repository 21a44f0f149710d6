"""Cgroups (version 2): finding a place for a run's own, making it, and removing what a run leaves of it.

A place is a directory that this user may make cgroups in and whose children have the controllers that are asked for:
an ancestor that was delegated to the user, or a scope that systemd makes for this process.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, StepError, reason

_MAGIC = 0x63677270
_PERIOD_US = 100_000
UNLIMITED = 2**64 - 1
_SYSTEMD_SECONDS = 5.0
_SESSIONS = re.compile(rb"user@\d+\.service")
_EMPTY_SECONDS = 2.0
# How deep a command may have nested cgroups of its own for them to be removed.
_DEPTH = 64


def place(controllers: set[str], *, ask_systemd: bool, change: bool = True) -> bytes:
    """The absolute path of a cgroup to make the run's in. Raises HostError and says why there is none.

    Without `ask_systemd` the own cgroup stands for the scope that systemd would make in its place. Without `change` no
    controller is switched on: one that is offered counts.
    """
    mount = _mount_point()
    if mount is None:
        raise HostError("this host has no cgroup v2", hint="mount cgroup2, or use --limits best-effort")
    lacking = controllers - set(_read(mount + b"/cgroup.controllers").split())
    if lacking:
        why = f"cgroup v2 has no controller {' and '.join(sorted(lacking))} here"
        hint = "start without cgroup v1 (systemd.unified_cgroup_hierarchy=1), or use --limits best-effort"
        raise HostError(why, hint=hint)
    own = _own(mount)
    systemd = os.path.isdir("/run/systemd/system")
    for path in _ancestors(own, mount):
        # Root may write anywhere, a user to all of its session; but what systemd has not delegated is systemd's, and
        # it changes the controllers there without asking.
        if _is_ours(path) and (not systemd or _is_delegated(path, mount)) and _enable(path, controllers, change=change):
            return path
    if systemd and not ask_systemd:
        return own
    if systemd and (scope := _ask_systemd(mount)) and _enable(scope, controllers, change=True):
        return scope
    raise _no_place(systemd=systemd)


def _no_place(*, systemd: bool) -> HostError:
    """Why there is none, and who can change that."""
    effort = "use --limits best-effort"
    if not systemd:
        hint = (
            f"have root chown a cgroup, its cgroup.procs and its cgroup.subtree_control; start in a leaf; or {effort}"
        )
        return HostError("no cgroup is delegated to this user", hint=hint)
    if os.geteuid() == 0:
        return HostError("systemd makes no scope for this run", hint=f"see that busctl reaches systemd, or {effort}")
    hint = f"log in, so that you have a systemd --user and XDG_RUNTIME_DIR names its place, or {effort}"
    return HostError("no systemd of this user's makes a scope for this run", hint=hint)


def _mount_point() -> bytes | None:
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index(b"-") + 1] == b"cgroup2":
                return fields[4]
    return None


def _own(mount: bytes) -> bytes:
    with open("/proc/self/cgroup", "rb") as file:
        for line in file:
            if line.startswith(b"0::"):
                return os.path.normpath(mount + b"/" + line[3:].rstrip(b"\n"))
    return mount


def _ancestors(path: bytes, mount: bytes) -> list[bytes]:
    found = [path]
    while path != mount and path.startswith(mount):
        found.append(path := os.path.dirname(path))
    return found


def _is_ours(path: bytes) -> bool:
    """Delegated, as cgroups(7) has it: the directory and both files may be written to."""
    return all(os.access(path + file, os.W_OK) for file in (b"", b"/cgroup.procs", b"/cgroup.subtree_control"))


def _is_delegated(path: bytes, mount: bytes) -> bool:
    """By systemd, to somebody else than the manager of a user's session, which is the only one to write in its part."""
    for unit in _ancestors(path, mount):
        # Only root sees the first (xattr(7)); the second is older than some systemds.
        for name in (b"trusted.delegate", b"user.delegate"):
            with contextlib.suppress(OSError):
                if os.getxattr(unit, name) == b"1":
                    return not _SESSIONS.fullmatch(os.path.basename(unit))
    return False


def _enable(path: bytes, controllers: set[str], *, change: bool) -> bool:
    """Controllers for the children of a cgroup; without `change`, whether they could be had.

    With processes in it, a cgroup's children are no domains, and nothing can be moved into them: cgroups(7). The real
    root, which has no type, is free of that rule.
    """
    kind = _read(path + b"/cgroup.type").strip()
    if kind and (kind != "domain" or _read(path + b"/cgroup.procs")):
        return False
    missing = controllers - set(_read(path + b"/cgroup.subtree_control").split())
    if not missing:
        return True
    if not change:
        return missing <= set(_read(path + b"/cgroup.controllers").split())
    try:
        _write(path + b"/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))
    except OSError:
        return False
    return True


def _ask_systemd(mount: bytes) -> bytes | None:
    """A delegated scope of this process's own, in the slice of all of them; it goes when its last process does."""
    pid = os.getpid()
    which = ["--system"] if os.geteuid() == 0 else ["--user"]
    call = [
        *("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", f"sandbox-{pid}-{os.urandom(4).hex()}.scope", "fail"),
        *("4", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed"),
        *("Slice", "s", "sandbox.slice", "0"),
    ]
    before = _own(mount)
    try:
        program = ["/usr/bin/busctl", *which, "--quiet", "call"]
        subprocess.run([*program, *call], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    # The call answers before the job is done.
    end = time.monotonic() + _SYSTEMD_SECONDS
    while (scope := _own(mount)) == before:
        if time.monotonic() > end:
            return None
        time.sleep(0.005)
    # A cgroup with processes in it cannot give its children controllers.
    leaf = scope + b"/supervisor"
    try:
        with fsops.closing(os.open(scope, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            os.close(fsops.make_dir(fd, b"supervisor", 0o755))
        _write(leaf + b"/cgroup.procs", str(pid))
    except OSError:
        return None
    return scope


def _read(path: bytes) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: bytes, text: str) -> None:
    with fsops.closing(control(path)) as fd:
        os.write(fd, text.encode())


def control(path: bytes, directory: int | None = None) -> int:
    """A control file of a cgroup, to write to."""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)


# -- a run's own ----------------------------------------------------------------------------------------------


class Cgroup:
    """The cgroup of one run, open: `fd` is taken over. Raises OSError."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # Where a process writes "0" that cannot be born in it.
        self.procs = -1 if sys.has_clone3() else control(b"cgroup.procs", fd)

    def limit(self, *, memory: int, swap: int, pids: int, cpu_us: int) -> None:
        """Set the limits that are not UNLIMITED. Raises OSError."""
        self._set("memory.max", memory, str(memory))
        with contextlib.suppress(FileNotFoundError):
            self._set("memory.swap.max", swap, str(swap))
        self._set("pids.max", pids, str(pids))
        # All of a job or nothing: what is left after its largest process was killed is of no use.
        self._set("memory.oom.group", memory, "1")
        self._set("cpu.max", cpu_us, f"{cpu_us} {_PERIOD_US}")

    def _set(self, file: str, value: int, text: str) -> None:
        if value != UNLIMITED:
            with fsops.closing(control(file.encode(), self.fd)) as fd:
                os.write(fd, text.encode())

    def close(self) -> None:
        for fd in (self.procs, self.fd):
            if fd >= 0:
                os.close(fd)

    def fork(self) -> int:
        """os.fork; the child is born in the cgroup, or has to `enter` it before anything else. Raises StepError."""
        with _entering():
            return sys.fork_into(self.fd) if self.procs < 0 else os.fork()

    def enter(self) -> None:
        """This process and all its children belong to it, as they do if it was born there. Raises StepError."""
        if self.procs >= 0:
            with _entering():
                os.write(self.procs, b"0")

    def kill(self) -> None:
        """Everything in it (Linux 5.14)."""
        with contextlib.suppress(OSError):
            _kill(self.fd)

    def peaks(self) -> dict[str, int | None]:
        """What the kernel counted; None where it does not."""
        return {
            "memory": _number(_text(self.fd, "memory.peak")),
            "processes": _number(_text(self.fd, "pids.peak")),
            "oom_kills": _event(_text(self.fd, "memory.events"), "oom_kill"),
            "forks_refused": _event(_text(self.fd, "pids.events"), "max"),
        }


def make(parent: int, name: bytes) -> Cgroup:
    """A new one. Raises OSError."""
    if not is_cgroup(parent):
        raise OSError(20, "no cgroup of version 2")
    return Cgroup(fsops.make_new_dir(parent, name))


@contextlib.contextmanager
def _entering() -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise StepError("cannot fork into the run's cgroup", hint="its --pids are all there, or this user's") from None
    except OSError as error:
        raise StepError(f"cannot enter the run's cgroup: {reason(error)}") from None


def _text(fd: int, file: str) -> str:
    try:
        with fsops.closing(os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)) as opened:
            return os.read(opened, 4096).decode()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _event(text: str, name: str) -> int | None:
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[0] == name), None)


def _kill(fd: int) -> None:
    with fsops.closing(control(b"cgroup.kill", fd)) as file:
        os.write(file, b"1")


def is_cgroup(parent: int) -> bool:
    return sys.statfs_type(parent) == _MAGIC


def remove(parent: int, name: bytes) -> None:
    """Kill what is in the cgroup, wait for its end, and remove it with those that the command made in it."""
    try:
        fd = fsops.open_dir(parent, name)
    except FileNotFoundError:
        return
    with fsops.closing(fd):
        end = time.monotonic() + _EMPTY_SECONDS
        if "populated 1" in _text(fd, "cgroup.events"):
            _kill(fd)
        while "populated 1" in _text(fd, "cgroup.events") and time.monotonic() < end:
            time.sleep(0.005)
        _remove_children(fd, _DEPTH)
    fsops.remove_dir(parent, name)


def _remove_children(fd: int, depth: int) -> None:
    with os.scandir(fd) as entries:
        names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        if depth:
            with fsops.closing(fsops.open_dir(fd, name)) as child:
                _remove_children(child, depth - 1)
        fsops.remove_dir(fd, name)
