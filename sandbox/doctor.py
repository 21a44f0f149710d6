"""What this host can do, what it cannot, and the exact remedy. Looks and tries; leaves nothing behind."""

import contextlib
import errno
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import sandbox
from sandbox import trials
from sandbox.engine import syscalls
from sandbox.errors import SandboxError, printable
from sandbox.remedies import Family, allow_in_container, distribution, install, run_as_root, sysctl

# mount_setattr(2). Not imported from sandbox.host: that needs python-prctl, which is one of the things examined.
_BASELINE = (5, 12)
_CAP_SYS_ADMIN = 21
_PROGRAM_PATH = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin"
_LOW_MEMORY = 256 << 20
_LOW_DISK = 512 << 20


class Check(NamedTuple):
    """One finding. `remedy` is a command or a sentence, empty when `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Every check, in the order a person wants to read them."""
    from sandbox import doctor_features

    family = distribution()
    own, private = trials.trial(trials.as_we_are), trials.trial(trials.in_user_namespace)
    kernel = _kernel()
    return [
        kernel,
        _mount_api(),
        *_modes(kernel, own, private),
        *_forbidders(private),
        *_loop_devices(),
        *(_filesystem(name, family) for name in ("squashfs", "fuse", "erofs")),
        _overlay(family, own, private),
        *_features(own, private),
        _fuse_device(),
        *(_program(name, family) for name in ("squashfuse_ll", "tar2sqfs", "sqfs2tar")),
        _library("libarchive", "libarchive.so.13", family),
        _library("prctl", "python-prctl", family),
        _native_engine(),
        *doctor_features.examine(family),
        *_home(),
        _memory(),
    ]


def modes(checks: list[Check]) -> dict[str, bool]:
    """Which modes work, by name."""
    return {check.name.removeprefix("mode "): check.ok for check in checks if check.name.startswith("mode ")}


# -- kernel and modes -----------------------------------------------------------------------------------------


def _kernel() -> Check:
    release = os.uname().release
    numbers = release.split("-")[0].split(".")
    version = (int(numbers[0]), int("".join(filter(str.isdigit, numbers[1])) or 0)) if len(numbers) > 1 else (0, 0)
    wanted = ".".join(map(str, _BASELINE))
    if version >= _BASELINE:
        return Check("kernel", True, f"{release} (needs {wanted})")
    return Check("kernel", False, f"{release} is too old", f"boot Linux {wanted} or later")


def _mount_api() -> Check:
    """Only ENOSYS says that a call is not there: without privilege they answer EPERM, with bad arguments EBADF."""
    calls: dict[str, Callable[[], object]] = {
        "open_tree": lambda: os.close(syscalls.open_tree(syscalls.AT_FDCWD, b"/", 0)),
        "fsopen": lambda: os.close(syscalls.make_mount(b"tmpfs", [], 0)),
        "move_mount": lambda: syscalls.move_mount(-1, -1),
        "mount_setattr": lambda: syscalls.mount_setattr(-1),
    }
    absent = []
    for name, call in calls.items():
        try:
            call()
        except OSError as error:
            if error.errno == errno.ENOSYS:
                absent.append(name)
    if not absent:
        return Check("mount API", True, ", ".join(calls))
    return Check("mount API", False, f"{', '.join(absent)} not callable (ENOSYS)", allow_in_container())


def _modes(kernel: Check, own: trials.Trial, private: trials.Trial) -> list[Check]:
    if not kernel.ok:
        return [
            Check(f"mode {name}", False, f"kernel {kernel.detail}", kernel.remedy)
            for name in ("root", "setuid", "userns")
        ]
    return [_root_mode(own), _setuid_mode(), _userns_mode(private)]


def _root_mode(own: trials.Trial) -> Check:
    if not int(_status_field("CapEff") or "0", 16) >> _CAP_SYS_ADMIN & 1:
        who = "root without CAP_SYS_ADMIN" if os.geteuid() == 0 else "not root"
        remedy = allow_in_container() if os.geteuid() == 0 else "sudo sandbox run ..., or use another mode"
        return Check("mode root", False, who, remedy)
    failed = trials.failure(own, ("namespaces", "tmpfs"))
    if failed:
        return Check("mode root", False, f"{failed[0]}: {failed[2]}", allow_in_container())
    if failed := trials.failure(own, ("overlay",)):
        return Check("mode root", True, f"CAP_SYS_ADMIN; no overlay ({failed[2]}), which --dynamic needs")
    return Check("mode root", True, "CAP_SYS_ADMIN; mount namespace, tmpfs and overlay tried")


def _setuid_mode() -> Check:
    """For an ordinary user: whether the helper can be used, and whether it would refuse because of its own state."""
    from sandbox import setuid, setuid_status

    if (why := setuid.obstacle()) is not None:
        return Check("mode setuid", False, why.message, why.hint)
    wrong = [check for check in setuid_status.examine() if not check.ok]
    if wrong:
        return Check("mode setuid", False, f"{wrong[0].name}: {wrong[0].detail}", "sandbox setuid status")
    return Check("mode setuid", True, f"{setuid.HELPER}; its owner, place, version and policy are as they must be")


def _userns_mode(private: trials.Trial) -> Check:
    failed = trials.failure(private, ("namespaces", "id maps", "tmpfs"))
    if not failed:
        return Check("mode userns", True, "user and mount namespace, own id mapped, tmpfs tried")
    name, number, text = failed
    return Check("mode userns", False, f"{name}: {text}", _userns_remedy(number))


def _userns_remedy(number: int) -> str:
    if number == errno.ENOSPC or sysctl_value("user/max_user_namespaces") == "0":
        return sysctl("user.max_user_namespaces", "15000")
    if sysctl_value("kernel/unprivileged_userns_clone") == "0":
        return sysctl("kernel.unprivileged_userns_clone", "1")
    if sysctl_value("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return sysctl("kernel.apparmor_restrict_unprivileged_userns", "0")
    if number == errno.EINVAL:
        return "boot a kernel with CONFIG_USER_NS=y"
    return allow_in_container()


def _forbidders(private: trials.Trial) -> list[Check]:
    """What may stand in the way of user namespaces; those that this kernel does not know are not listed."""
    checks = []
    for name, bad, better in (
        ("user.max_user_namespaces", "0", "15000"),
        ("user.max_mnt_namespaces", "0", "15000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        value = sysctl_value(name.replace(".", "/"))
        if value:
            fine = value != bad
            checks.append(Check(name, fine, value, "" if fine else sysctl(name, better)))
    filtered = _status_field("Seccomp") == "2"
    blocked = filtered and trials.failure(private, ("namespaces",)) is not None
    detail = "a filter is on this process" if filtered else "no filter on this process"
    checks.append(Check("seccomp", not blocked, detail, allow_in_container() if blocked else ""))
    return checks


def sysctl_value(path: str) -> str:
    """What /proc/sys holds; empty where this kernel does not know it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys", path).read_text().strip()
    return ""


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


# -- devices and filesystems ----------------------------------------------------------------------------------


def _loop_devices() -> list[Check]:
    control = "/dev/loop-control"
    if not os.path.exists(control):
        remedy = run_as_root("modprobe loop")
        return [Check("loop devices", False, f"{control} is missing", f"{remedy}; in a container, add the device")]
    names = [path.name for path in Path("/sys/block").glob("loop*")]
    used = sum(Path("/sys/block", name, "loop/backing_file").exists() for name in names)
    detail = f"{len(names)} devices, {used} in use"
    if os.geteuid() != 0:
        return [Check("loop devices", True, f"{detail} (for modes root and setuid)")]
    hidden = [name for name in names if not os.path.exists(f"/dev/{name}")]
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return [Check("loop devices", False, f"{control}: {error.strerror}", allow_in_container())]
    if hidden:
        remedy = "mount a devtmpfs on /dev, or in a container add the devices"
        return [Check("loop devices", False, f"{detail}; no node in /dev for {' '.join(sorted(hidden))}", remedy)]
    return [Check("loop devices", True, detail)]


def _filesystem(name: str, family: Family) -> Check:
    if name in Path("/proc/filesystems").read_text().split():
        return Check(name, True, "in the kernel")
    modules = Path("/lib/modules", os.uname().release)
    for listing in ("modules.builtin", "modules.dep"):
        with contextlib.suppress(OSError):
            if f"/{name}.ko" in (modules / listing).read_text():
                return Check(name, True, "as a module")
    return Check(name, False, "not in this kernel, not among its modules", install("kernel-modules", family))


def _overlay(family: Family, *tried: trials.Trial) -> Check:
    """A module may be there and forbidden all the same (modprobe.d(5)): only trying tells."""
    if any(found.get("overlay", (0, ""))[0] == errno.ENODEV for found in tried):
        return Check("overlay", False, "the kernel has it not, nor loads it", run_as_root("modprobe overlay"))
    return _filesystem("overlay", family)


def _features(own: trials.Trial, private: trials.Trial) -> list[Check]:
    """What the trials showed beyond the modes themselves. Those of a mode that does not work are left out."""
    found = private if not trials.failure(private, ("tmpfs",)) else own
    described = {
        "xattr": ("tmpfs user xattrs", "tried", "boot Linux 6.6 or later; until then dynamic trees are copied"),
        "proc": ("new /proc", "can be mounted", "part of /proc is masked: run outside the container, or unmask it"),
    }
    checks = []
    for step, (name, good, remedy) in described.items():
        if step in found:
            number, text = found[step]
            checks.append(Check(name, not number, text if number else good, remedy if number else ""))
    if "overlay" in private:
        number, text = private["overlay"]
        remedy = "boot Linux 6.6 or later; until then dynamic trees are copied" if number else ""
        checks.append(Check("overlay in a user namespace", not number, text if number else "tried", remedy))
    if "fuse" in private:
        number, text = private["fuse"]
        remedy = "see /dev/fuse; until then images are extracted" if number else ""
        checks.append(Check("FUSE in a user namespace", not number, text if number else "tried", remedy))
    return checks


def _fuse_device() -> Check:
    device = "/dev/fuse"
    if not os.path.exists(device):
        remedy = f"{run_as_root('modprobe fuse')}; in a container, add the device"
        return Check(device, False, "missing", remedy)
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Check(device, False, error.strerror or str(error), run_as_root("chmod 0666 /dev/fuse"))
    return Check(device, True, "can be opened")


# -- programs, libraries, places ------------------------------------------------------------------------------


def _program(name: str, family: Family) -> Check:
    found = shutil.which(name, path=_PROGRAM_PATH)
    return Check(name, True, found) if found else Check(name, False, "not found", install(name, family))


def _library(module: str, name: str, family: Family) -> Check:
    try:
        importlib.import_module(module)
    except Exception as error:
        # libarchive-c raises whatever ctypes does when the library is not there: OSError, TypeError, AttributeError.
        return Check(name, False, " ".join(str(error).split()), install(name, family))
    return Check(name, True, "loads")


def packaged_program(name: str) -> Path:
    """Where an install puts a native program: in the package, never in PATH (packaging/README.md)."""
    return Path(sandbox.__file__).parent / "bin" / name


def _native_engine() -> Check:
    program = packaged_program("sandbox-engine")
    if os.access(program, os.X_OK):
        return Check("native engine", True, str(program))
    remedy = "install again with cargo (Rust 1.85 or later) on PATH; the Python engine works without it"
    return Check("native engine", False, "not built", remedy)


def _home() -> list[Check]:
    from sandbox.home import locate, not_ours, run_directory

    try:
        path = Path(os.fsdecode(locate(dict(os.environb), say=lambda _: None)))
    except SandboxError as error:
        return [Check("home", False, error.message, error.hint)]
    shown = printable(os.fsencode(path))
    existing = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    try:
        status = existing.stat()
    except OSError as error:
        return [Check("home", False, f"{shown}: {error.strerror}", "set SANDBOX_HOME to a directory of your own")]
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return [Check("home", False, f"{shown}: its file system is read-only", "set SANDBOX_HOME to another directory")]
    if existing == path and (trouble := not_ours(os.fsencode(path), status)):
        return [Check("home", False, f"{shown}: {trouble[0]}", trouble[1])]
    if not os.access(existing, os.W_OK | os.X_OK):
        why = f"{shown}: not yours to write to (owner uid {status.st_uid})"
        return [Check("home", False, why, "set SANDBOX_HOME to a directory of your own")]
    state = "" if existing == path else ", not made yet"
    found = [Check("home", True, f"{shown} on {_filesystem_type(status.st_dev)}{state}"), _disk(existing)]
    with contextlib.suppress(OSError):
        if elsewhere := run_directory(os.fsencode(existing), dict(os.environb)):
            # The locks that say what lives are known to one host alone.
            about = f"in {printable(elsewhere)}, as other hosts share the home's file system"
            found.append(Check("run directories", True, about))
    return found


def _filesystem_type(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == wanted:
            return line.split(" - ", 1)[1].split()[0]
    return "an unknown filesystem"


def _disk(where: Path) -> Check:
    import psutil

    free = psutil.disk_usage(str(where)).free
    low = free < _LOW_DISK
    return Check("space for the cache", not low, _size(free), "sandbox cache clean, or set SANDBOX_HOME" if low else "")


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available
    low = free < _LOW_MEMORY
    remedy = "use --scratch DIR, a directory on a disk" if low else ""
    return Check("memory", not low, f"{_size(free)} available", remedy)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"
