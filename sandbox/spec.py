"""Spec: what the user asked for. Plain data, validated, no I/O."""

import enum
import re
from typing import TYPE_CHECKING

from sandbox.errors import UsageError, printable
from sandbox.level_steps import is_run_name
from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.limits import Limits

DEFAULT_MAX_UNPACKED = 64 << 30
DEFAULT_LOG_SIZE = 10 << 20
# A page: less could not even take what is passed on at a time.
SMALLEST_LOG = 4096
_SIZE = re.compile(r"([0-9]{1,19})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_SIZE = 1 << 62


class TreeKind(enum.Enum):
    """How a tree is used. The value is the directory of the procdir that holds it."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    EMPTY = "dynamic-empty"


class Tree(Record):
    """One --static, --dynamic or --dynamic-empty, as typed: `text` is [NAME:]SRC, or NAME for an empty tree."""

    kind: TreeKind
    text: bytes


class SymlinkPolicy(Record):
    """--symlinks [NAME=]POLICY; an empty name means every tree. `deny` is MOUNT_ATTR_NOSYMFOLLOW."""

    name: bytes
    deny: bool


class Save(Record):
    """--save TREE=IMAGE: the changes to a dynamic tree become an image; `full`: with what they were made to."""

    tree: bytes
    image: bytes
    full: bool


class Keep(Record):
    """--keep SRC[=DEST]: `source` in the job's tree becomes `target`, which must not be there yet."""

    source: bytes
    target: bytes


class Refinement(Record):
    """One --bind, --ro-bind, --bind-try, --device, --hide, --tmpfs, --symlink or --file: its name, and as typed."""

    option: str
    text: bytes


class Spec(Record):
    """One `sandbox run`. Sizes are bytes; `command` may be empty only with `run`; `limits` None: as inherited."""

    command: tuple[bytes, ...] = ()
    trees: tuple[Tree, ...] = ()
    run: bytes | None = None
    mode: str = "auto"
    engine: str = "auto"
    cache: bool = False
    env: tuple[bytes, ...] = ()
    env_files: tuple[bytes, ...] = ()
    unset_env: tuple[bytes, ...] = ()
    chdir: bytes | None = None
    mkdir: bool = False
    scratch: bytes | None = None
    tmpfs_size: int | None = None
    max_unpacked: int = DEFAULT_MAX_UNPACKED
    symlinks: tuple[SymlinkPolicy, ...] = ()
    leave_running: bool = False
    isolation: str = "none"
    net: str | None = None
    hostname: bytes | None = None
    as_pid_1: bool = False
    pass_env: tuple[bytes, ...] = ()
    pass_fds: tuple[int, ...] = ()
    user: tuple[int, int] | None = None
    workspace: str = "overlay"
    workspace_unprotected: bool = False
    keeps: tuple[Keep, ...] = ()
    audit: bool = False
    tty: bool = False
    allow_syscalls: tuple[bytes, ...] = ()
    seccomp: bytes = b"default"
    limits: "Limits | None" = None
    report: bytes | None = None
    trace: bytes | None = None
    status_fd: int | None = None
    log: bytes | None = None
    log_size: int = DEFAULT_LOG_SIZE
    # What sandbox itself says on the standard error.
    log_format: str = "text"
    allow_new_privs: bool = False
    saves: tuple[Save, ...] = ()
    allow_read: tuple[bytes, ...] = ()
    allow_write: tuple[bytes, ...] = ()
    name: bytes | None = None
    refinements: tuple[Refinement, ...] = ()
    root: bytes | None = None
    root_ro: bool = False
    as_root: bool = False
    require_mounts: tuple[bytes, ...] = ()


OUR_VARIABLES = (b"SANDBOX_TMPDIR", b"SANDBOX_STATIC", b"SANDBOX_DYNAMIC")
MODES = ("auto", "root", "setuid", "userns", "landlock")
ENGINES = ("auto", "python", "native")
LEVELS = ("none", "job", "strict")
NETS = ("none", "host", "private")
WORKSPACES = ("overlay", "rw", "ro")


def validate(spec: Spec) -> Spec:
    """The same spec. Raises UsageError for what can be seen to be wrong without looking at the host."""
    if not spec.command and spec.run is None:
        raise UsageError("no command to run", hint="sandbox run [options] -- COMMAND")
    if spec.command and spec.command[0] == b"" and spec.run is None:
        raise UsageError("the command's name is empty", hint="sandbox run [options] -- COMMAND")
    _check_empty(spec)
    _check_choices(spec)
    _check_saves(spec)
    _check_log(spec)
    _check_isolation(spec)
    _check_fence(spec)
    _check_root(spec)
    for item in spec.env:
        _check_variable(item.partition(b"=")[0], "--env")
        if b"\0" in item:
            raise UsageError(f"--env: {printable(item)} holds a NUL byte")
    for name in spec.unset_env:
        _check_variable(name, "--unset-env")
    for tree in spec.trees:
        if not tree.text:
            raise UsageError(f"--{tree.kind.value}: the value is empty")
        if tree.kind is TreeKind.EMPTY:
            check_name(tree.text, option="--dynamic-empty")
    return spec


def needs_attendant(spec: Spec) -> bool:
    """Whether a process of the launcher has to stay beside the run."""
    return bool(spec.keeps or spec.audit or spec.tty or guards_workspace(spec))


def is_watched(spec: Spec) -> bool:
    """Whether the engine is a child of a process of the launcher."""
    return spec.log is not None or needs_attendant(spec)


def guards_workspace(spec: Spec) -> bool:
    """Whether parts of the workspace are kept from being changed, and something has to be undone behind the run."""
    return spec.workspace == "rw" and not spec.workspace_unprotected


_NEVER_EMPTY = ("chdir", "scratch", "log", "seccomp", "run", "env_files", "require_mounts", "allow_read", "allow_write")


def _option(spec: Spec, field: str) -> str:
    """How a field is typed; one with many values is named after all of them."""
    return "--" + field.replace("_", "-").removesuffix("s" if isinstance(getattr(spec, field), tuple) else "")


def _check_empty(spec: Spec) -> None:
    """A path that is empty is a variable that was not set: the working directory is not what was meant."""
    for field in _NEVER_EMPTY:
        value = getattr(spec, field)
        if value == b"" or (isinstance(value, tuple) and b"" in value):
            raise UsageError(f"{_option(spec, field)}: the value is empty", hint="give one, or leave the option out")
    for refinement in spec.refinements:
        if not refinement.text:
            raise UsageError(f"--{refinement.option}: the value is empty", hint="give one, or leave the option out")


def _check_choices(spec: Spec) -> None:
    if spec.mode not in MODES:
        raise UsageError(f"--mode: {spec.mode!r} is not one of {', '.join(MODES)}")
    if spec.engine not in ENGINES:
        raise UsageError(f"--engine: {spec.engine!r} is not one of {', '.join(ENGINES)}")
    if (spec.mode, spec.engine) == ("setuid", "python"):
        raise UsageError("--mode setuid needs the native engine: only a program can be setuid", hint="--engine auto")
    if spec.net == "private" and spec.leave_running:
        raise UsageError("--leave-running: a private network ends with the run", hint="leave one of them out")


def _check_isolation(spec: Spec) -> None:
    if spec.isolation != "none":
        if spec.allow_new_privs:
            raise UsageError("--allow-new-privs: an isolated command gains no privileges", hint="leave one of them out")
        if spec.leave_running:
            raise UsageError("--leave-running: nothing survives an isolated command", hint="leave one of them out")
        if spec.scratch is not None:
            raise UsageError(f"--scratch: level {spec.isolation} keeps everything in RAM", hint="leave it out")
        for name in spec.pass_env:
            _check_variable(name, "--pass-env")
        if spec.audit and spec.seccomp == b"none":
            raise UsageError("--audit: without a filter nothing is refused", hint="leave out --seccomp none")
        if spec.workspace_unprotected and spec.workspace != "rw":
            raise UsageError("--workspace-unprotected: this workspace is not changed", hint="--workspace rw")
        return
    defaults = Spec(spec.command)
    for field in (
        "as_pid_1",
        "pass_env",
        "pass_fds",
        "user",
        "workspace",
        "workspace_unprotected",
        "keeps",
        "audit",
        "tty",
        "allow_syscalls",
        "seccomp",
    ):
        if getattr(spec, field) != getattr(defaults, field):
            raise UsageError(f"{_option(spec, field)} needs a level that isolates", hint="--isolation job")


def _check_root(spec: Spec) -> None:
    if spec.root is not None and (spec.isolation != "strict" or not spec.root):
        raise UsageError("--root: a root of its own is what level strict has", hint="--isolation strict")
    if spec.root is None and spec.root_ro:
        raise UsageError("--root-ro: which root?", hint="--root IMAGE|DIR")
    if spec.as_root and spec.mode == "setuid":
        raise UsageError(
            "--as-root: it takes a user namespace, which the setuid helper never makes", hint="--mode userns"
        )
    if spec.refinements:
        from sandbox import refine

        for refinement in spec.refinements:
            refine.parse(refinement)


def _check_fence(spec: Spec) -> None:
    fenced = bool(spec.allow_read or spec.allow_write or spec.mode == "landlock")
    if fenced and spec.allow_new_privs:
        raise UsageError("--allow-new-privs: nobody behind a fence gains privileges", hint="leave one of them out")
    if spec.mode != "landlock":
        return
    defaults = Spec(spec.command)
    for field, option in _NEED_MOUNTS.items():
        if getattr(spec, field) != getattr(defaults, field) and (field, getattr(spec, field)) != ("net", "host"):
            raise UsageError(
                f"{option}: mode landlock makes no namespace and no mount", hint="leave it out, or use another --mode"
            )


# What a fence cannot do.
_NEED_MOUNTS = {
    "trees": "--static, --dynamic",
    "run": "--run",
    "isolation": "--isolation",
    "net": "--net",
    "saves": "--save",
    "scratch": "--scratch",
    "tmpfs_size": "--tmpfs-size",
    "mkdir": "--mkdir",
    "symlinks": "--symlinks",
    "refinements": "--bind and its kin",
    "hostname": "--hostname",
    "as_root": "--as-root",
}


def _check_saves(spec: Spec) -> None:
    if spec.saves and spec.leave_running:
        raise UsageError("--save: with --leave-running a tree may still change", hint="leave one of them out")
    if len({save.image for save in spec.saves}) != len(spec.saves):
        raise UsageError("--save: two trees cannot become one image", hint="give each an image of its own")


def _check_log(spec: Spec) -> None:
    if spec.log_size < SMALLEST_LOG:
        raise UsageError(f"--log-size: {spec.log_size} is too small", hint=f"at least {SMALLEST_LOG} bytes")
    if spec.log is None:
        return
    if spec.leave_running:
        raise UsageError("--leave-running: nobody would take what it writes to --log", hint="leave one of them out")
    if b"-" in (spec.report, spec.trace):
        # What is passed on to the standard output may still be on its way when the report is written.
        raise UsageError("--report -: with --log it is the command's output alone", hint="write the report to a file")


def _check_variable(name: bytes, option: str) -> None:
    if not name or b"=" in name:
        raise UsageError(f"{option}: '{printable(name)}' is not a variable name", hint="NAME=VALUE, or NAME alone")
    if name in OUR_VARIABLES:
        raise UsageError(f"{option}: {printable(name)} is set by sandbox itself", hint="leave it out")


def check_name(name: bytes, *, option: str) -> bytes:
    """The name of a tree: one path component, or an absolute path. Raises UsageError."""
    parts = name.split(b"/")
    if name.startswith(b"/"):
        if any(part == b".." for part in parts) or not any(parts):
            raise UsageError(
                f"{option}: {printable(name)}: the place of a tree must be an absolute path without '..', and not /",
                hint="the root itself is --root, with --isolation strict" if not any(parts) else "",
            )
    elif len(parts) != 1 or name in (b"", b".", b".."):
        raise UsageError(
            f"{option}: '{printable(name)}' cannot be the name of a tree",
            hint="a name is one path component, or an absolute path: NAME:SRC",
        )
    return name


def parse_size(text: str, *, option: str) -> int:
    """Bytes of a size with an optional K, M, G or T (powers of 1024). Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or (size := int(match[1]) * _UNITS[match[2].upper()]) == 0 or size > MAX_SIZE:
        raise UsageError(f"{option}: {text!r} is not a size", hint="a number of bytes, or with K, M, G, T, as in 512M")
    return size


def parse_save(text: bytes, *, full: bool) -> Save:
    """NAME=IMAGE. Raises UsageError."""
    option = "--save-full" if full else "--save"
    tree, _, image = text.rpartition(b"=")
    if not tree or not image:
        raise UsageError(f"{option}: '{printable(text)}' is not a tree and an image", hint="NAME=IMAGE")
    return Save(tree, image.removeprefix(b"@"), full)


def parse_keep(text: bytes) -> Keep:
    """SRC[=DEST]; DEST is what SRC ends with where it is not given. Raises UsageError."""
    source, equals, target = text.partition(b"=")
    name = source.rstrip(b"/").rpartition(b"/")[2]
    if not source or name in (b"", b".", b"..") or (equals and not target):
        raise UsageError(f"--keep: '{printable(text)}' names nothing to keep", hint="SRC, or SRC=DEST")
    if (target or name).rpartition(b"/")[2] in (b".", b".."):
        raise UsageError(f"--keep: '{printable(target)}' is not a new name", hint="SRC=DEST, or SRC=DIRECTORY/")
    return Keep(source, target or name)


def parse_symlinks(text: bytes) -> SymlinkPolicy:
    """[NAME=]follow|deny. Raises UsageError."""
    name, _, policy = text.rpartition(b"=")
    if policy not in (b"follow", b"deny"):
        raise UsageError(f"--symlinks: '{printable(policy)}' is not a policy", hint="[NAME=]follow or [NAME=]deny")
    return SymlinkPolicy(name, policy == b"deny")


def parse_hostname(text: bytes) -> bytes:
    """A host name (hostname(7)). Raises UsageError."""
    if not re.fullmatch(rb"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", text):
        raise UsageError(
            f"--hostname: '{printable(text)}' is not a host name", hint="letters, digits, - and ., at most 64"
        )
    return text


def parse_run_name(text: bytes) -> bytes:
    """What a run is called. Raises UsageError."""
    if not is_run_name(text):
        raise UsageError(
            f"--name: '{printable(text)}' cannot be the name of a run",
            hint="a letter, then at most 62 letters, digits, '.', '_' and '-'",
        )
    return text


def parse_descriptor(text: str, *, option: str, least: int = 3) -> int:
    """The number of a descriptor. Raises UsageError."""
    if not re.fullmatch("[0-9]{1,7}", text) or not least <= int(text) < 1 << 20:
        above = f" above {least - 1}" if least else ""
        raise UsageError(f"{option}: {text!r} is not a descriptor{above}", hint=f"a number, as in {option} 3")
    return int(text)


def parse_user(text: str) -> tuple[int, int]:
    """UID[:GID], both numbers, neither of them root's. Raises UsageError."""
    match = re.fullmatch("([0-9]{1,10})(?::([0-9]{1,10}))?", text)
    # The last number means "no change" to the kernel: setresuid(2).
    if not match or max(ids := (int(match[1]), int(match[2] or match[1]))) >= 0xFFFFFFFF:
        raise UsageError(f"--user: {text!r} is not UID[:GID]", hint="numbers, as in 1000:1000")
    if 0 in ids:
        raise UsageError(f"--user: {text!r}: an isolated command is never root", hint="another uid and gid")
    return ids
