"""The child's side of a launch: every step of a plan, one small function each."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

import prctl

from sandbox import fsops
from sandbox.engine import Launch, fence, isolation, loop, newroot, overlays, programs, rlimits, trouble
from sandbox.engine import syscalls as sys
from sandbox.engine.account import Account
from sandbox.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CommandError, StepError, printable, reason
from sandbox.home import Home
from sandbox.level_steps import Cgroup, Identity, Label, Limit, Name, Nice, Timeout
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
from sandbox.plan_types import Base, Place, Propagation, SourceKind
from sandbox.records import RunRecord

_SAFE = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
_PROC_FD = b"/proc/self/fd/%d"


class Child:
    """Executes the steps of one plan in the process that becomes the command."""

    def __init__(
        self, plan: Plan, launch: Launch, home: Home, record: RunRecord, parent: int, account: Account
    ) -> None:
        self.plan, self.home, self.record, self.parent = plan, home, record, parent
        self.account = account
        self.fds = launch.fds
        self.env = dict(launch.env)
        self.argv = list(launch.command)
        self.executable: bytes | None = None
        self.mounts: dict[int, int] = {}
        self.attached: set[int] = set()
        self.limits: list[Limit | Nice] = []
        self.momentary = contextlib.ExitStack()
        self.procdir = -1
        # Where base root starts, while that is not the root directory.
        self.root = -1
        self.dev = -1
        # Whose the things are that the run makes.
        self.owner = next(((s.uid, s.gid) for s in plan.steps if isinstance(s, Identity)), (plan.uid, plan.gid))
        # Open, in the order of the steps that enter them.
        self.user_namespaces: Iterator[int] = iter(())
        self.status = -1
        self.filter: tuple[int, ...] = ()
        self.allowed: list[tuple[int, int]] = []
        self.fence = -1
        # Whether the filter asks, the attendant's socket, and the one to the supervisor that changes are told by.
        self.audited = False
        self.attend = launch.attend
        self.changes = -1
        self.procdir_path = os.path.join(home.run_path, b"procdirs", record.name)

    def execute(self) -> None:
        """Every step in order. Raises StepError with the step, the thing and the remedy."""
        if self.account.cgroup is not None:
            self.account.cgroup.enter()
        self.account.mark()
        with self.momentary:
            for step in self.plan.steps:
                try:
                    _DO[type(step)](self, step)
                except OSError as error:
                    raise StepError(
                        f"{trouble.describe(self, step)}: {trouble.why(error)}", hint=trouble.remedy(step, error)
                    ) from None
                self.account.mark()
        for limit in self.limits:
            rlimits.apply(limit)
        if not any(isinstance(step, DeathSignal) for step in self.plan.steps):
            prctl.set_pdeathsig(0)
        self.account.mark()

    # -- namespaces -------------------------------------------------------------------------------------------

    def unshare(self, step: Unshare) -> None:
        sys.unshare(step.flags)

    def id_map(self, step: IdMap) -> None:
        # A change of ids took the right to (proc_pid_uid_map(5): the files are the dumpable process's own).
        prctl.set_dumpable(1)
        # gid_map can be written without privilege only after setgroups is denied: user_namespaces(7).
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{step.uid_inside} {step.uid_outside} 1"),
            ("gid_map", f"{step.gid_inside} {step.gid_outside} 1"),
        ):
            with fsops.closing(os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
                os.write(fd, line.encode())

    def set_propagation(self, step: SetPropagation) -> None:
        kind = sys.MS_SLAVE if step.kind == Propagation.SLAVE else sys.MS_PRIVATE
        sys.set_propagation(b"/", kind | sys.MS_REC)

    def guard(self, _: Guard) -> None:
        path = os.path.join(self.home.run_path, b"procdirs")
        with fsops.closing(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            checked = os.fstat(self.home.procdirs_fd)
            check_identity(fd, checked.st_dev, checked.st_ino, path)
            with fsops.closing(sys.clone_mount(fd, recursive=False)) as clone:
                sys.mount_setattr(clone, set_attrs=sys.MOUNT_ATTR_RDONLY, propagation=sys.MS_SLAVE)
                sys.move_mount(clone, fd)
        with fsops.closing(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            self.procdir = fsops.open_path(fd, self.record.name)

    # -- what can be mounted ----------------------------------------------------------------------------------

    def tmpfs(self, step: Tmpfs) -> None:
        options: list[tuple[bytes, bytes | None]] = [
            (b"source", b"sandbox:" + self.record.id.encode()),
            (b"size", b"%d" % step.size),
            (b"mode", b"%o" % step.mode),
            (b"uid", b"%d" % self.owner[0]),
            (b"gid", b"%d" % self.owner[1]),
        ]
        if step.inodes:
            options.append((b"nr_inodes", b"%d" % step.inodes))
        self.mounts[step.slot] = sys.make_mount(b"tmpfs", options, _SAFE)

    def part(self, step: Part) -> None:
        name = b"part%d" % step.slot
        with fsops.closing(fsops.make_new_dir(self.mounts[step.of], name)) as directory:
            os.fchown(directory, *self.owner)
            os.fchmod(directory, step.mode)
            try:
                self.mounts[step.slot] = self.clone(directory, recursive=False)
            except OSError as error:
                # Before Linux 6.15 nothing is cloned that is attached nowhere.
                if error.errno != errno.EINVAL:
                    raise
                size = next(one.size for one in self.plan.steps if isinstance(one, Tmpfs) and one.slot == step.of)
                self.tmpfs(Tmpfs(step.slot, size, 0, step.mode))

    def scratch(self, step: Scratch) -> None:
        index = [s.source for s in self.plan.steps if isinstance(s, Scratch)].index(step.source)
        with fsops.closing(os.open(self.record.scratch[index], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)) as fd:
            for name, slot in ((b"procdir", step.slot), (b"overlay", step.overlay_slot)):
                with fsops.closing(fsops.open_path(fd, name)) as directory:
                    self.mounts[slot] = self.clone(directory, recursive=False)

    def clone(self, fd: int, *, recursive: bool) -> int:
        clone = sys.clone_mount(fd, recursive=recursive)
        # Slave before it is attached anywhere: a mount that still belongs to a shared peer group leaks to the host.
        sys.mount_setattr(clone, propagation=sys.MS_SLAVE)
        return clone

    def tree(self, step: Tree) -> None:
        with self.directory(step.source) as fd:
            self.mounts[step.slot] = self.clone(fd, recursive=bool(step.recursive))

    @contextlib.contextmanager
    def directory(self, index: int) -> Any:
        """A directory source, opened now: a descriptor from before the unshare cannot be cloned (EINVAL)."""
        source = self.plan.sources[index]
        with fsops.closing(os.open(source.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            check_identity(fd, source.dev, source.ino, source.path)
            yield fd

    def image(self, step: Image) -> None:
        source, fd = self.plan.sources[step.source], self.fds[step.source]
        locks = None
        with contextlib.ExitStack() as stack:
            if source.kind == SourceKind.FILE:
                locks = stack.enter_context(fsops.closing(fsops.make_dir(self.home.run_fd, b"locks")))
            device = stack.enter_context(loop.attached(fd, locks))
            # Without `ro` before create the kernel asks for a writable device: EACCES.
            options = [(b"ro", None), (b"source", device)]
            self.mounts[step.slot] = sys.make_mount(b"squashfs", options, _SAFE | sys.MOUNT_ATTR_RDONLY)

    def erofs(self, step: Erofs) -> None:
        options = [(b"ro", None), (b"source", _PROC_FD % self.fds[step.source])]
        self.mounts[step.slot] = sys.make_mount(b"erofs", options, _SAFE | sys.MOUNT_ATTR_RDONLY)

    # -- where things appear ----------------------------------------------------------------------------------

    def open_root(self, path: bytes, flags: int, *, resolve: int = 0) -> int:
        """An absolute path of base root; `resolve` where that is the host's root directory. In a new root its links
        are its author's: they lead nowhere out of it.
        """
        if self.root >= 0:
            return sys.openat2(self.root, path, flags, resolve=sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS)
        return sys.openat2(sys.AT_FDCWD, path, flags, resolve=resolve | sys.RESOLVE_NO_MAGICLINKS)

    def open_place(self, place: Place) -> int:
        if place.base == Base.ROOT:
            fd = self.open_root(place.path, os.O_PATH | os.O_DIRECTORY)
        else:
            fd = fsops.open_path(self.procdir, place.path) if place.path else os.dup(self.procdir)
        return _checked_place(fd, place)

    def open_target(self, place: Place, mount: int) -> int:
        """Where a tree or a file is mounted. What was not looked at before the run may lie in another tree: its links,
        which are its author's, do not say where.
        """
        if place.base != Base.ROOT:
            return self.open_place(place)
        kind = os.O_DIRECTORY if stat.S_ISDIR(os.fstat(mount).st_mode) else 0
        known = place.dev or place.ino
        fd = self.open_root(place.path, os.O_PATH | kind, resolve=0 if known else sys.RESOLVE_NO_SYMLINKS)
        return _checked_place(fd, place)

    def attach(self, step: Attach) -> None:
        mount = self.mounts[step.slot]
        sys.mount_setattr(mount, set_attrs=isolation.attributes(step.attrs), propagation=sys.MS_SLAVE)
        with fsops.closing(self.open_target(step.place, mount)) as target:
            self.before_covering(step.place.path)
            sys.move_mount(mount, target)
        self.attached.add(step.slot)
        if step.place.base == Base.PROCDIR and not step.place.path:
            # A descriptor means the mount it was opened on: from now on the one on top is wanted.
            os.close(self.procdir)
            self.procdir = os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)

    def before_covering(self, path: bytes) -> None:
        """What was attached for a moment goes by way of /proc: umount(2) takes no descriptor."""
        if path == b"/proc":
            self.momentary.close()

    def mkdir(self, step: Mkdir) -> None:
        os.close(newroot.make_directory(self, step.place, step.place.path, step.mode))

    def path_of(self, place: Place) -> bytes:
        return place.path if place.base == Base.ROOT else os.path.join(self.procdir_path, place.path)

    def place_env(self, step: PlaceEnv) -> None:
        self.env[step.name] = self.path_of(step.place)

    def unset_env(self, step: UnsetEnv) -> None:
        self.env.pop(step.name, None)

    # -- the command ------------------------------------------------------------------------------------------

    def chdir(self, step: Chdir) -> None:
        with fsops.closing(self.open_place(step.place)) as fd:
            os.fchdir(fd)

    def run(self, step: Run) -> None:
        shown = printable(step.path)
        with fsops.closing(self.open_place(step.place)) as tree:
            try:
                fd = sys.openat2(tree, step.path, os.O_PATH, resolve=sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS)
            except OSError as error:
                code = EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE
                raise CommandError(f"--run: cannot open {shown} in its tree: {reason(error)}", exit_code=code) from None
            with fsops.closing(fd):
                self.executable = os.readlink(_PROC_FD % fd)
                if not stat.S_ISREG(os.fstat(fd).st_mode) or not os.access(_PROC_FD % fd, os.X_OK):
                    raise CommandError(
                        f"--run: {shown} is not an executable file",
                        exit_code=EXIT_NOT_EXECUTABLE,
                        hint="name a regular file with an execute bit",
                    )
        self.argv.insert(0, os.path.join(self.path_of(step.place), step.path))

    def no_new_privs(self, _: NoNewPrivs) -> None:
        prctl.set_no_new_privs(1)

    def death_signal(self, step: DeathSignal) -> None:
        prctl.set_pdeathsig(step.signal)
        if os.getppid() != self.parent:
            os._exit(1)

    def limit(self, step: Limit | Nice) -> None:
        """Kept for the end: what is still to be done must not run into them."""
        self.limits.append(step)

    def elsewhere(self, _: Timeout | Cgroup | Name | Label) -> None:
        """The supervisor's, the record's, or done before the first step."""


_DO: dict[type[Any], Any] = {
    Unshare: Child.unshare,
    IdMap: Child.id_map,
    SetPropagation: Child.set_propagation,
    Guard: Child.guard,
    Tmpfs: Child.tmpfs,
    Part: Child.part,
    Scratch: Child.scratch,
    Tree: Child.tree,
    Image: Child.image,
    Erofs: Child.erofs,
    Fuse: programs.fuse,
    Extract: programs.extract,
    Overlay: overlays.overlay,
    Stack: overlays.stack,
    Attach: Child.attach,
    Mkdir: Child.mkdir,
    PlaceEnv: Child.place_env,
    UnsetEnv: Child.unset_env,
    Chdir: Child.chdir,
    Run: Child.run,
    NoNewPrivs: Child.no_new_privs,
    DeathSignal: Child.death_signal,
    **isolation.DO,
    **fence.DO,
    **newroot.DO,
    Limit: Child.limit,
    Nice: Child.limit,
    Timeout: Child.elsewhere,
    Cgroup: Child.elsewhere,
    Name: Child.elsewhere,
    Label: Child.elsewhere,
}


def _checked_place(fd: int, place: Place) -> int:
    """The descriptor, which is closed if it is not of the place's device and inode."""
    if place.dev or place.ino:
        try:
            check_identity(fd, place.dev, place.ino, place.path)
        except BaseException:
            os.close(fd)
            raise
    return fd


def check_identity(fd: int, dev: int, ino: int, path: bytes) -> None:
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (dev, ino):
        raise StepError(
            f"{printable(path)} was replaced while the sandbox was being set up",
            hint="another process changes it; try again when it is done",
        )
