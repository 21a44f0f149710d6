"""--save and --save-full: what a command changed in a dynamic tree becomes an image when the command has succeeded.

The overlay's upper directory is then in a private directory of the store, not on a tmpfs: it outlives the run's mount
namespace, and whoever packs it is the process that launched, with the user's rights and nobody else left alive in it.
A crash leaves a draft of the store, which the reaper removes like any other.

In setuid mode nobody has a descriptor of an upper directory: what its user changed there the overlay would do with
rights that he has not. The helper hands out the tree itself instead, as the command sees it and after it has dropped
every right. It outlives the run by its descriptor, and is compared with the layers.
"""

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from sandbox import fsops, sources
from sandbox.engine import Result
from sandbox.errors import SandboxError, SourceError, printable, reason, remedy, warn
from sandbox.home import Home
from sandbox.images import names, store
from sandbox.images.store import Store
from sandbox.plan import Plan
from sandbox.plan_types import Mode, Source
from sandbox.record import Record
from sandbox.spec import Save, Spec, TreeKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.sources import Opened
    from sandbox.treatments import Material

# What an overlay marks a directory with that hides all beneath it: overlayfs.rst, "userxattr".
_OPAQUE = {Mode.ROOT: "trusted.overlay.opaque", Mode.USERNS: "user.overlay.opaque"}


class Draft(Record):
    """The private directory that uppers are made in, open, and as a source of the plan."""

    fd: int
    source: Source


class HandedOut:
    """Where the setuid helper hands out trees, by slot: sockets, of which it gets the `given` ends.

    All of it is closed when `stack` ends.
    """

    def __init__(self, slots: "Iterable[int]", stack: contextlib.ExitStack) -> None:
        self.given: dict[int, int] = {}
        self._kept: dict[int, socket.socket] = {}
        self._trees: dict[int, int] = {}
        self._stack = stack
        for slot in slots:
            self._kept[slot], theirs = (stack.enter_context(end) for end in socket.socketpair())
            self._kept[slot].setblocking(False)
            self.given[slot] = theirs.fileno()

    def tree(self, slot: int) -> int:
        """The tree of the slot, once its run has ended. Raises SandboxError."""
        if slot not in self._trees:
            fds: list[int] = []
            with contextlib.suppress(BlockingIOError):
                fds = socket.recv_fds(self._kept[slot], 1, 1)[1]
            if not fds:
                raise SandboxError("the setuid helper handed out no tree", hint="as root: sandbox setuid install")
            self._trees[slot] = self._stack.enter_context(fsops.closing(fds[0]))
        return self._trees[slot]


def check_names(spec: Spec) -> None:
    """Raises UsageError for names that no image can have."""
    for save in spec.saves:
        names.check_name(save.image)


def draft(where: Home, stack: contextlib.ExitStack) -> Draft:
    """A new one, removed when `stack` ends. Raises SandboxError."""
    images = stack.enter_context(Store(where.fd))
    name = fsops.temporary_name()
    try:
        stack.callback(fsops.remove_tree, images.cache, name)
        fd = stack.enter_context(fsops.closing(fsops.make_new_dir(images.cache, name)))
    except OSError as error:
        raise SandboxError(
            f"--save: cannot make a directory in the sandbox home: {reason(error)}", hint=remedy(error)
        ) from None
    store.hold(fd, shared=False)
    return Draft(fd, sources.describe(os.path.join(where.path, b"cache", name), os.fstat(fd)))


def finish(
    spec: Spec,
    plan: Plan,
    result: Result,
    where: Home,
    made: Draft | HandedOut,
    saved: dict[bytes, int],
    materials: "list[Material]",
) -> None:
    """Pack and name what is to be saved: all of it, or on failure nothing is named. Raises SandboxError."""
    if result.exit_code or result.signal or result.timed_out:
        warn(f"the command failed: {', '.join('@' + printable(s.image) for s in spec.saves)} is not saved")
        return
    by_name = {material.tree.name: material for material in materials}
    with Store(where.fd) as images, contextlib.ExitStack() as held:
        done = []
        for save in spec.saves:
            image = _pack(images, save, plan, made, saved[save.tree], by_name[save.tree], spec.max_unpacked)
            # Held until it has its name: the reaper takes what nobody uses.
            if (fd := images.open_image(image, "@" + printable(save.image))) is not None:
                held.callback(os.close, fd)
            done.append((save.image, image))
        for name, image in done:
            names.tag(images, name, image)


def _pack(
    images: Store, save: Save, plan: Plan, made: Draft | HandedOut, slot: int, material: "Material", limit: int
) -> bytes:
    from sandbox.images import convert

    label = f"the changes of {printable(save.tree)}"
    beneath = (layer for layer in (material, *material.above) if layer.tree.kind is not TreeKind.EMPTY)
    layers = [layer.tree.fd if layer.fd is None else layer.fd for layer in beneath]
    try:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(fsops.Draft(images.cache))
            store.hold(out.fd, shared=False)
            image = convert.Output(out.fd, label, limit, plan.uid, plan.gid)
            if isinstance(made, HandedOut):
                convert.build_from_tree(image, layers, made.tree(slot), flat=save.full)
            else:
                upper = stack.enter_context(fsops.closing(fsops.open_path(made.fd, b"%d/upper" % slot)))
                convert.build_from_layers(image, layers, upper, flat=save.full, opaque=_OPAQUE[plan.mode])
            base = "" if save.full else " ".join(_digest(images, fd, material.tree.label) for fd in layers)
            return images.publish(out, "saved: " + material.tree.label, base=base)
    except OSError as error:
        raise SandboxError(f"cannot save @{printable(save.image)}: {reason(error)}", hint=remedy(error)) from None
    except SandboxError as error:
        raise SourceError(f"cannot save @{printable(save.image)}: {error.message}", hint=error.hint) from None


def _digest(images: Store, fd: int, label: str) -> str:
    """What a layer is known by; a directory by nothing, and an image as the store has it."""
    import stat

    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return "-"
    return images.digest_of(fd, label).decode()


def check_bases(where: Home, layers: "list[Opened]") -> None:
    """A warning for each layer that was saved on others than it is stacked on now."""
    with Store(where.fd) as images:
        beneath: list[str] = []
        for layer in layers:
            known = None if layer.is_directory else images.known_digest(layer.fd)
            base = images.about(known).base if known else ""
            digest = known.decode() if known else "-"
            if base and base.split() != beneath:
                warn(f"the layer sha256:{digest[:12]} was saved on other images than it is stacked on here")
            beneath.append(digest)
