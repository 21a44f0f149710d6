"""Plans that must decode: their names, what each holds, and the plans."""

from collections.abc import Iterator

from sandbox.codec import MAX_ITEMS, MAX_PATH, MAX_STRING
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
    Tmpfs,
    Tree,
    UnsetEnv,
    Unshare,
)
from sandbox.plan_types import Base, Mode, Place, PlanFlag, Source, SourceKind

HOME = Source(SourceKind.DIRECTORY, b"/home/u/.sandbox", 2049, 77)
FILE = Source(SourceKind.FILE, b"/srv/image.sfs", 2049, 12, 4096, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002)
DIRECTORY = Source(SourceKind.DIRECTORY, b"/srv/tree", 2049, 13)
MEMORY = Source(SourceKind.MEMORY, b"")
TOP = Place(Base.PROCDIR, b"")
INSIDE = Place(Base.PROCDIR, b"static/name")
OUTSIDE = Place(Base.ROOT, b"/opt/sdk", 2049, 99)

EVERY_STEP = (
    Unshare(0x10020000),
    IdMap(1000, 1000, 1000, 1000),
    SetPropagation(1),
    SetPropagation(2),
    Guard(),
    Tmpfs(0, 1 << 30, 0, 0o700),
    Tmpfs(1, 1 << 20, 1000, 0o755),
    Attach(0, TOP, 6),
    Scratch(1, 2, 3),
    Tree(4, 1, 0),
    Tree(5, 1, 1),
    Image(6, 0),
    Image(7, 2),
    Fuse(8, 0, b"/usr/bin/squashfuse_ll"),
    Extract(1, 2, (b"/usr/bin/tool", b"--into", b"")),
    Overlay(9, (4, 6), 3, 1),
    Overlay(10, (9,), 1, 2),
    Mkdir(INSIDE, 0o755),
    Attach(6, INSIDE, 31),
    Attach(10, OUTSIDE, 0),
    PlaceEnv(b"SANDBOX_TMPDIR", TOP),
    PlaceEnv(b"SANDBOX_STATIC", Place(Base.PROCDIR, b"static")),
    UnsetEnv(b"LD_PRELOAD"),
    Chdir(OUTSIDE),
    Run(INSIDE, b"bin/tool"),
    NoNewPrivs(),
    DeathSignal(9),
)
LIMITS = (
    Limit(1, 60, 70),
    Limit(2, 2**64 - 1, 2**64 - 1),
    Limit(3, 0, 1024),
    Nice(0),
    Nice(39),
    Timeout(1_500_000_000, 2**64 - 1),
    Limit(4, 1 << 20, 1 << 20),
    Limit(5, 9, 9),
    Limit(6, 1, 1),
    Cgroup(0, 1 << 30, 0, 100, 2**64 - 1),
)


def plan(
    *steps: object, mode: Mode = Mode.ROOT, flags: int = 0, home: Source = HOME, sources: tuple[Source, ...] = ()
) -> Plan:
    return Plan(mode, PlanFlag(flags), 1000, 1000, home, sources, steps)  # type: ignore[arg-type]


# Plans of version 1 that stand in version 2 as well.
AGAIN = ("minimal", "every-step", "odd-names")
SOURCES = (FILE, DIRECTORY, MEMORY)
FULL = plan(*EVERY_STEP, mode=Mode.USERNS, flags=1, sources=SOURCES)

ISOLATION = (
    Tmpfs(1, 1 << 20, 0, 0o755),
    Idmap(1, 0, 0x70000001, 0, 0x70000002),
    LockTree(7),
    Procdir(Place(Base.ROOT, b"/run/sandbox")),
    Init(0),
    Dev(),
    Proc(),
    Hide(b"/sys/firmware"),
    Hostname(b"build-7"),
    Loopback(),
    Identity(0x70000001, 0x70000002),
    DropCapabilities(),
    KeepDescriptors((3, 9)),
    Seccomp((0x7FFF000000000006, 1)),
)

NEW_ROOT = (
    Tmpfs(0, 1 << 20, 0, 0o755),
    Bind(1, Place(Base.ROOT, b"/usr", 2049, 5)),
    Text(2, 0o444, b"127.0.0.1 localhost\n"),
    NewRoot(0, 6),
    Symlink(Place(Base.ROOT, b"/bin"), b"usr/bin"),
    Mkdir(Place(Base.ROOT, b"/usr"), 0o755),
    Attach(1, Place(Base.ROOT, b"/usr"), 7),
    File(Place(Base.ROOT, b"/etc/hosts"), 0o644, b""),
    Attach(2, Place(Base.ROOT, b"/etc/hosts"), 7),
    File(Place(Base.ROOT, b"/etc/hostname"), 0o644, b"box\n"),
    Bind(3, Place(Base.ROOT, b"/dev/dri/card0", 5, 6)),
    Dev(),
    Node(3, b"dri/card0"),
    PivotRoot(1),
)
ATTENDED = (
    Tmpfs(0, 1 << 20, 0, 0o700),
    CountChanges(0),
    Protect(OUTSIDE, 7),
    Expose(),
    Terminal(),
    Seccomp((0x7FFF000000000006,)),
    Audit(),
)
RANGES = (
    UserNamespace((1000, 1000, 1, 100000, 100000, 65536), (0, 2**32 - 2, 1), (b"/usr/bin/newuidmap", b"/x")),
    Tmpfs(0, 1 << 20, 0, 0o755),
    Shift(0, (0, 2**31, 1, 1, 2**31 + 1, 65535), (5, 7, 1)),
    UserNamespace((0, 1000, 1), (0, 1000, 1), ()),
)


def good() -> Iterator[tuple[str, str, Plan]]:
    yield "minimal", "no source, no step, mode root", plan()
    yield "setuid", "mode setuid, one step", plan(NoNewPrivs(), mode=Mode.SETUID)
    yield "every-step", "every kind of step and source, mode userns, the flag to leave processes running", FULL
    yield "isolation", "every kind of step of the isolating levels", plan(*ISOLATION)
    yield "new-root", "every kind of step of a new root", plan(*NEW_ROOT)
    yield "limits", "every limit, nice value and a timeout", plan(*LIMITS, sources=(DIRECTORY,))
    yield "attended", "every step that an attendant or the supervisor has a part in", plan(*ATTENDED)
    yield "ranges", "user namespaces and a mount with ranges of ids", plan(*RANGES, mode=Mode.USERNS)
    stacked = (Tmpfs(0, 1, 0, 0), Tmpfs(1, 1, 0, 0), Stack(2, (0, 1), 0), Stack(3, (1, 2, 0), 1))
    yield "stacks", "stacks of two and three layers", plan(*stacked)
    parts = (Tmpfs(0, 1 << 20, 0, 0o700), Part(1, 0, 0o1777), Part(2, 0, 0o755), Attach(1, OUTSIDE, 6))
    yield "parts", "private directories in one tmpfs", plan(*parts)
    yield "erofs", "an erofs image", plan(Erofs(0, 1), Attach(0, TOP, 7), sources=(DIRECTORY, FILE))
    fence = (Allow(OUTSIDE, 2**64 - 1, 0), Allow(TOP, 1, 1), Landlock(2**64 - 1, 3))
    yield "fence", "a fence, in mode landlock", plan(*fence, mode=Mode.LANDLOCK)
    yield (
        "network",
        "a private network",
        plan(Network(0, 0x0A00026418, 0x0A000202, 0x0A000203, (0xA9FE000010, 0xC000020120, 0)), sources=(MEMORY,)),
    )
    labels = (Name(b"build-7.x"), Label(b"job", (b"t=/srv/t.sfs", b"odd \xff=/\n")))
    yield "labels", "what a record says for who looks", plan(*labels)
    odd = b"/a b/\xff\xfe/new\nline/\xe2\x80\xae/..//."
    yield (
        "odd-paths",
        "paths of any bytes but NUL, and dots in root places",
        plan(Chdir(Place(Base.ROOT, odd)), home=HOME.replace(path=odd)),
    )
    names = Place(Base.PROCDIR, b"...\n/\xff/ /.x")
    yield "odd-names", "odd but plain components below the procdir", plan(Mkdir(names, 0o7777))
    longest = b"/" + b"x" * (MAX_PATH - 1)
    yield "longest-path", f"a path of {MAX_PATH} bytes", plan(Chdir(Place(Base.ROOT, longest)))
    yield "longest-string", f"a string of {MAX_STRING} bytes", plan(UnsetEnv(b"x" * MAX_STRING))
    yield "most-steps", f"{MAX_ITEMS} steps", plan(*[NoNewPrivs()] * MAX_ITEMS)
    most = 0xFFFFFFFF
    yield (
        "extremes",
        "the largest numbers",
        plan(Tmpfs(most, 2**64 - 1, 2**64 - 1, most), Unshare(2**64 - 1), DeathSignal(most)),
    )
