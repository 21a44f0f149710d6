"""What the layout of a plan alone cannot say: why one that can be decoded is refused all the same."""

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
    Part,
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
    Attr,
    Base,
    OverlayOption,
    Place,
    Propagation,
    Resource,
    Source,
    SourceKind,
)

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


def fault(plan: Plan) -> str:
    """What is wrong with a decoded plan, or nothing: enumerations, flag bits, slots defined once and before use."""
    for source in (plan.home, *plan.sources):
        if why := _source_fault(source):
            return why
    if plan.home.kind != SourceKind.DIRECTORY:
        return "the home is not a directory source"
    for kind in (Timeout, Cgroup, Landlock, Network, Name, Label, NewRoot, PivotRoot):
        if sum(isinstance(step, kind) for step in plan.steps) > 1:
            return f"more than one {kind.__name__}"
    whole = {step.slot for step in plan.steps if isinstance(step, Tmpfs)}
    if any(isinstance(step, Part) and step.of not in whole for step in plan.steps):
        return "a part of what is no tmpfs"
    if why := _pivot_fault(plan.steps):
        return why
    defined: set[int] = set()
    for index, step in enumerate(plan.steps):
        if why := _step_fault(step, plan, defined):
            return f"step {index} ({type(step).__name__}): {why}"
    return ""


def _source_fault(source: Source) -> str:
    if source.kind not in SourceKind.__members__.values():
        return f"unknown source kind {source.kind}"
    is_memory = source.kind == SourceKind.MEMORY
    if is_memory != (source.path == b"") or not (is_memory or source.path.startswith(b"/")):
        return "a source's path is not absolute, or a memory source has one"
    return ""


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
        case Network(address=address, closed=closed) if not all(map(_is_network, (address, *closed))):
            return "no IPv4 network"
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


def _is_network(word: int) -> bool:
    """An IPv4 address above the length of a prefix."""
    return word >> 40 == 0 and word & 0xFF <= 32


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
        case Part(slot, of):
            return (of,), (slot,)
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
