"""Plan: the exact ordered steps of one launch (docs/plan.md is the specification, sandbox/codec.py its bytes).

A plan is plain data. It holds no secrets and no per-run values: the pid, the procdir and the environment are
filled in when it runs.
"""

import enum
from typing import Annotated, Any

from sandbox.record import Record

U8 = Annotated[int, "u8"]
U32 = Annotated[int, "u32"]
U64 = Annotated[int, "u64"]
Path = Annotated[bytes, "path"]
String = Annotated[bytes, "string"]
Strings = Annotated[tuple[bytes, ...], "strings"]
Slots = Annotated[tuple[int, ...], "slots"]
Words = Annotated[tuple[int, ...], "words"]
_NAME_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


class Mode(enum.IntEnum):
    """Where the right to mount comes from."""

    ROOT = 1
    SETUID = 2
    USERNS = 3
    # Since version 2: no right to mount at all.
    LANDLOCK = 4


class SourceKind(enum.IntEnum):
    FILE = 1
    DIRECTORY = 2
    MEMORY = 3


class Base(enum.IntEnum):
    """What a place's path is relative to."""

    ROOT = 1
    PROCDIR = 2


class Propagation(enum.IntEnum):
    SLAVE = 1
    PRIVATE = 2


class Attr(enum.IntFlag):
    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOSYMFOLLOW = 16


class OverlayOption(enum.IntFlag):
    USERXATTR = 1
    REDIRECT_DIR = 2


class Resource(enum.IntEnum):
    """What a Limit limits, each in its own unit."""

    CPU_SECONDS = 1
    FILE_BYTES = 2
    OPEN_FILES = 3
    DATA_BYTES = 4
    PROCESSES = 5


class PlanFlag(enum.IntFlag):
    LEAVE_RUNNING = 1
    # Since version 2, for the setuid helper: see docs/plan.md.
    KEEP_IMAGES = 2
    ALLOW_NEW_PRIVS = 4


class Source(Record):
    """Something of the user's that is opened with the user's rights; `dev` and `ino` are checked on the descriptor.

    For a file, `size` (bytes), `mtime_ns` and `ctime_ns` are checked as well. A memory source has no path: its
    descriptor is handed over beside the plan.
    """

    kind: U8
    path: Path
    dev: U64 = 0
    ino: U64 = 0
    size: U64 = 0
    mtime_ns: U64 = 0
    ctime_ns: U64 = 0


class Place(Record):
    """A directory inside the run's mount namespace. `dev` and `ino` are checked unless both are 0."""

    base: U8
    path: Path
    dev: U64 = 0
    ino: U64 = 0

    @property
    def is_root(self) -> bool:
        """Whether the path is one of the root directory's."""
        return self.base == Base.ROOT


class Unshare(Record):
    """unshare(2) with these CLONE_NEW* flags."""

    flags: U64


class IdMap(Record):
    """One-id maps of a new user namespace; setgroups is denied, as user_namespaces(7) demands."""

    uid_inside: U32
    uid_outside: U32
    gid_inside: U32
    gid_outside: U32


class SetPropagation(Record):
    """Recursive propagation of / in the new mount namespace."""

    kind: U8


class Guard(Record):
    """A read-only bind of procdirs/ onto itself: should the scratch mount be lost, writes fail with EROFS."""


class Tmpfs(Record):
    """A detached tmpfs; `size` in bytes, `inodes` 0 for the kernel's default. Owned by the plan's uid and gid."""

    slot: U32
    size: U64
    inodes: U64
    mode: U32


class Scratch(Record):
    """A private directory made in the source directory, removed after the run: scratch on a disk.

    Slot `slot` is the tree for the procdir, `overlay_slot` the one for upper and work directories.
    """

    source: U32
    slot: U32
    overlay_slot: U32


class Tree(Record):
    """A detached clone of a source directory (open_tree(2) with OPEN_TREE_CLONE)."""

    slot: U32
    source: U32
    recursive: U8


class Image(Record):
    """A detached squashfs mount of a source through a read-only, autoclear loop device."""

    slot: U32
    source: U32


class Fuse(Record):
    """A detached FUSE mount of a squashfs source, served by `program` (squashfuse_ll)."""

    slot: U32
    source: U32
    program: Path


class Extract(Record):
    """Run `argv` with the source as descriptor 0 and the slot's root directory as descriptor 3."""

    slot: U32
    source: U32
    argv: Strings


class Overlay(Record):
    """A detached overlay; `lowers` are slots, the top one last; upper and work are made in slot `upper`."""

    slot: U32
    lowers: Slots
    upper: U32
    options: U32


class Stack(Record):
    """A detached read-only overlay of at least two `lowers`, which are slots, the top one last; nothing is written."""

    slot: U32
    lowers: Slots
    options: U32


class Attach(Record):
    """Set attributes on a slot's mount, recursively, and move it onto a place."""

    slot: U32
    place: Place
    attrs: U32


class Mkdir(Record):
    """Create a directory and its missing parents; one that exists is fine."""

    place: Place
    mode: U32


class PlaceEnv(Record):
    """Set an environment variable of the command to the absolute path of a place."""

    name: String
    place: Place


class UnsetEnv(Record):
    """Remove a variable from the environment of the command."""

    name: String


class Chdir(Record):
    """The command's working directory."""

    place: Place


class Run(Record):
    """The command is the executable `path` inside the tree at `place`; no link leads out of the tree."""

    place: Place
    path: Path


class NoNewPrivs(Record):
    """PR_SET_NO_NEW_PRIVS."""


class DeathSignal(Record):
    """PR_SET_PDEATHSIG: the command gets this signal when its supervisor dies."""

    signal: U32


class Init(Record):
    """A pid namespace. Its init reaps and forwards; with `as_pid_1` the command is pid 1 itself."""

    as_pid_1: U8


class LockTree(Record):
    """Attributes on every mount that is there, recursively from /."""

    attrs: U32


class Procdir(Record):
    """From here on the procdir is this directory."""

    place: Place


class Proc(Record):
    """A fresh /proc, with what is the host's in it masked or read-only."""


class Dev(Record):
    """A minimal /dev with a pts of its own."""


class Hide(Record):
    """An empty directory, or an empty file, over what is at a place; what is not there is left alone."""

    path: Path


class Loopback(Record):
    """Bring up lo in the new network namespace."""


class Hostname(Record):
    """The host name in the new UTS namespace."""

    name: String


class Identity(Record):
    """The command's own ids, without supplementary groups. What the run makes belongs to them from the start."""

    uid: U32
    gid: U32


class DropCapabilities(Record):
    """No capability in any set, the bounding set included where that is allowed."""


class Idmap(Record):
    """Exchange two uids and two gids in a detached mount (mount_setattr(2) with MOUNT_ATTR_IDMAP)."""

    slot: U32
    uid: U32
    shown_uid: U32
    gid: U32
    shown_gid: U32


class KeepDescriptors(Record):
    """The command gets descriptors 0 to 2 and these, and no others."""

    fds: Slots


class Seccomp(Record):
    """A seccomp filter: classic BPF, an instruction per number, installed last before exec."""

    filter: Words


class Bind(Record):
    """A detached clone of what is at a place of the host, of any kind, with all that is mounted below it."""

    slot: U32
    place: Place


class Text(Record):
    """A detached mount of one private file that holds `content`."""

    slot: U32
    mode: U32
    content: String


class File(Record):
    """Make a file and its missing parents. Without content one that is there is fine, with it that is an error."""

    place: Place
    mode: U32
    content: String


class Symlink(Record):
    """Make a symlink to `target`, and its missing parents."""

    place: Place
    target: Path


class Node(Record):
    """Attach a slot in the minimal /dev, at these plain components; devices work there."""

    slot: U32
    path: Path


class NewRoot(Record):
    """From here on base root is the slot's mount, with these attributes; what it holds leads nowhere out of it."""

    slot: U32
    attrs: U32


class PivotRoot(Record):
    """The new root becomes the root directory, itself read-only if asked for; nothing of the old one is left."""

    read_only: U8


class Expose(Record):
    """Hand the attendant the root directory of the command's tree, and what keeps that tree whole: --keep."""


class Audit(Record):
    """The Seccomp filter asks the attendant (SECCOMP_RET_USER_NOTIF), which is handed the end that is asked."""


class Terminal(Record):
    """A terminal of the command's own devpts as its descriptors 0 to 2; the attendant is handed the other end."""


class CountChanges(Record):
    """The supervisor counts, when all is over, the changed files in the upper of the overlay or the copy `slot`."""

    slot: U32


class Protect(Record):
    """A recursive clone of what is at a place, a directory or a file, over it, with these attributes."""

    place: Place
    attrs: U32


class Limit(Record):
    """setrlimit(2) of the command, right before it starts; what it starts inherits it."""

    resource: U8
    soft: U64
    hard: U64


class Nice(Record):
    """The command's nice value plus 20: 0 to 39, set right before it starts."""

    value: U8


class Cgroup(Record):
    """A cgroup of the run's own in the source directory, a cgroup v2; what starts the command enters it at once.

    `memory` and `swap` in bytes, `cpu_us` microseconds of processor time in 100,000; the largest number: no limit.
    """

    source: U32
    memory: U64
    swap: U64
    pids: U64
    cpu_us: U64


class Timeout(Record):
    """The supervisor's: how long the command may take, and how long it has from SIGTERM to SIGKILL."""

    limit_ns: U64
    kill_after_ns: U64


class Allow(Record):
    """What the next Landlock step leaves open: LANDLOCK_ACCESS_FS_* of linux/landlock.h for a file, or for all beneath.

    `optional`: left out where there is nothing.
    """

    place: Place
    access: U64
    optional: U8


class Landlock(Record):
    """A fence of Landlock rights that only Allow steps leave open, and scopes; put up last, right before the filter."""

    handled: U64
    scoped: U64


class Network(Record):
    """The private network: who holds the other end of the socket that is the source attaches this namespace to one."""

    source: U32


class Name(Record):
    """What the user calls the run: the name of its record and procdir, which no other running one may have."""

    name: String


def is_run_name(name: bytes) -> bool:
    """A letter, then at most 62 letters, digits, `.`, `_` and `-`: a name of a file, and never a number."""
    return name[:1].isalpha() and len(name) <= 63 and not name.translate(None, _NAME_BYTES)


class Label(Record):
    """For who looks at the running ones: the isolation level, and the images, as NAME=SOURCE."""

    level: String
    images: Strings


Step = (
    Unshare
    | IdMap
    | SetPropagation
    | Guard
    | Tmpfs
    | Scratch
    | Tree
    | Image
    | Fuse
    | Extract
    | Overlay
    | Attach
    | Mkdir
    | PlaceEnv
    | UnsetEnv
    | Chdir
    | Run
    | NoNewPrivs
    | DeathSignal
    | Init
    | LockTree
    | Procdir
    | Proc
    | Dev
    | Hide
    | Loopback
    | Hostname
    | Identity
    | DropCapabilities
    | Idmap
    | KeepDescriptors
    | Seccomp
    | Bind
    | Text
    | File
    | Symlink
    | Node
    | NewRoot
    | PivotRoot
    | Limit
    | Nice
    | Timeout
    | Cgroup
    | Stack
    | Allow
    | Landlock
    | Network
    | Name
    | Label
    | Expose
    | Audit
    | Terminal
    | CountChanges
    | Protect
)

OPCODES: dict[int, type[Any]] = {
    0x01: Unshare,
    0x02: IdMap,
    0x03: SetPropagation,
    0x04: Guard,
    0x05: Tmpfs,
    0x06: Scratch,
    0x07: Tree,
    0x08: Image,
    0x09: Fuse,
    0x0A: Extract,
    0x0B: Overlay,
    0x0C: Attach,
    0x0D: Mkdir,
    0x0E: PlaceEnv,
    0x0F: UnsetEnv,
    0x10: Chdir,
    0x11: Run,
    0x12: NoNewPrivs,
    0x13: DeathSignal,
    0x14: Init,
    0x15: LockTree,
    0x16: Procdir,
    0x17: Proc,
    0x18: Dev,
    0x19: Hide,
    0x1A: Loopback,
    0x1B: Hostname,
    0x1C: Identity,
    0x1D: DropCapabilities,
    0x1E: Idmap,
    0x1F: KeepDescriptors,
    0x20: Seccomp,
    0x24: Bind,
    0x25: Text,
    0x26: File,
    0x27: Symlink,
    0x28: NewRoot,
    0x29: PivotRoot,
    0x2A: Node,
    0x30: Limit,
    0x31: Nice,
    0x32: Timeout,
    0x33: Cgroup,
    0x34: Allow,
    0x35: Landlock,
    0x36: Network,
    0x40: Stack,
    0x60: Name,
    0x61: Label,
    0x50: Expose,
    0x51: Audit,
    0x52: Terminal,
    0x53: CountChanges,
    0x54: Protect,
}
OPCODE_OF: dict[type[Any], int] = {cls: code for code, cls in OPCODES.items()}


class Plan(Record):
    """One launch. `home` is the absolute path of the directory that holds procdirs/ and records/."""

    mode: Mode
    flags: PlanFlag
    uid: int
    gid: int
    home: Source
    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
