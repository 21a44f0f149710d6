"""Plan: the exact ordered steps of one launch, and their byte encoding (docs/plan.md is the specification).

A plan is plain data. It holds no secrets and no per-run values: the pid, the procdir and the environment are
filled in when it runs. Decoding treats its input as hostile: the first doubt rejects the whole plan.
"""

import enum
import struct
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from sandbox.errors import SandboxError
from sandbox.record import Record

MAGIC = b"SBXPLAN\x00"
VERSION = 1
MAX_BYTES = 1 << 20
MAX_ITEMS = 4096
MAX_STRING = 65536
MAX_PATH = 4095

U8 = Annotated[int, "u8"]
U32 = Annotated[int, "u32"]
U64 = Annotated[int, "u64"]
Path = Annotated[bytes, "path"]
String = Annotated[bytes, "string"]
Strings = Annotated[tuple[bytes, ...], "strings"]
Slots = Annotated[tuple[int, ...], "slots"]


class PlanError(SandboxError):
    """Bytes that are not a plan of this version."""


class Mode(enum.IntEnum):
    """Where the right to mount comes from."""

    ROOT = 1
    SETUID = 2
    USERNS = 3


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


class PlanFlag(enum.IntFlag):
    LEAVE_RUNNING = 1


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


# -- encoding -------------------------------------------------------------------------------------------------


def _pack_bytes(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _pack_record(record: Any) -> bytes:
    kinds = type(record).__annotations__
    return b"".join(_PACK[kinds[name]](value) for name, value in zip(record.fields, record, strict=True))


def _pack_list(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda items: struct.pack("<I", len(items)) + b"".join(map(pack, items))


_PACK: dict[Any, Callable[[Any], bytes]] = {
    U8: lambda v: struct.pack("<B", v),
    U32: lambda v: struct.pack("<I", v),
    U64: lambda v: struct.pack("<Q", v),
    Path: _pack_bytes,
    String: _pack_bytes,
    Strings: _pack_list(_pack_bytes),
    Slots: _pack_list(lambda v: struct.pack("<I", v)),
    Place: _pack_record,
}


def encode(plan: Plan) -> bytes:
    """The plan as bytes. Raises PlanError when it breaks a limit of the format."""
    out = [
        MAGIC,
        struct.pack("<HBBII", VERSION, plan.mode, plan.flags, plan.uid, plan.gid),
        _pack_record(plan.home),
        _pack_list(_pack_record)(plan.sources),
        struct.pack("<I", len(plan.steps)),
    ]
    for step in plan.steps:
        body = _pack_record(step)
        out.append(struct.pack("<HI", OPCODE_OF[type(step)], len(body)) + body)
    data = b"".join(out)
    decode(data)  # one place knows the limits
    return data


# -- decoding -------------------------------------------------------------------------------------------------

T = TypeVar("T")


class _Reader:
    """A cursor over hostile bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def fail(self, why: str) -> PlanError:
        return PlanError(f"cannot decode the plan: {why} at byte {self.at}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.fail("truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self, limit: int = MAX_STRING) -> bytes:
        length = self.number(4)
        if length > limit:
            raise self.fail(f"a string of {length} bytes")
        value = self.take(length)
        if b"\0" in value:
            raise self.fail("a NUL byte inside a string")
        return value

    def items(self, read: Callable[[], T]) -> tuple[T, ...]:
        count = self.number(4)
        if count > MAX_ITEMS:
            raise self.fail(f"a list of {count} items")
        return tuple(read() for _ in range(count))

    def record(self, cls: Callable[..., T]) -> T:
        kinds = cls.__annotations__
        return cls(*(self.field(kinds[name]) for name in cls.fields))  # type: ignore[attr-defined]

    def field(self, kind: Any) -> Any:
        if kind is Place:
            return self.record(Place)
        return _READ[kind](self)


_READ: dict[Any, Callable[[_Reader], Any]] = {
    U8: lambda r: r.number(1),
    U32: lambda r: r.number(4),
    U64: lambda r: r.number(8),
    Path: lambda r: r.string(MAX_PATH),
    String: lambda r: r.string(),
    Strings: lambda r: r.items(r.string),
    Slots: lambda r: r.items(lambda: r.number(4)),
}


def decode(data: bytes) -> Plan:
    """The plan in `data`. Raises PlanError, and returns nothing, on the first doubt."""
    if len(data) > MAX_BYTES:
        raise PlanError(f"cannot decode the plan: {len(data)} bytes, the limit is {MAX_BYTES}")
    reader = _Reader(data)
    if reader.take(len(MAGIC)) != MAGIC:
        raise PlanError("cannot decode the plan: it does not start with the magic bytes")
    if (version := reader.number(2)) != VERSION:
        raise PlanError(f"cannot decode the plan: version {version}, this program takes {VERSION}")
    mode, flags, uid, gid = reader.number(1), reader.number(1), reader.number(4), reader.number(4)
    if mode not in Mode.__members__.values():
        raise reader.fail(f"unknown mode {mode}")
    if flags & ~PlanFlag.LEAVE_RUNNING:
        raise reader.fail(f"unknown flags {flags:#x}")
    home = reader.record(Source)
    sources = reader.items(lambda: reader.record(Source))
    steps = reader.items(lambda: _read_step(reader))
    if reader.at != len(data):
        raise reader.fail("trailing bytes")
    plan = Plan(Mode(mode), PlanFlag(flags), uid, gid, home, sources, steps)
    _check(plan)
    return plan


def _read_step(reader: _Reader) -> Step:
    opcode, length = reader.number(2), reader.number(4)
    if opcode not in OPCODES:
        raise reader.fail(f"unknown step {opcode:#x}")
    end = reader.at + length
    step: Step = reader.record(OPCODES[opcode])
    if reader.at != end:
        raise reader.fail(f"step {opcode:#x} does not fill its length")
    return step


def _check(plan: Plan) -> None:
    """What the layout alone cannot say: enumerations, flag bits, slots defined once and before use."""
    for source in (plan.home, *plan.sources):
        _check_source(source)
    if plan.home.kind != SourceKind.DIRECTORY:
        raise PlanError("cannot decode the plan: the home is not a directory source")
    defined: set[int] = set()
    for index, step in enumerate(plan.steps):
        why = _step_fault(step, plan, defined)
        if why:
            raise PlanError(f"cannot decode the plan: step {index} ({type(step).__name__}): {why}")


def _check_source(source: Source) -> None:
    if source.kind not in SourceKind.__members__.values():
        raise PlanError(f"cannot decode the plan: unknown source kind {source.kind}")
    is_memory = source.kind == SourceKind.MEMORY
    if is_memory != (source.path == b"") or not (is_memory or source.path.startswith(b"/")):
        raise PlanError("cannot decode the plan: a source's path is not absolute, or a memory source has one")


def _step_fault(step: Step, plan: Plan, defined: set[int]) -> str:
    if isinstance(step, (Scratch, Tree, Image, Fuse, Extract)):
        if step.source >= len(plan.sources):
            return f"no source {step.source}"
    uses: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    match step:
        case Scratch(_, slot, overlay_slot):
            makes = (slot, overlay_slot)
        case Tmpfs() | Tree() | Image() | Fuse():
            makes = (step.slot,)
        case Overlay(slot, lowers, upper, options):
            makes, uses = (slot,), (*lowers, upper)
            if not lowers or options & ~(OverlayOption.USERXATTR | OverlayOption.REDIRECT_DIR):
                return "no lower, or unknown options"
        case Extract() | Attach():
            uses = (step.slot,)
        case SetPropagation(kind) if kind not in Propagation.__members__.values():
            return f"unknown propagation {kind}"
        case _:
            pass
    if isinstance(step, Tree) and step.recursive > 1:
        return f"recursive is {step.recursive}"
    if isinstance(step, Attach) and step.attrs & ~sum(Attr):
        return f"unknown attributes {step.attrs:#x}"
    if isinstance(step, Extract) and not (step.argv and step.argv[0].startswith(b"/")):
        return "the program's path is not absolute"
    if isinstance(step, Fuse) and not step.program.startswith(b"/"):
        return "the program's path is not absolute"
    if isinstance(step, (PlaceEnv, UnsetEnv)) and (not step.name or b"=" in step.name):
        return "bad variable name"
    for slot in uses:
        if slot not in defined:
            return f"slot {slot} is used before it is made"
    for slot in makes:
        if slot in defined:
            return f"slot {slot} is made twice"
        defined.add(slot)
    place = getattr(step, "place", None)
    return _place_fault(place) if place is not None else ""


def _place_fault(place: Place) -> str:
    if place.base not in Base.__members__.values():
        return f"unknown base {place.base}"
    if place.base == Base.ROOT:
        return "" if place.path.startswith(b"/") else "a root place needs an absolute path"
    parts = place.path.split(b"/") if place.path else []
    return "a procdir place needs plain components" if any(p in (b"", b".", b"..") for p in parts) else ""
