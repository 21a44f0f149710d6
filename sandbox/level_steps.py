"""Steps of the isolating levels, of roots, fences and networks, and what the supervisor does for a run."""

from sandbox.plan_types import U8, U32, U64, Path, Place, Slots, String, Strings, Words
from sandbox.record import Record

_NAME_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


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


class Shift(Record):
    """Show ids through maps in a detached mount: stored, shown and count of each range; others are nobody's."""

    slot: U32
    uids: Words
    gids: Words


class UserNamespace(Record):
    """Enter a user namespace that was made before the fork, with these maps: inside, outside and count of each range.

    It lies in that of the step before, if there is one. Its owner is the command. `programs` write the maps, of uids
    and of gids, where the kernel does not let the launcher do it: newuidmap(1).
    """

    uids: Words
    gids: Words
    programs: Strings


def mapped(words: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """What a map of a UserNamespace step has outside: the first and the count of each range."""
    return tuple((words[at + 1], words[at + 2]) for at in range(0, len(words), 3))


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
    """The private network: who holds the other end of the socket that is the source attaches this namespace to one.

    What is in it then: a device `tap0` with `address`, from which `gateway` leads everywhere but to the networks in
    `closed`, and a name server at `resolver`. IPv4 addresses are numbers; with the length of a prefix in the lowest 8
    bits they are networks, which `address`, and each of `closed`, are. In mode setuid the engine sets all that up.
    """

    source: U32
    address: U64
    gateway: U32
    resolver: U32
    closed: Words


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
