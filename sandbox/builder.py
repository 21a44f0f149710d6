"""The steps of one launch as they are collected: what a mode needs for each tree, and slots and sources by number."""

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.engine.syscalls import CLONE_NEWNS, CLONE_NEWUSER
from sandbox.errors import HostError, UsageError, printable
from sandbox.host import TMPFS_USER_XATTR, Host
from sandbox.level_steps import Hostname, Label, Name, UserNamespace
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
    Overlay,
    Part,
    PlaceEnv,
    Run,
    Scratch,
    SetPropagation,
    Stack,
    Step,
    Tmpfs,
    UnsetEnv,
    Unshare,
)
from sandbox.plan import Tree as CloneTree
from sandbox.plan_types import Attr, Base, Mode, OverlayOption, Place, Propagation, Source
from sandbox.record import Record
from sandbox.sources import Opened
from sandbox.spec import Spec, TreeKind
from sandbox.treatments import Material, Target, Treatment, mounted_name

if TYPE_CHECKING:
    from sandbox.network import Private
    from sandbox.refine import Refiner
    from sandbox.subordinate import Subordinates

_SAFE = Attr.NOSUID | Attr.NODEV
TMPDIR = b"tmp"
_VARIABLES = {TreeKind.STATIC: b"SANDBOX_STATIC", TreeKind.DYNAMIC: b"SANDBOX_DYNAMIC"}


class Programs(Record):
    """What a plan may start: squashfuse_ll by its absolute path, and the argv that unpacks an archive, or copies a
    directory, for a source's label. `extract` is also told whether the archive is a layer of a stack, and whose the
    files shall be (uid and gid, for root only).
    """

    fuse: bytes
    extract: Callable[[str, bool, tuple[int, int] | None], tuple[bytes, ...]]
    copy: Callable[[str], tuple[bytes, ...]]


def tmpfs_size(spec: Spec, host: Host) -> int:
    """The most bytes in each private tmpfs."""
    return spec.tmpfs_size or max(host.memory // 2, 1 << 20)


class Builder:
    """Collects steps and hands out slots and source numbers."""

    def __init__(self, spec: Spec, host: Host, mode: Mode, programs: Programs) -> None:
        self.spec, self.host, self.mode, self.programs = spec, host, mode, programs
        self.steps: list[Step] = []
        self.sources: list[Source] = []
        self.fds: dict[int, int] = {}
        self.slots = 0
        self.tmpfs_size = tmpfs_size(spec, host)
        self.upper: int | None = None
        # The tmpfs that private directories lie in, attached nowhere.
        self.shared: int | None = None
        self.cgroup: Source | None = None
        self.cwd = b""
        self.private: Private | None = None
        # Where trees of the run appear.
        self.shown: list[Place] = []
        # Where the working directory of an isolated command is, unless it is hidden.
        self.workspace = b""
        self.images: tuple[bytes, ...] = ()
        # What lies beneath a slot that is the top of a stack, which an overlay is yet to make; and which of them are
        # only read.
        self.beneath: dict[int, tuple[int, ...]] = {}
        self.static: set[int] = set()
        # The directory for uppers that are saved, its slot once there is one, and the slots that they are made for.
        self.saving: Source | None = None
        self.refiner: Refiner | None = None
        self.saving_slot: int | None = None
        self.to_save: dict[int, bytes] = {}
        self.saved: dict[bytes, int] = {}
        # What --as-root has beside the one id.
        self.subordinates: Subordinates | None = None
        # What an isolating level does to the mount of a layer.
        self.shift: Callable[[Material, int], None] = lambda _material, _slot: None
        # Whose an image is, unpacked, where the kernel cannot show it as theirs.
        self.unpack_for: tuple[int, int] | None = None

    def slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def source(self, material: Material) -> int:
        assert material.source is not None
        self.sources.append(material.source)
        if material.fd is not None:
            self.fds[len(self.sources) - 1] = material.fd
        return len(self.sources) - 1

    def tmpfs(self, *, mode: int = 0o700) -> int:
        self.steps.append(Tmpfs(slot := self.slot(), self.tmpfs_size, 0, mode))
        return slot

    def private_directory(self, mode: int) -> int:
        """With others in one tmpfs, unless each is to have a limit of its own. The setuid helper has none without."""
        if self.spec.tmpfs_size is not None or self.mode is Mode.SETUID:
            return self.tmpfs(mode=mode)
        if self.shared is None:
            self.shared = self.tmpfs()
        self.steps.append(Part(slot := self.slot(), self.shared, mode))
        return slot

    def namespaces(self, more: int = 0, propagation: Propagation = Propagation.SLAVE) -> None:
        userns = self.mode is Mode.USERNS
        uid, gid = self.host.uid, self.host.gid
        if userns and self.subordinates is not None:
            self.steps.append(UserNamespace(*self.subordinates.outer(uid, gid), self.subordinates.programs))
            self.steps.append(Unshare(CLONE_NEWNS | more))
        else:
            self.steps.append(Unshare(CLONE_NEWNS | more | (CLONE_NEWUSER if userns else 0)))
            self.steps += [IdMap(uid, uid, gid, gid)] if userns else []
        self.steps.append(SetPropagation(propagation))
        if self.private is not None:
            from sandbox import network

            network.attach(self, self.private)

    def resolve_names(self) -> None:
        if self.private is not None:
            from sandbox import network

            network.resolve(self, self.private)

    def procdir(self, scratch: Source | None, kinds: set[TreeKind]) -> None:
        self.steps.append(Guard())
        if scratch is None:
            slot = self.tmpfs()
        else:
            self.sources.append(scratch)
            slot, self.upper = self.slot(), self.slot()
            self.steps.append(Scratch(len(self.sources) - 1, slot, self.upper))
        self.steps.append(Attach(slot, Place(Base.PROCDIR, b""), _SAFE))
        self.directories(kinds)

    def directories(self, kinds: set[TreeKind]) -> None:
        """What every procdir holds, and the variables that lead there."""
        self.directory(TMPDIR, b"SANDBOX_TMPDIR")
        for kind, variable in _VARIABLES.items():
            if kind in kinds:
                self.directory(kind.value.encode(), variable)
            else:
                self.steps.append(UnsetEnv(variable))

    def directory(self, name: bytes, variable: bytes) -> None:
        place = Place(Base.PROCDIR, name)
        self.steps += [Mkdir(place, 0o700), PlaceEnv(variable, place)]

    def tree(self, material: Material, target: Target | None, *, deny_symlinks: bool) -> None:
        slot, overlay = self.ground(material, writable=material.tree.kind is not TreeKind.STATIC)
        self.show(material.tree, self.overlay(slot) if overlay else slot, target, deny_symlinks=deny_symlinks)

    def show(self, tree: Opened, slot: int, target: Target | None, *, deny_symlinks: bool) -> None:
        if self.mode is Mode.SETUID and self.is_saved(tree):
            self.saved[tree.name] = slot
        writable = tree.kind is not TreeKind.STATIC
        attrs = _SAFE | (Attr(0) if writable else Attr.READ_ONLY) | (Attr.NOSYMFOLLOW if deny_symlinks else Attr(0))
        place = mounted_name(tree)
        if target is not None and target.status is not None:
            place = place.replace(dev=target.status.st_dev, ino=target.status.st_ino)
        elif target is not None:
            # Through no link from here on: those of the host are resolved, those of another tree are not followed.
            place = place.replace(path=target.path)
        if target is None or (target.status is None and self.spec.mkdir):
            self.steps.append(Mkdir(place, 0o755))
        self.shown.append(place)
        self.steps.append(Attach(slot, place, attrs))

    def ground(self, material: Material, *, writable: bool) -> tuple[int, bool]:
        """The slot of a mount that shows the tree, and whether it is yet to be covered by an overlay."""
        slot, overlay = self.stacked(material, writable=writable)
        # The setuid helper hands out what is shown, and no layer of it.
        if self.mode is not Mode.SETUID and self.is_saved(material.tree):
            self.prepare_saving(material.tree, slot)
            return slot, True
        return slot, overlay

    def is_saved(self, tree: Opened) -> bool:
        return any(save.tree == tree.name for save in self.spec.saves)

    def prepare_saving(self, tree: Opened, slot: int) -> None:
        """What changes in this tree goes to the directory that outlives the run, opened before it is covered."""
        if self.saving_slot is None:
            assert self.saving is not None
            self.sources.append(self.saving)
            self.steps.append(CloneTree(saving := self.slot(), len(self.sources) - 1, 0))
            self.saving_slot = saving
        self.to_save[slot] = tree.name

    def stacked(self, material: Material, *, writable: bool) -> tuple[int, bool]:
        """The top slot of all layers, and whether it is yet to be covered by an overlay."""
        if not material.above:
            return self.layer(material, writable=writable)
        if writable and not self.can_hide(material.tree):
            raise HostError(
                f"{material.tree.label}: a writable stack in a user namespace needs Linux 6.6 (user.* in tmpfs)",
                hint="--scratch DIR on a disk, --mode root or setuid, or a newer kernel",
            )
        slots = [self.layer(layer, writable=writable)[0] for layer in (material.replace(above=()), *material.above)]
        self.beneath[slots[-1]] = tuple(slots[:-1])
        if not writable:
            self.static.add(slots[-1])
        return slots[-1], True

    def layer(self, material: Material, *, writable: bool) -> tuple[int, bool]:
        """The same of one layer."""
        if material.treatment is Treatment.EMPTY:
            return self.tmpfs(), False
        slot, overlay = self.mount(material, writable=writable)
        self.shift(material, slot)
        return slot, overlay

    def mount(self, material: Material, *, writable: bool) -> tuple[int, bool]:
        source = self.source(material)
        unpacked = material.treatment is Treatment.IMAGE and self.unpack_for is not None
        unmarked = material.treatment is Treatment.FUSE and writable and not self.can_hide(material.tree)
        if unpacked or unmarked or material.treatment is Treatment.EXTRACT:
            owner = self.unpack_for if unpacked else None
            return self.copied(source, self.programs.extract(material.tree.label, material.stacked, owner)), False
        directory = material.treatment in (Treatment.DIRECTORY, Treatment.KEPT)
        if directory and writable and not self.overlays(material.tree):
            return self.copied(source, self.programs.copy(material.tree.label)), False
        lower = self.slot()
        if directory:
            self.steps.append(CloneTree(lower, source, 1))
        elif material.treatment is Treatment.IMAGE:
            self.steps.append(Image(lower, source))
        elif material.treatment is Treatment.EROFS:
            self.steps.append(Erofs(lower, source))
        else:
            self.steps.append(Fuse(lower, source, self.programs.fuse))
        return lower, writable

    def copied(self, source: int, argv: tuple[bytes, ...]) -> int:
        slot = self.tmpfs(mode=0o755)
        self.steps.append(Extract(slot, source, argv))
        return slot

    def overlays(self, tree: Opened) -> bool:
        """Whether an overlay makes this directory writable.

        In a user namespace the upper must hold user.* attributes, and files of other users stay theirs. The setuid
        helper refuses one over anything but an image: it works with rights that its user has not.
        """
        if self.mode is not Mode.USERNS:
            return self.mode is Mode.ROOT
        foreign = tree.is_directory and tree.status is not None and tree.status.st_uid != self.host.uid
        return not foreign and (self.upper is not None or self.host.kernel >= TMPFS_USER_XATTR)

    def can_hide(self, tree: Opened) -> bool:
        """Whether an overlay can mark what it hides: else who removes a directory in it gets EIO."""
        marks = self.upper is not None or self.is_saved(tree) or self.host.kernel >= TMPFS_USER_XATTR
        return self.mode is not Mode.USERNS or marks

    def overlay(self, lower: int) -> int:
        lowers = (*self.beneath.get(lower, ()), lower)
        option = OverlayOption.USERXATTR if self.mode is Mode.USERNS else OverlayOption(0)
        if lower in self.static:
            self.steps.append(Stack(slot := self.slot(), lowers, option))
            return slot
        if lower in self.to_save:
            # Without redirects: a directory that was renamed is copied, and the upper says all there is to say.
            assert self.saving_slot is not None
            self.steps.append(Overlay(slot := self.slot(), lowers, self.saving_slot, option))
            self.saved[self.to_save[lower]] = slot
            return slot
        if self.upper is None:
            self.upper = self.tmpfs() if self.shared is None else self.shared
        # The kernel forbids redirect_dir together with userxattr: a rename of a lower directory is EXDEV there.
        if self.host.redirects and self.mode is not Mode.USERNS:
            option = OverlayOption.REDIRECT_DIR
        self.steps.append(Overlay(slot := self.slot(), lowers, self.upper, option))
        return slot

    def command(self, trees: list[Opened], cwd: bytes, covered: list[bytes]) -> None:
        spec = self.spec
        if spec.chdir is not None:
            self.steps.append(Chdir(_chdir_place(spec.chdir, trees, cwd)))
        elif cwd and any((cwd + b"/").startswith(path.rstrip(b"/") + b"/") for path in covered):
            # The inherited directory is beneath the mount; what the command must see is the one on top.
            self.steps.append(Chdir(Place(Base.ROOT, cwd)))
        if spec.run is not None:
            self.steps.append(Run(*find_in_trees(spec.run, trees, option="--run")))

    def before(self) -> None:
        """What of the host refines the run is opened before anything is covered."""
        if self.refiner is not None:
            self.refiner.clone()

    def after(self, *, private_dev: bool) -> list[bytes]:
        """What refines the run, and the host name; where something else is then."""
        if self.spec.hostname:
            self.steps.append(Hostname(self.spec.hostname))
        return [] if self.refiner is None else self.refiner.apply(private_dev=private_dev)

    def as_root(self, ids: tuple[int, int]) -> None:
        """Root of a user namespace that owns nothing: no mount, no network, no process but the command's own."""
        if self.subordinates is not None:
            self.steps.append(UserNamespace(*self.subordinates.inner(*ids), ()))
        elif self.spec.as_root:
            self.steps += [Unshare(CLONE_NEWUSER), IdMap(0, ids[0], 0, ids[1])]

    def last(self) -> None:
        if self.spec.limits is not None:
            from sandbox import limits

            if self.cgroup is not None:
                self.sources.append(self.cgroup)
            self.steps += limits.steps(self.spec.limits, None if self.cgroup is None else len(self.sources) - 1)
        if self.host.landlock:
            from sandbox import landlock

            self.steps += landlock.steps(self.spec, landlock.own_places(self), self.cwd, self.host.landlock)
        if self.spec.name is not None:
            self.steps.append(Name(self.spec.name))
        self.steps.append(Label(self.spec.isolation.encode(), self.images))
        self.steps.append(DeathSignal(signal.SIGKILL))


def find_in_trees(path: bytes, trees: list[Opened], *, option: str) -> tuple[Place, bytes]:
    """The place of the tree that `path` starts with, and the rest. Raises UsageError."""
    for tree in sorted(trees, key=lambda t: -len(t.name)):
        if path.startswith(tree.name + b"/") and path[len(tree.name) + 1 :].strip(b"/"):
            return mounted_name(tree), path[len(tree.name) + 1 :]
    raise UsageError(
        f"{option}: {printable(path)}: its first component names no mounted tree",
        hint=f"NAME/PATH, where NAME is one of: {names_of(trees)}",
    )


def names_of(trees: list[Opened]) -> str:
    return ", ".join(printable(tree.name) for tree in trees) or "none"


def _chdir_place(path: bytes, trees: list[Opened], cwd: bytes) -> Place:
    """A directory of a mounted tree (NAME or NAME/PATH), else an ordinary path."""
    if not path.startswith((b"/", b"./", b"../")):
        first, _, rest = path.partition(b"/")
        for tree in trees:
            if tree.name == first:
                place = mounted_name(tree)
                parts = [part for part in rest.split(b"/") if part not in (b"", b".")]
                if b".." in parts:
                    raise UsageError(
                        f"--chdir: {printable(path)}: '..' is not allowed inside a tree", hint="write it out"
                    )
                return place.replace(path=b"/".join([place.path, *parts]))
    if not cwd and not path.startswith(b"/"):
        raise UsageError(f"--chdir: {printable(path)}: the working directory was deleted", hint="give an absolute path")
    return Place(Base.ROOT, os.path.join(cwd, path))
