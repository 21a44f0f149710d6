"""Plan: the exact ordered steps of one launch (docs/plan.md is the specification, sandbox/codec.py its bytes).

A plan is plain data. It holds no secrets and no per-run values: the pid, the procdir and the environment are
filled in when it runs.
"""

from typing import Any

from sandbox.level_steps import (
    Allow,
    Audit,
    Bind,
    Cgroup,
    CountChanges,
    Dev,
    DropCapabilities,
    Expose,
    File,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    Label,
    Landlock,
    Limit,
    LockTree,
    Loopback,
    Name,
    Network,
    NewRoot,
    Nice,
    Node,
    PivotRoot,
    Proc,
    Procdir,
    Protect,
    Seccomp,
    Shift,
    Symlink,
    Terminal,
    Text,
    Timeout,
    UserNamespace,
)
from sandbox.plan_types import U8, U32, U64, Mode, Path, Place, PlanFlag, Slots, Source, String, Strings
from sandbox.record import Record


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


class Part(Record):
    """A detached mount of a new directory in the tmpfs of slot `of`, whose size bounds all of its parts together.

    A filesystem for each costs several times as much, at its end too. `mode` are the directory's permissions.
    """

    slot: U32
    of: U32
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


class Erofs(Record):
    """A detached erofs mount, straight from the file of a source."""

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


Step = (
    Unshare
    | IdMap
    | SetPropagation
    | Guard
    | Tmpfs
    | Scratch
    | Tree
    | Image
    | Erofs
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
    | UserNamespace
    | Shift
    | Part
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
    0x2B: Erofs,
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
    0x55: UserNamespace,
    0x56: Shift,
    0x70: Part,
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
