"""The isolating levels: what is hidden, what is private, and in which order a plan makes it so. Pure but for `look`."""

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sandbox.engine.syscalls import CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS
from sandbox.errors import UsageError
from sandbox.host import SQUASHFS_IDMAP, Host
from sandbox.level_steps import (
    Audit,
    CountChanges,
    Dev,
    DropCapabilities,
    Expose,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    Limit,
    LockTree,
    Loopback,
    Proc,
    Procdir,
    Protect,
    Seccomp,
    Shift,
    Terminal,
    Text,
)
from sandbox.plan import Attach, Extract, Mkdir, NoNewPrivs
from sandbox.plan import Tree as CloneTree
from sandbox.plan_types import Attr, Base, Mode, Place, Propagation, Resource
from sandbox.record import Record
from sandbox.spec import Spec, TreeKind

if TYPE_CHECKING:
    from sandbox.builder import Builder
    from sandbox.newroot import HostRoot
    from sandbox.sources import Opened
    from sandbox.subordinate import Subordinates
    from sandbox.treatments import Material, Target

RUN_DIRECTORY = b"/run/sandbox"
HOSTNAME = b"sandbox"
# Above what distributions give out (systemd's uid ranges); the launcher's pid makes it one that nobody else has.
FIRST_UID = 0x70000000
# The kernel gives out no higher pid: PID_MAX_LIMIT, proc_sys_kernel(5). Below the last uid there is room for 575 lanes.
_PIDS = 1 << 22
LANES = 500
_PROJECT_LANES = 70
SAFE = Attr.NOSUID | Attr.NODEV
LOCKED = SAFE | Attr.READ_ONLY
_ACCOUNT = b"sandbox-job"
PASSWD, GROUP = b"/etc/passwd", b"/etc/group"
_LONGEST_ACCOUNTS = 60_000
SHARED_DIRECTORIES = (b"/tmp", b"/var/tmp")
# Of persons, and what the kernel and services wrote down: many a user may read it, by a group.
HOMES = (b"/home", b"/root", b"/var/log")
# Closed to a uid of a job's own.
MAIL = (b"/var/mail", b"/var/spool/mail")
# The last is the host's, whatever cgroup namespace there is: it names every service, and who runs what.
_HIDDEN = (
    *(b"/sys/firmware", b"/sys/devices/virtual/powercap", b"/sys/kernel/debug", b"/sys/kernel/tracing"),
    b"/sys/fs/cgroup",
)


class Surroundings(Record):
    """What a level needs to know of the host. Paths are absolute and without links.

    `shared` get a private, empty stand-in, `homes` an empty one, `home` is the command's own; `workspace` is the
    working directory unless one of these covers it; `ids` are the command's uid and gid where they are not the user's;
    `root` is what a root of the run's own is made of, `image` the tree that it is instead. `protected` is what of a
    writable workspace is not; `accounts` are the host's passwd and group files, as lines, where the ids need names.
    `subordinates` are the ids beside root that the command has inside.
    """

    shared: tuple[bytes, ...]
    homes: tuple[bytes, ...]
    home: bytes
    workspace: "Material | None"
    ids: tuple[int, int] | None
    hidden: tuple[bytes, ...]
    filter: tuple[int, ...] = ()
    root: "HostRoot | None" = None
    image: "Material | None" = None
    protected: tuple[Protect, ...] = ()
    accounts: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    subordinates: "Subordinates | None" = None

    def names(self) -> dict[bytes, bytes]:
        """What the command's uid and gid are called, by the path of the file that says so."""
        if self.ids is None:
            return {}
        numbers = dict(zip((PASSWD, GROUP), self.ids, strict=True))
        return {path: _name_of(lines, numbers[path]) for path, lines in self.accounts}

    def texts(self) -> list[tuple[bytes, bytes]]:
        """Those files, by path, with a line for the command's ids, the first: it counts, whatever else has them."""
        if self.ids is None:
            return []
        names = self.names()
        own = {PASSWD: b"x:%d:%d::%b:/bin/sh" % (*self.ids, self.home), GROUP: b"x:%d:" % self.ids[1]}
        return [(path, b"\n".join([names[path] + b":" + own[path], *lines, b""])) for path, lines in self.accounts]

    def variables(self, spec: Spec) -> dict[bytes, bytes]:
        """What the command is told of itself, but for what an option sets or removes."""
        said = {item.partition(b"=")[0] for item in spec.env} | set(spec.unset_env)
        name = self.names().get(PASSWD)
        own = {b"HOME": self.home} | ({} if name is None else {b"USER": name, b"LOGNAME": name})
        return {key: value for key, value in own.items() if key not in said}

    def covers(self, path: bytes) -> bool:
        """Whether what is at this path on the host does not show."""
        return self.root is not None or any(
            _is_below(path, top) for top in (*self.shared, *self.homes, self.home, b"/run", b"/dev", b"/proc")
        )


def _name_of(lines: tuple[bytes, ...], number: int) -> bytes:
    found = (line.split(b":")[0] for line in lines if line.split(b":")[2:3] == [b"%d" % number])
    return next(found, _ACCOUNT)


def look(environ: Mapping[bytes, bytes], spec: Spec, mode: Mode, home: bytes) -> Surroundings:
    """The surroundings on this host, without a workspace. `home` is the launcher's own directory, which is hidden."""
    shared = _real(SHARED_DIRECTORIES)
    own = _real((environ.get(b"HOME", b""),))
    wanted = own[0] if (own and own[0].count(b"/") > 1) or own == (b"/root",) else RUN_DIRECTORY + b"/home"
    own_ids = ids(spec, mode)
    tops = _outermost(_real((*HOMES, *(MAIL if own_ids is None else ()))), shared)
    homes = tops + _other_homes({os.getuid(), *(own_ids or ())[:1]}, shared + tops)
    found = Surroundings(shared, homes, wanted, None, own_ids, (*_HIDDEN, home))
    if spec.isolation != "strict":
        return found if own_ids is None else found.replace(accounts=_accounts())
    from sandbox import newroot

    return newroot.surroundings(spec, found)


def ids(spec: Spec, mode: Mode, lane: int = 0) -> tuple[int, int] | None:
    """The command's uid and gid where they are not the caller's. One process's runs at the same time differ in `lane`.

    Raises UsageError for a user that cannot be had.
    """
    if spec.user is not None:
        if mode is not Mode.ROOT:
            raise UsageError("--user: only root can start a command as somebody else", hint="leave it out")
        return spec.user
    if os.getuid() != 0:
        return None
    if mode is not Mode.ROOT:
        import prctl

        capable = prctl.cap_effective.sys_admin
        better = "use --mode root" if capable else "a container needs --cap-add SYS_ADMIN --cap-add NET_ADMIN"
        raise UsageError(
            f"--isolation {spec.isolation} in mode {mode.name.lower()} would run as root's uid",
            hint=f"{better}, or start it as an ordinary user",
        )
    number = FIRST_UID + lane * _PIDS + os.getpid()
    return number, number


def project_uid(number: int) -> int:
    """A uid for all jobs of a project of root's: beyond those of runs, and below 2^32 - 2, which no file can have."""
    return FIRST_UID + LANES * _PIDS + number % (_PROJECT_LANES * _PIDS)


def _accounts() -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
    """The host's passwd and group files, by path, as lines. What is beyond their first 60 KB a plan cannot hold."""
    found = []
    for path in (PASSWD, GROUP):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            data = file.read(_LONGEST_ACCOUNTS + 1)
            lines = data.splitlines()[: -1 if len(data) > _LONGEST_ACCOUNTS else None]
            found.append((path, tuple(line for line in lines if b"\0" not in line)))
    return tuple(found)


def account_homes(persons: set[int]) -> tuple[bytes, ...]:
    """What the accounts of these uids call their homes: $HOME may say something else."""
    numbers = {b"%d" % uid for uid in persons}
    entries = [line.split(b":") for path, lines in _accounts() if path == PASSWD for line in lines]
    return tuple(entry[5] for entry in entries if len(entry) > 5 and entry[2] in numbers)


def _other_homes(persons: set[int], covered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Those of them that are theirs, and not hidden with something else: some accounts name what is the system's."""
    own = (path for path in _real(account_homes(persons)) if os.stat(path).st_uid in persons)
    return tuple(path for path in own if path.count(b"/") > 1 and not _is_covered(path, covered))


def _real(paths: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Those that are directories, without links, each once."""
    found = dict.fromkeys(os.path.realpath(path) for path in paths if path.startswith(b"/") and os.path.isdir(path))
    return tuple(found)


def _outermost(paths: tuple[bytes, ...], covered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Those that lie in none of the others, and in nothing covered: in an empty directory there is nothing to cover."""
    return tuple(path for path in paths if not _is_covered(path, (*covered, *(set(paths) - {path}))))


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _is_covered(path: bytes, tops: tuple[bytes, ...]) -> bool:
    return any(_is_below(path, top) for top in tops)


def can_be_workspace(path: bytes, where: Surroundings) -> bool:
    """Not what is hidden itself, nor a directory above it."""
    covered = (*where.shared, *where.homes, where.home, b"/run", b"/dev", b"/proc", b"/sys", b"/usr", b"/etc")
    return path != b"" and not any(_is_below(top, path) for top in covered)


def unpacks_images(mode: Mode, host: Host) -> bool:
    """Whether the kernel cannot show an image as the files of a job of root's: mount_setattr(2)."""
    return mode is Mode.ROOT and not (host.id_maps and host.kernel >= SQUASHFS_IDMAP)


def level(builder: "Builder", where: Surroundings) -> "Level":
    """What adds the steps of the level that these surroundings are for."""
    if where.root is None:
        return Level(builder, where)
    from sandbox.newroot import StrictLevel

    return StrictLevel(builder, where)


class Level:
    """Adds the steps of an isolating level to a builder's."""

    def __init__(self, builder: "Builder", where: Surroundings) -> None:
        self.builder, self.where, self.spec = builder, where, builder.spec
        self.add = builder.steps.append
        if where.subordinates is not None:
            builder.subordinates = where.subordinates.of_job(where.ids)
        if unpacks_images(builder.mode, builder.host):
            builder.unpack_for = where.ids

    def compile(
        self,
        materials: "list[Material]",
        targets: "dict[bytes, Target]",
        kinds: set[TreeKind],
        deny: dict[bytes, bool],
        cwd: bytes,
    ) -> None:
        """All steps of the level. What is of the host is opened before any of it is covered."""
        self.start()
        self.builder.before()
        grounds = [self.ground(item, writable=item.tree.kind is not TreeKind.STATIC) for item in materials]
        workspace = self.workspace()
        self.lock()
        self.builder.directories(kinds)
        if workspace is not None:
            self.attach_workspace(workspace)
        for item, (slot, overlay) in zip(materials, grounds, strict=True):
            name = item.tree.name
            shown = self.builder.overlay(slot) if overlay else slot
            self.builder.show(item.tree, shown, self.target(targets.get(name)), deny_symlinks=deny[name])
        self.enclose()
        self.command([item.tree for item in materials], cwd)

    def start(self) -> None:
        flags = CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
        if self.spec.net != "host":
            flags |= CLONE_NEWNET
        self.builder.namespaces(flags, Propagation.PRIVATE)

    def lock(self) -> None:
        """The host's tree read-only, and private places over it. The sources of trees were cloned before."""
        self.add(LockTree(LOCKED))
        self.private(b"/run", 0o755)
        self.add(Mkdir(Place(Base.ROOT, RUN_DIRECTORY), 0o700))
        self.add(Procdir(Place(Base.ROOT, RUN_DIRECTORY)))
        for path in self.where.shared:
            self.private(path, 0o1777)
        for path in self.where.homes:
            if path != self.where.home:
                self.private(path, 0o755)
        if _is_covered(self.where.home, (b"/run", *self.where.shared, *self.where.homes)):
            self.add(Mkdir(Place(Base.ROOT, self.where.home), 0o755))
        if self.where.home not in self.where.shared:
            self.private(self.where.home, 0o700)

    def private(self, path: bytes, mode: int) -> None:
        slot = self.builder.private_directory(mode)
        self.add(Attach(slot, Place(Base.ROOT, path), SAFE))

    def ground(self, material: "Material", *, writable: bool) -> tuple[int, bool]:
        """Like the builder's, with what is the user's shown as the command's own."""
        self.builder.shift = self.shift
        return self.builder.ground(material, writable=writable)

    def shift(self, material: "Material", slot: int) -> None:
        """Ranges only where nothing is written through to the host: a job could make files there that are anybody's."""
        is_tree = isinstance(self.builder.steps[-1], CloneTree)
        ranges, ids = self.builder.subordinates, self.where.ids
        if ids is None or material.source is None or isinstance(self.builder.steps[-1], Extract):
            return
        if ranges is not None and (not is_tree or self.is_root_of_roots(material)):
            self.add(Shift(slot, *ranges.inner(*ids)))
            return
        owner, group = self.builder.host.uid, self.builder.host.gid
        if is_tree:
            assert material.tree.status is not None
            owner, group = material.tree.status.st_uid, material.tree.status.st_gid
        self.add(Idmap(slot, owner, ids[0], group, ids[1]))

    def is_root_of_roots(self, material: "Material") -> bool:
        """Whether it is the root directory of the run, or a layer of it, and root's."""
        image, status = self.where.image, material.tree.status
        if image is None or status is None or not any(material.tree is one.tree for one in (image, *image.above)):
            return False
        return (status.st_uid, status.st_gid) == (0, 0)

    def workspace(self) -> tuple[int, bool] | None:
        if self.where.workspace is None:
            return None
        return self.ground(self.where.workspace, writable=self.spec.workspace == "overlay")

    def attach_workspace(self, ground: tuple[int, bool]) -> None:
        assert self.where.workspace is not None
        slot, overlay = ground
        path = self.where.workspace.tree.name
        place = Place(Base.ROOT, path)
        self.builder.workspace = path
        if self.where.covers(path):
            self.add(Mkdir(place, 0o755))
        lower = slot
        if overlay:
            slot = self.builder.overlay(slot)
        self.add(Attach(slot, place, LOCKED if self.spec.workspace == "ro" else SAFE))
        if self.spec.workspace == "overlay":
            self.add(CountChanges(slot if overlay else lower))
        self.builder.steps += self.where.protected

    def target(self, target: "Target | None") -> "Target | None":
        """None for a mount point that the run has to make, as what is there on the host is covered."""
        if target is not None and target.status is not None and self.where.covers(target.path):
            return None
        return target

    def enclose(self) -> None:
        """The namespaces of the processes, and what shows their state."""
        self.add(Init(int(self.spec.as_pid_1)))
        self.add(Dev())
        self.private(b"/dev/shm", 0o1777)
        self.add(Proc())
        self.builder.steps += [Hide(path) for path in self.where.hidden]
        for path, text in self.where.texts():
            slot = self.builder.slot()
            self.builder.steps += [Text(slot, 0o444, text), Attach(slot, Place(Base.ROOT, path), LOCKED | Attr.NOEXEC)]
        if self.spec.hostname is None:
            self.add(Hostname(HOSTNAME))
        if self.spec.net not in ("host", "private"):
            self.add(Loopback())
        self.builder.resolve_names()
        self.builder.after(private_dev=True)

    def command(self, trees: "list[Opened]", cwd: bytes) -> None:
        """Let go of every right, then what the command starts with."""
        if self.where.ids is not None:
            self.add(Identity(*self.where.ids))
        self.add(DropCapabilities())
        self.builder.as_root(self.where.ids or (self.builder.host.uid, self.builder.host.gid))
        self.add(NoNewPrivs())
        # A core is piped to core_pattern, which runs as root on the host, whatever the limit is but for 1: core(5).
        self.add(Limit(Resource.CORE_BYTES, 1, 1))
        # The inherited directory is one of the host's, whatever is mounted there now.
        self.builder.command(trees, cwd, covered=[b"/"])
        if self.spec.keeps:
            self.add(Expose())
        if self.spec.tty:
            self.add(Terminal())
        self.add(KeepDescriptors(self.spec.pass_fds))
        if self.where.filter:
            self.filter()
        self.builder.last()

    def filter(self) -> None:
        if not self.spec.audit:
            self.add(Seccomp(self.where.filter))
            return
        from sandbox.auditing import asking

        self.builder.steps += [Seccomp(asking(self.where.filter)), Audit()]
