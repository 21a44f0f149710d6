"""The byte encoding of plans (docs/plan.md). Decoding treats its input as hostile: the first doubt rejects it all."""

import struct
from collections.abc import Callable
from typing import Any, TypeVar

from sandbox.errors import SandboxError
from sandbox.level_steps import (
    Allow,
    Audit,
    Bind,
    Cgroup,
    CountChanges,
    DropCapabilities,
    Expose,
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
    Protect,
    Seccomp,
    Shift,
    Symlink,
    Terminal,
    Text,
    Timeout,
    UserNamespace,
    is_run_name,
)
from sandbox.plan import (
    OPCODE_OF,
    OPCODES,
    Attach,
    Chdir,
    DeathSignal,
    Erofs,
    Extract,
    Fuse,
    IdMap,
    Image,
    NoNewPrivs,
    Overlay,
    PlaceEnv,
    Plan,
    Run,
    Scratch,
    SetPropagation,
    Stack,
    Step,
    Tmpfs,
    Tree,
    UnsetEnv,
    Unshare,
)
from sandbox.plan_types import (
    U8,
    U32,
    U64,
    Attr,
    Base,
    Mode,
    OverlayOption,
    Path,
    Place,
    PlanFlag,
    Propagation,
    Resource,
    Slots,
    Source,
    SourceKind,
    String,
    Strings,
    Words,
)
from sandbox.versions import FIRST, LAST, lowered, version_of

MAGIC = b"SBXPLAN\x00"
MAX_BYTES = 1 << 20
MAX_ITEMS = 4096
MAX_STRING = 65536
MAX_PATH = 4095
MAX_HOSTNAME = 64

# All others make namespaces, mounts or files: in the old root only, where /proc is the kernel's.
AFTER_PIVOT = (
    Audit,
    Expose,
    Terminal,
    *(Unshare, IdMap, UserNamespace),
    *(PlaceEnv, UnsetEnv, Chdir, Run, NoNewPrivs, DeathSignal, Hostname, Loopback, Identity, DropCapabilities),
    *(KeepDescriptors, Seccomp, Allow, Landlock, Name, Label, Limit, Nice, Timeout, Cgroup),
)


class PlanError(SandboxError):
    """Bytes that are not a plan of this version."""


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
    Words: _pack_list(lambda v: struct.pack("<Q", v)),
    Place: _pack_record,
}


def encode(plan: Plan, version: int = LAST) -> bytes:
    """The plan as bytes of a version. Raises PlanError when it breaks a limit of the format, TooNewError when the
    version has not all that the plan says; nothing is left out.
    """
    if lowered(plan, version) != plan:
        raise PlanError(f"a flag of this plan is newer than version {version}")
    out = [
        MAGIC,
        struct.pack("<HBBII", version, plan.mode, plan.flags, plan.uid, plan.gid),
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
    Words: lambda r: r.items(lambda: r.number(8)),
}


def decode(data: bytes) -> Plan:
    """The plan in `data`. Raises PlanError, and returns nothing, on the first doubt."""
    if len(data) > MAX_BYTES:
        raise PlanError(f"cannot decode the plan: {len(data)} bytes, the limit is {MAX_BYTES}")
    reader = _Reader(data)
    if reader.take(len(MAGIC)) != MAGIC:
        raise PlanError("cannot decode the plan: it does not start with the magic bytes")
    if not FIRST <= (version := reader.number(2)) <= LAST:
        raise PlanError(f"cannot decode the plan: version {version}, this program takes {FIRST} to {LAST}")
    mode, flags, uid, gid = reader.number(1), reader.number(1), reader.number(4), reader.number(4)
    if mode not in Mode.__members__.values():
        raise reader.fail(f"unknown mode {mode}")
    # ~ of an IntFlag keeps only its known bits (enum, Python 3.11): the complement is taken of the number.
    if flags & ~int(sum(PlanFlag)):
        raise reader.fail(f"unknown flags {flags:#x}")
    home = reader.record(Source)
    sources = reader.items(lambda: reader.record(Source))
    steps = reader.items(lambda: _read_step(reader))
    if reader.at != len(data):
        raise reader.fail("trailing bytes")
    plan = Plan(Mode(mode), PlanFlag(flags), uid, gid, home, sources, steps)
    if version_of(plan) > version:
        raise PlanError("cannot decode the plan: it holds something that its version has not")
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
    for kind in (Timeout, Cgroup, Landlock, Network, Name, Label, NewRoot, PivotRoot):
        if sum(isinstance(step, kind) for step in plan.steps) > 1:
            raise PlanError(f"cannot decode the plan: more than one {kind.__name__}")
    if why := _pivot_fault(plan.steps):
        raise PlanError(f"cannot decode the plan: {why}")
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


def _pivot_fault(steps: tuple[Step, ...]) -> str:
    """Why there is no new root to go to, or what would then believe a /proc and other paths of somebody's choice."""
    kinds = [type(step) for step in steps]
    if PivotRoot not in kinds:
        return ""
    at = kinds.index(PivotRoot)
    if NewRoot not in kinds[:at]:
        return "PivotRoot without a new root"
    late = [kind.__name__ for kind in kinds[at + 1 :] if kind not in AFTER_PIVOT]
    return f"{late[0]} after PivotRoot" if late else ""


def _step_fault(step: Step, plan: Plan, defined: set[int]) -> str:
    """Why a step is invalid where it stands, or nothing; what it makes is added to `defined`."""
    source = getattr(step, "source", None)
    if source is not None and source >= len(plan.sources):
        return f"no source {source}"
    place = getattr(step, "place", None)
    fault = _value_fault(step) or (_place_fault(place) if place is not None else "")
    if isinstance(step, Network) and plan.sources[step.source].kind != SourceKind.MEMORY:
        return "a network is a source that is handed over"
    return fault or _slot_fault(step, defined)


def _value_fault(step: Step) -> str:  # noqa: C901  (one case per kind of step)
    """Enumerations, bits and texts of one step by itself."""
    match step:
        case SetPropagation(kind) if kind not in Propagation.__members__.values():
            return f"unknown propagation {kind}"
        case Tree(recursive=value) if value > 1:
            return f"recursive is {value}"
        case Attach(attrs=attrs) | LockTree(attrs) | NewRoot(attrs=attrs) | Protect(attrs=attrs) if attrs & ~int(
            sum(Attr)
        ):
            return f"unknown attributes {attrs:#x}"
        case Overlay(lowers=lowers, options=options) if not lowers or options & ~int(sum(OverlayOption)):
            return "no lower, or unknown options"
        case Stack(lowers=lowers, options=options) if len(lowers) < 2 or options & ~int(OverlayOption.USERXATTR):
            return "less than two lowers, or unknown options"
        case Extract(argv=argv) if not (argv and argv[0].startswith(b"/")):
            return "the program's path is not absolute"
        case Fuse(program=program) if not program.startswith(b"/"):
            return "the program's path is not absolute"
        case PlaceEnv() | UnsetEnv() if not step.name or b"=" in step.name:
            return "bad variable name"
        case Limit(resource, soft, hard) if resource not in Resource.__members__.values() or soft > hard:
            return f"unknown resource {resource}, or more allowed than at most"
        case Nice(value) if value > 39:
            return f"a nice value of {value} - 20"
        case _:
            return _isolation_fault(step)


def _isolation_fault(step: Step) -> str:
    match step:
        case UserNamespace(uids, gids) | Shift(uids=uids, gids=gids) if not (_is_map(uids) and _is_map(gids)):
            return "no map of ids"
        case UserNamespace(programs=programs) if len(programs) not in (0, 2) or not all(map(_is_absolute, programs)):
            return "neither no program nor two by their absolute paths"
        case Init(as_pid_1) if as_pid_1 > 1:
            return f"as_pid_1 is {as_pid_1}"
        case Hide(path) if not path.startswith(b"/"):
            return "the path is not absolute"
        case Hostname(name) if not 0 < len(name) <= MAX_HOSTNAME:
            return "not a host name"
        case Seccomp(filter=words) if not words:
            return "an empty filter"
        case Allow(access=access, optional=optional) if not access or optional > 1:
            return "allows nothing, or optional is neither 0 nor 1"
        case Name(name) if not is_run_name(name):
            return "not a name for a run"
        case _:
            return _root_fault(step)


def _is_map(words: tuple[int, ...]) -> bool:
    """Ranges of ids: where each starts on both sides, and how many there are."""
    ranges = [words[at : at + 3] for at in range(0, len(words), 3)]
    return words != () and all(len(r) == 3 and r[2] > 0 and max(r[:2]) + r[2] <= 0xFFFFFFFF for r in ranges)


def _is_absolute(path: bytes) -> bool:
    return path.startswith(b"/")


def _root_fault(step: Step) -> str:
    match step:
        case PivotRoot(read_only) if read_only > 1:
            return f"read_only is {read_only}"
        case Bind(place=place) if place.base != Base.ROOT:
            return "a bind is of the host"
        case Node(path=path) if not _is_plain(path):
            return "a node needs plain components"
        case Symlink(target=b""):
            return "an empty target"
        case _:
            return ""


def _slot_fault(step: Step, defined: set[int]) -> str:
    """Slots are made once, and before they are used."""
    uses, makes = _slots(step)
    for slot in uses:
        if slot not in defined:
            return f"slot {slot} is used before it is made"
    for slot in makes:
        if slot in defined:
            return f"slot {slot} is made twice"
        defined.add(slot)
    return ""


def _slots(step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The slots that a step uses, and those that it makes."""
    match step:
        case Scratch(slot=slot, overlay_slot=overlay):
            return (), (slot, overlay)
        case Tmpfs() | Tree() | Image() | Erofs() | Fuse() | Bind() | Text():
            return (), (step.slot,)
        case Overlay(slot, lowers, upper):
            return (*lowers, upper), (slot,)
        case Stack(slot, lowers):
            return lowers, (slot,)
        case Extract() | Attach() | Idmap() | Shift() | NewRoot() | CountChanges() | Node():
            return (step.slot,), ()
        case _:
            return (), ()


def _place_fault(place: Place) -> str:
    if place.base not in Base.__members__.values():
        return f"unknown base {place.base}"
    if place.base == Base.ROOT:
        return "" if place.path.startswith(b"/") else "a root place needs an absolute path"
    return "" if not place.path or _is_plain(place.path) else "a procdir place needs plain components"


def _is_plain(path: bytes) -> bool:
    return not any(part in (b"", b".", b"..") for part in path.split(b"/"))
