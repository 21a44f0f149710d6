"""`sandbox setuid status`: what is installed, and everything about it that is not safe or does not work."""

import errno
import grp
import hashlib
import os
import pwd
import stat
from pathlib import Path
from typing import Any

from sandbox import __version__, policy, setuid, versions
from sandbox.doctor import Check, packaged_program
from sandbox.errors import reason
from sandbox.remedies import distribution, install, run_as_root
from sandbox.setuid import HELPER, MODE, RUNTIME

_INSTALL = "sandbox setuid install"


def examine() -> list[Check]:
    """Every check, in the order a person wants to read them; one alone when nothing is installed."""
    try:
        status = os.lstat(HELPER)
    except OSError as error:
        missing = "is not installed" if error.errno == errno.ENOENT else f"cannot be looked at: {reason(error)}"
        return [Check("helper", False, f"{HELPER} {missing}", run_as_root(_INSTALL))]
    values, rules = _policy()
    return [
        _helper(status),
        _parents("directories", HELPER),
        _mount(),
        _version(),
        *rules,
        _group(status.st_gid, values),
        _builder(values),
        *_directories(values),
    ]


def _helper(status: os.stat_result) -> Check:
    mode = stat.S_IMODE(status.st_mode)
    about = f"{HELPER}, {_user(status.st_uid)}:{_group_name(status.st_gid)} {mode:04o}"
    if not stat.S_ISREG(status.st_mode):
        return Check("helper", False, f"{HELPER} is not a regular file", run_as_root(f"rm {HELPER}; {_INSTALL}"))
    if status.st_uid != 0 or mode != MODE:
        remedy = f"{_INSTALL}: it sets root:{setuid.GROUP} {MODE:04o} and proves that it works"
        return Check("helper", False, f"{about}: must be root's and {MODE:04o}", run_as_root(remedy))
    return Check("helper", True, about)


def unsafe_parents(path: str) -> list[str]:
    """The directories above `path`, links among them too, that somebody else than root owns or may change."""
    found = []
    for parent in reversed(Path(path).parents):
        status = parent.lstat()
        if status.st_uid != 0:
            found.append(f"{parent} belongs to {_user(status.st_uid)}")
        elif stat.S_ISLNK(status.st_mode):
            found.append(f"{parent} is a symbolic link")
        elif status.st_mode & 0o022:
            found.append(f"{parent} can be written to by others ({stat.S_IMODE(status.st_mode):04o})")
    return found


def _parents(name: str, path: str) -> Check:
    if found := unsafe_parents(path):
        return Check(name, False, "; ".join(found), run_as_root("chown root, chmod go-w: each of them"))
    return Check(name, True, f"everything above {path} is root's alone")


def _mount() -> Check:
    if os.statvfs(HELPER).f_flag & os.ST_NOSUID:
        point = os.path.dirname(HELPER)
        remedy = run_as_root(f"mount -o remount,suid, whatever `findmnt -T {point}` shows")
        return Check("mount", False, "the file system is mounted nosuid: the setuid bit means nothing", remedy)
    return Check("mount", True, "setuid programs work on its file system")


def _version() -> Check:
    """By what it says; for those who may read it, by its content, too."""
    if not os.access(HELPER, os.X_OK):
        return Check("version", True, f"not known: only members of the group {setuid.GROUP} can ask")
    version = setuid.parse_version(setuid.ask_version(HELPER))
    if version is None:
        return Check("version", False, f"{HELPER} does not say its version", run_as_root(_INSTALL))
    about = f"{version.text}, takes plans {version.first} to {version.last}"
    if version.text != __version__ or not version.first <= versions.LAST <= version.last:
        return Check("version", False, f"{about}; this package is {__version__}", run_as_root(_INSTALL))
    ours, theirs = _digest(packaged_program("sandbox-helper")), _digest(Path(HELPER))
    if ours and theirs and ours != theirs:
        return Check("version", False, f"{about}, but is another build than this package's", run_as_root(_INSTALL))
    return Check("version", True, about)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


# -- the policy -----------------------------------------------------------------------------------------------


def _policy() -> tuple[dict[str, Any], list[Check]]:
    path = policy.PATH
    try:
        status = os.lstat(path)
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return {}, [Check("policy", True, f"no {path}: the strict defaults hold")]
    except OSError as error:
        return {}, [Check("policy", False, f"cannot read {path}: {reason(error)}", run_as_root(f"chmod 644 {path}"))]
    where = _parents("policy's place", path)
    if status.st_uid != 0 or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode):
        about = f"{path}, {_user(status.st_uid)} {stat.S_IMODE(status.st_mode):04o}: the helper refuses it"
        return {}, [where, Check("policy", False, about, run_as_root(f"chown root {path}; chmod 644 {path}"))]
    values, wrong = policy.parse(text)
    if wrong:
        remedy = "mend it (docs/setuid.md); as it is, the helper refuses every launch"
        return values, [where, Check("policy", False, f"{path}: {'; '.join(wrong)}", remedy)]
    return values, [where, Check("policy", True, _summary(values))]


def _summary(values: dict[str, Any]) -> str:
    images = values.get("images", "rebuild")
    lifted = ", no_new_privs may be lifted" if values.get("allow_new_privs") else ""
    trusted = ", ".join(values.get("trusted_directories", ())) or "none"
    return f"images: {images}; trusted directories: {trusted}{lifted}"


def _group(gid: int, values: dict[str, Any]) -> Check:
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        remedy = run_as_root(_INSTALL)
        return Check("group", False, f"the helper's group {gid} does not exist: nobody can be a member", remedy)
    if values.get("groups") and gid not in values["groups"]:
        remedy = f"groups = [{gid}] in {policy.PATH}"
        return Check("group", False, f"the policy does not list {group.gr_name} ({gid}), so it lets nobody in", remedy)
    members = ", ".join(group.gr_mem) or "no members yet"
    return Check("group", True, f"{group.gr_name} ({gid}): {members}")


def _builder(values: dict[str, Any]) -> Check:
    uid = policy.builder(values)
    try:
        entry = pwd.getpwuid(uid) if type(uid) is int else pwd.getpwnam(policy.BUILDER)
    except (KeyError, OverflowError):
        who = f"uid {uid}" if uid is not None else policy.BUILDER
        return Check("builder", False, f"there is no user {who} to rebuild images", run_as_root(_INSTALL))
    if values.get("images", "rebuild") == "rebuild" and (missing := policy.missing_programs()):
        remedy = install("tar2sqfs", distribution())
        return Check("builder", False, f"{' and '.join(missing)} missing: users' images cannot be rebuilt", remedy)
    if entry.pw_uid == 0:
        return Check("builder", False, "the builder is root", f"builder_uid of {policy.BUILDER} in {policy.PATH}")
    return Check("builder", True, f"{entry.pw_name} ({entry.pw_uid}) rebuilds users' images")


def _directories(values: dict[str, Any]) -> list[Check]:
    """Where the helper keeps what it made: nobody else may put anything there."""
    store = values.get("store")
    checks = []
    for name, path in (("store", store if isinstance(store, str) else policy.STORE), ("locks", RUNTIME)):
        try:
            status = os.lstat(path)
            found = unsafe_parents(path)
        except OSError as error:
            checks.append(Check(name, False, f"{path}: {reason(error)}", run_as_root(_INSTALL)))
            continue
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            found.append(f"{path}: {_user(status.st_uid)} {stat.S_IMODE(status.st_mode):04o}")
        remedy = run_as_root(f"chown root {path}; chmod 755 {path}; the same above it") if found else ""
        kept = _kept(path) if name == "store" else ""
        checks.append(Check(name, not found, "; ".join(found) or f"{path} is root's alone{kept}", remedy))
    return checks


def _kept(path: str) -> str:
    """What the store holds: the directories of users are root's alone, so only root sees it."""
    if os.geteuid() != 0:
        return ""
    users = [name for name in os.listdir(path) if name.isdigit()]
    sizes = [entry.stat(follow_symlinks=False).st_size for name in users for entry in os.scandir(f"{path}/{name}")]
    return f", {len(sizes)} images of {len(users)} users, {sum(sizes) >> 20} MiB"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
