"""What this machine can do: the few facts a launch needs (the whole picture is `sandbox doctor`)."""

import contextlib
import errno
import os

from sandbox.errors import HostError
from sandbox.plan_types import Mode
from sandbox.record import Record

BASELINE = (5, 12)
# tmpfs holds user.* extended attributes since then, which `userxattr` overlays need (tmpfs(5)).
TMPFS_USER_XATTR = (6, 6)
# squashfs can be id-mapped since then (mount_setattr(2)); tmpfs since 6.3.
SQUASHFS_IDMAP = (6, 2)
# f_type of filesystems that cannot, and the first kernel where they can: statfs(2), linux/magic.h. The programs that
# serve FUSE would have to know of it.
_IDMAPS: dict[int, tuple[int, int] | None] = {
    0x794C7630: None,  # overlay
    0x65735546: None,  # FUSE
    0x6969: None,  # NFS
    0x01021997: None,  # 9p
    0xFF534D42: None,  # CIFS
    0xFE534D42: None,  # SMB
    0x01021994: (6, 3),  # tmpfs
    0x73717368: SQUASHFS_IDMAP,
}
PROGRAM_DIRS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin")


class Host(Record):
    """Facts about this host and this user. `kernel` is (major, minor); `redirects`: overlays may have redirect_dir.

    `landlock` is the ABI of the kernel's Landlock where a fence is wanted, else 0. `id_maps`: whether there are user
    namespaces to be had for id-mapped mounts.
    """

    uid: int
    gid: int
    kernel: tuple[int, int]
    may_mount: bool
    memory: int
    redirects: bool = True
    landlock: int = 0
    id_maps: bool = True


def probe() -> Host:
    """Ask the kernel. Raises HostError below the baseline."""
    import prctl  # here, so that the command line can be described (man pages, completion) where it is not installed

    release = os.uname().release
    major, _, rest = release.partition(".")
    minor = "".join(c for c in rest.partition(".")[0] if c.isdigit())
    kernel = (int(major), int(minor or 0))
    if kernel < BASELINE:
        raise HostError(
            f"this kernel is {release}, sandbox needs {BASELINE[0]}.{BASELINE[1]} or later (mount_setattr)",
            hint="boot a newer kernel",
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(os.getuid(), os.getgid(), kernel, bool(prctl.cap_effective.sys_admin), memory)


def may_map_ids() -> bool:
    """Whether root may make a user namespace, which an id-mapped mount is described by (mount_setattr(2))."""
    return _sysctl("user/max_user_namespaces") != "0"


def maps_ids(f_type: int, host: Host) -> bool:
    """Whether files of such a filesystem can be shown as another user's. What is not known of here is tried."""
    since = _IDMAPS.get(f_type, BASELINE)
    return host.id_maps and since is not None and host.kernel >= since


def choose_mode(wanted: str, host: Host, *, helper: bool = True) -> Mode:
    """Where the right to mount shall come from: root, else the setuid helper, else a user namespace.

    Raises HostError when an explicit choice cannot be had. Whether user namespaces work shows when one is made.
    """
    if wanted == "landlock":
        return Mode.LANDLOCK
    if wanted == "root" or (wanted == "auto" and host.may_mount):
        if not host.may_mount:
            raise HostError(
                "--mode root: this process may not mount (no CAP_SYS_ADMIN)",
                hint="run as root, or let sandbox choose with --mode auto",
            )
        return Mode.ROOT
    if wanted == "setuid" or (wanted == "auto" and helper):
        from sandbox import setuid

        if (why := setuid.obstacle()) is None:
            return Mode.SETUID
        if wanted == "setuid":
            raise HostError(f"--mode setuid: {why.message}", hint=why.hint)
    return Mode.USERNS


def find_program(name: str) -> bytes:
    """Absolute path of a program in the system's own directories (never the caller's PATH), or b""."""
    for directory in PROGRAM_DIRS:
        if os.access(path := f"{directory}/{name}", os.X_OK):
            return path.encode()
    return b""


def fuse_usable() -> bool:
    """Whether this user can open /dev/fuse (the kernel also wants it opened inside the namespace)."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _sysctl(path: str) -> str:
    try:
        with open(f"/proc/sys/{path}") as file:
            return file.read().strip()
    except OSError:
        return ""


def userns_remedy(error_number: int) -> str:
    """Why an unshare of a user namespace failed, and what to do, from what the kernel shows."""
    if _sysctl("user/max_user_namespaces") == "0" or error_number == errno.ENOSPC:
        return "raise the limit: sysctl user.max_user_namespaces=15000, run as root, or sandbox setuid install"
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "allow them: sysctl kernel.unprivileged_userns_clone=1, run as root, or sandbox setuid install"
    otherwise = "run as root, or sandbox setuid install; a container needs --cap-add SYS_ADMIN"
    return forbidden_remedy(", run as root, or sandbox setuid install; a container needs") or otherwise


def forbidden_remedy(confined: str = ", or start the container with") -> str:
    """Who stands behind an EPERM or EACCES of a namespace or a mount, as far as the kernel shows it. `confined`: what
    else there is to do where that is an AppArmor profile, up to the option of a container.
    """
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
            "run as root, or sandbox setuid install"
        )
    # "NAME (enforce)", or "unconfined": proc_pid_attr(5).
    with contextlib.suppress(OSError), open("/proc/self/attr/current") as file:
        if file.read().rstrip("\n\0").endswith("(enforce)"):
            return f"an AppArmor profile is on: allow it there{confined} --security-opt apparmor=unconfined"
    with open("/proc/self/status") as file:
        filtered = any(line.split() == ["Seccomp:", "2"] for line in file)
    if filtered:
        return (
            "a seccomp filter is on: start the container with --cap-add SYS_ADMIN or "
            "--security-opt seccomp=unconfined, the sandbox around this one with --seccomp none"
        )
    return ""
