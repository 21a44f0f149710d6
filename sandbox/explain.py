"""A plan as a person reads it."""

from sandbox.errors import printable
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
from sandbox.plan import (
    Attach,
    Chdir,
    DeathSignal,
    Erofs,
    Extract,
    Fuse,
    Guard,
    IdMap,
    Image,
    Mkdir,
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
from sandbox.plan_types import Attr, Base, Mode, Place, Resource, SourceKind

_MODES = {
    Mode.ROOT: "root: real root mounts",
    Mode.SETUID: "setuid: the setuid helper mounts",
    Mode.USERNS: "userns: a user namespace of your own, no privilege",
    Mode.LANDLOCK: "landlock: no namespace, no mount; a fence around files, and nothing else",
}
_RESOURCES = {
    Resource.CPU_SECONDS: "seconds of processor time for each process",
    Resource.FILE_BYTES: "bytes in a file",
    Resource.DATA_BYTES: "bytes of data for each process",
    Resource.PROCESSES: "processes of this user",
    Resource.CORE_BYTES: "bytes of a core: none is written, nor given to a program of the host",
    Resource.OPEN_FILES: "open files for each process",
}
_NAMESPACES = {
    0x00020000: "mount",
    0x02000000: "cgroup",
    0x04000000: "uts",
    0x08000000: "ipc",
    0x10000000: "user",
    0x40000000: "net",
}


def lines(plan: Plan, command: tuple[bytes, ...], converted: set[bytes]) -> list[str]:
    """One line of text per step, after a header. `converted`: paths that a real run makes an image or tree of first."""
    out = [f"mode     {_MODES[plan.mode]}", f"home     {printable(plan.home.path)}"]
    for number, step in enumerate(plan.steps, 1):
        source = getattr(step, "source", None)
        first = source is not None and plan.sources[source].path in converted
        out.append(f"{number:4}  {_line(plan, step)}{', converted first' if first else ''}")
    out.append(f"      run {' '.join(printable(word) for word in command)}".rstrip())
    return out


def steps(plan: Plan) -> list[str]:
    """A line for each step, without its number."""
    return [_line(plan, step) for step in plan.steps]


def _source(plan: Plan, number: int) -> str:
    source = plan.sources[number]
    return "memory" if source.kind == SourceKind.MEMORY else printable(source.path)


def _place(place: Place) -> str:
    if place.base == Base.ROOT:
        return printable(place.path)
    return printable(b"/".join(filter(None, (b"PROCDIR", place.path))))


def _attrs(attrs: int) -> str:
    names = [flag.name.lower().replace("_", "-") for flag in Attr if attrs & flag and flag.name]
    return ",".join(names) or "none"


def _address(number: int) -> str:
    from ipaddress import IPv4Address

    return str(IPv4Address(number))


def _network(word: int) -> str:
    return f"{_address(word >> 8)}/{word & 0xFF}"


def _access(access: int) -> str:
    from sandbox.landlock import READ, WRITE

    return ",".join(name for name, bits in (("read", READ), ("write", WRITE)) if access & bits)


def _line(plan: Plan, step: Step) -> str:  # noqa: C901  (one line per kind of step)
    match step:
        case Unshare(flags):
            kinds = [name for bit, name in _NAMESPACES.items() if flags & bit]
            return f"new namespaces: {', '.join(kinds)}"
        case IdMap(inside, outside, gid_inside, gid_outside):
            return f"map uid {outside} to {inside}, gid {gid_outside} to {gid_inside}"
        case SetPropagation():
            return "no mount of this run reaches the host (propagation slave, recursively)"
        case Guard():
            return "guard: procdirs/ read-only beneath what follows"
        case Tmpfs(slot, size):
            return f"[{slot}] tmpfs of at most {size >> 20} MiB"
        case Part(slot, of):
            return f"[{slot}] a directory of its own in [{of}]"
        case Scratch(source, slot, overlay):
            return f"[{slot}] [{overlay}] a private directory in {_source(plan, source)}"
        case Tree(slot, source):
            return f"[{slot}] the directory {_source(plan, source)}"
        case Image(slot, source):
            return f"[{slot}] squashfs image {_source(plan, source)} through a loop device, read-only"
        case Erofs(slot, source):
            return f"[{slot}] erofs image {_source(plan, source)} from its file, read-only"
        case Fuse(slot, source, program):
            return f"[{slot}] squashfs image {_source(plan, source)} through {printable(program)}"
        case Extract(slot, source):
            return f"unpack {_source(plan, source)} into [{slot}]"
        case Overlay(slot, lowers, upper):
            return f"[{slot}] overlay of {', '.join(f'[{n}]' for n in lowers)}, changes go to [{upper}]"
        case Stack(slot, lowers):
            return f"[{slot}] read-only overlay of {', '.join(f'[{n}]' for n in lowers)}"
        case Attach(slot, place, attrs):
            return f"mount [{slot}] on {_place(place)} ({_attrs(attrs)})"
        case Mkdir(place):
            return f"make the directory {_place(place)}"
        case PlaceEnv(name, place):
            return f"set {printable(name)}={_place(place)}"
        case UnsetEnv(name):
            return f"unset {printable(name)}"
        case Chdir(place):
            return f"change to {_place(place)}"
        case Run(place, path):
            return f"the command is {printable(path)} in {_place(place)}, found without leaving it"
        case NoNewPrivs():
            return "no new privileges (setuid programs give none)"
        case DeathSignal(number):
            return f"signal {number} to the command when its supervisor dies"
        case Cgroup(source, memory, _, pids, cpu):
            limits = {"bytes of memory": memory, "processes": pids, "us of processor time in 100000": cpu}
            asked = ", ".join(f"{value} {what}" for what, value in limits.items() if value != 2**64 - 1)
            return f"a cgroup in {_source(plan, source)}: at most {asked}"
    return _isolation_line(step)


def _ranges(what: str, words: tuple[int, ...], *, turned: bool = False) -> str:
    """Ranges of a map; `turned` where its first numbers are those inside."""
    shown = []
    for at in range(0, len(words), 3):
        first, second, count = words[at : at + 3]
        start, end = (second, first) if turned else (first, second)
        shown.append(f"{start} as {end}" if count == 1 else f"{start}-{start + count - 1} as {end}-{end + count - 1}")
    return f"{what} {', '.join(shown)}"


def _isolation_line(step: Step) -> str:  # noqa: C901
    match step:
        case Init(as_pid_1):
            return f"a pid namespace{', the command is its init' if as_pid_1 else ' with an init of ours'}"
        case LockTree(attrs):
            return f"all of the host's tree is {_attrs(attrs)}"
        case Procdir(place):
            return f"PROCDIR is {_place(place)} from here on"
        case Proc():
            return "a fresh /proc, masked"
        case Dev():
            return "a minimal /dev"
        case Hide(path):
            return f"hide {printable(path)}"
        case Loopback():
            return "bring up the loopback device"
        case Hostname(name):
            return f"the host is called {printable(name)}"
        case Identity(uid, gid):
            return f"the command is uid {uid}, gid {gid}, in no other group"
        case DropCapabilities():
            return "no capabilities"
        case Idmap(slot, uid, shown, gid, shown_gid):
            return f"show uid {uid} as {shown} and gid {gid} as {shown_gid} in [{slot}]"
        case Shift(slot, uids, gids):
            return f"show {_ranges('uid', uids)}; {_ranges('gid', gids)} in [{slot}]"
        case UserNamespace(uids, gids, programs):
            writer = f", mapped by {', '.join(map(printable, programs))}" if programs else ""
            return f"a user namespace: {_ranges('uid', uids, turned=True)}; {_ranges('gid', gids, turned=True)}{writer}"
        case KeepDescriptors(fds):
            return f"no descriptors but {', '.join(map(str, (0, 1, 2, *fds)))}"
        case Seccomp(words):
            return f"a seccomp filter of {len(words)} instructions"
        case Bind(slot, place):
            return f"[{slot}] {_place(place)} of the host, with all that is mounted below it"
        case Text(slot, _, content):
            return f"[{slot}] a file of {len(content)} bytes"
        case File(place, _, content):
            return f"make the file {_place(place)}" + (f", {len(content)} bytes" if content else "")
        case Symlink(place, target):
            return f"make {_place(place)} a link to {printable(target)}"
        case Node(slot, path):
            return f"mount [{slot}] on /dev/{printable(path)}, where devices work"
        case NewRoot(slot, attrs):
            return f"[{slot}] is the new root ({_attrs(attrs)})"
        case PivotRoot(read_only):
            return f"leave the host's root for the new one{', which is read-only from here on' if read_only else ''}"
        case Expose():
            return "what is to be kept is copied out of the tree when all is over"
        case Audit():
            return "who refuses a system call says which one"
        case Terminal():
            return "a terminal of its own"
        case CountChanges(slot):
            return f"the changed files in [{slot}] are counted when all is over"
        case Protect(place, attrs):
            return f"{_place(place)} is {_attrs(attrs)}"
        case Limit(resource, soft):
            return f"at most {soft} {_RESOURCES[Resource(resource)]}"
        case Allow(place, access):
            return f"leave open: {_place(place)} ({_access(access)})"
        case Landlock(handled):
            return f"a Landlock fence, which nothing but that passes ({_access(handled)})"
        case Network(_, address, gateway, resolver, closed):
            return (
                f"a private network: {_network(address)}, by way of {_address(gateway)}, "
                f"names from {_address(resolver)}, closed to {', '.join(map(_network, closed)) or 'nothing'}"
            )
        case Nice(value):
            return f"nice value {value - 20}"
        case Timeout(limit, kill_after):
            return f"SIGTERM to everything after {limit / 1e9:g} s, SIGKILL {kill_after / 1e9:g} s later"
        case Name(name):
            return f"the run is called {printable(name)}"
        case Label(level, images):
            return f"the record says level {printable(level)}, images {', '.join(map(printable, images)) or 'none'}"
    raise AssertionError(step)
