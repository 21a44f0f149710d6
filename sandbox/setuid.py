"""Setuid mode for the one who launches: where the helper is, whether it may be used, which plans it takes."""

import contextlib
import os
import stat
from collections.abc import Sequence

from sandbox import fsops
from sandbox.errors import HostError
from sandbox.plan import Plan
from sandbox.record import Record

# Where `sandbox setuid install` and the packages put it. Never looked for elsewhere.
HELPER = "/usr/libexec/sandbox/sandbox-helper"
MODE = 0o4750
POLICY = "/etc/sandbox/policy.toml"
GROUP = "sandbox"
RUNTIME = "/run/sandbox"
_CAP_SYS_ADMIN = 21
_ELSEWHERE = "use --mode userns"
# In the home: what the helper said of itself, so that it need not be started twice for every launch.
_REMEMBERED = b"helper-version"


class Version(Record):
    """What `sandbox-helper version` says: its own version, and the plan versions it takes, both included."""

    text: str
    first: int
    last: int


def obstacle() -> HostError | None:
    """What keeps this process from using the helper, and the way out; None when nothing does."""
    if os.getuid() == 0:
        return HostError("setuid mode is for ordinary users: root needs no helper", hint="use --mode root")
    try:
        status = os.stat(HELPER)
    except OSError:
        hint = f"as root: sandbox setuid install; or {_ELSEWHERE}"
        return HostError("the setuid helper is not installed", hint=hint)
    if status.st_uid != 0 or not status.st_mode & stat.S_ISUID or not stat.S_ISREG(status.st_mode):
        return HostError(f"{HELPER} is not a setuid-root program", hint="sandbox setuid status says more")
    if not os.access(HELPER, os.X_OK):
        return _outside(status.st_gid)
    if os.statvfs(HELPER).f_flag & os.ST_NOSUID:
        return HostError(f"{HELPER} is on a file system mounted nosuid", hint=_ELSEWHERE)
    return _powerless()


def _outside(gid: int) -> HostError:
    """For somebody whom the helper's mode keeps out: not in the group, or not yet in this session."""
    import grp
    import pwd

    with contextlib.suppress(KeyError):
        group = grp.getgrgid(gid)
        user = pwd.getpwuid(os.getuid()).pw_name
        if user in group.gr_mem:
            return HostError(
                f"this session has not got the group {group.gr_name} yet", hint="log in again, or start it with newgrp"
            )
        return HostError(
            f"only members of the group {group.gr_name} may use the setuid helper, and {user} is none",
            hint=f"as root: usermod -aG {group.gr_name} {user}, then log in again; or {_ELSEWHERE}",
        )
    return HostError(f"only members of group {gid} may use the setuid helper", hint=_ELSEWHERE)


def _powerless() -> HostError | None:
    """Where the kernel gives a setuid program nothing: no_new_privs (prctl(2)), a bounding set without the right."""
    fields = {}
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    if fields.get("NoNewPrivs", "").strip() == "1":
        why = "no_new_privs is set here (as in a sandbox), so the setuid helper gains nothing"
        return HostError(why, hint=_ELSEWHERE)
    if not int(fields.get("CapBnd", "").strip() or "0", 16) >> _CAP_SYS_ADMIN & 1:
        why = "CAP_SYS_ADMIN is not in the bounding set, so the setuid helper cannot mount"
        return HostError(why, hint="start the container with --cap-add SYS_ADMIN")
    return None


def shows_any_image() -> bool:
    """Whether the policy lets users' images be mounted as they are: then the helper wants overlays without redirects,
    since such an image could hold some.
    """
    with contextlib.suppress(OSError), open(POLICY, "rb") as file:
        # The helper's TOML has a key and its value on one line, so no parser is needed (and none is loaded).
        return any(b"".join(line.split(b"#")[0].split()) == b'images="any"' for line in file)
    return False


def acceptable(plan: Plan, home_fd: int, beside: Sequence[str] = ()) -> tuple[Plan, int]:
    """The plan as the installed helper takes it, and the version to encode it in. Raises HostError when it takes none
    that says the same, or knows nothing of the options in `beside`, which are no part of plans. Asks the helper once,
    and again when it is another file.

    Nothing depends on the memory for safety: the helper itself refuses what it does not know.
    """
    from sandbox import versions

    helper = remembered(home_fd)
    takes = f"{helper.text} takes plans {helper.first}-{helper.last}"
    install = f"as root: sandbox setuid install, or {_ELSEWHERE}"
    if helper.first > versions.LAST:
        why = f"this sandbox is too old for the setuid helper: {takes}, this makes {versions.FIRST}-{versions.LAST}"
        raise HostError(why, hint=f"update sandbox, or {_ELSEWHERE}")
    version = min(versions.LAST, helper.last)
    if version < versions.FIRST:
        why = f"setuid mode needs a newer sandbox-helper: {takes}, this makes {versions.FIRST}-{versions.LAST}"
        raise HostError(why, hint=install)
    try:
        plan = versions.lowered(plan, version)
        feature = beside[0] if beside and version < versions.BESIDE else None
    except versions.TooNewError as error:
        feature = error.feature
    if feature is not None:
        raise HostError(f"{feature} in setuid mode needs a newer sandbox-helper: {takes}", hint=install)
    return plan, version


def remembered(home_fd: int) -> Version:
    """What the installed helper said of itself. Raises HostError when it says nothing."""
    status = os.stat(HELPER)
    key = b"%d %d %d\n" % (status.st_dev, status.st_ino, status.st_mtime_ns)
    with contextlib.suppress(OSError):
        found, _, line = fsops.read_file(home_fd, _REMEMBERED).partition(b"\n")
        if found + b"\n" == key and (version := parse_version(line)):
            return version
    line = ask_version(HELPER)
    version = parse_version(line)
    if version is None:
        raise HostError(f"{HELPER} does not say which plans it takes", hint="sandbox setuid status says more")
    with contextlib.suppress(OSError):
        fsops.replace_file(home_fd, _REMEMBERED, key + line)
    return version


def parse_version(line: bytes) -> Version | None:
    """`sandbox-helper VERSION plans FIRST-LAST`, a newline at its end; None for anything else."""
    words = line.split(b" ")
    if len(words) != 4 or (words[0], words[2]) != (b"sandbox-helper", b"plans") or words[3][-1:] != b"\n":
        return None
    first, _, last = words[3][:-1].partition(b"-")
    if not (words[1].isascii() and first.isdigit() and last.isdigit()):
        return None
    return Version(words[1].decode(), int(first), int(last))


def ask_version(program: str) -> bytes:
    """What `PROGRAM version` prints; empty when it cannot be asked."""
    import subprocess

    try:
        done = subprocess.run(
            [program, "version"], stdin=subprocess.DEVNULL, capture_output=True, env={}, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
