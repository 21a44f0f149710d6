"""What an isolating level needs to know of this host for one launch: looked at, and opened."""

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sandbox import fsops, isolation
from sandbox.errors import UsageError, printable, reason
from sandbox.home import Home
from sandbox.isolation import Surroundings
from sandbox.level_steps import Protect
from sandbox.materials import Maker, Say
from sandbox.plan_types import Mode
from sandbox.sources import Opened
from sandbox.spec import Spec, TreeKind, guards_workspace

if TYPE_CHECKING:
    from sandbox.subordinate import Subordinates


def surroundings(
    spec: Spec,
    mode: Mode,
    maker: Maker,
    trees: tuple[Opened, ...],
    roots: list[Opened],
    environ: Mapping[bytes, bytes],
    cwd: bytes,
    stack: contextlib.ExitStack,
    say: Say,
) -> Surroundings:
    """What an isolating level needs to know of this host, with the working directory as its workspace.

    `trees` are all that the run mounts, `roots` what its root is. Raises UsageError.
    """
    if not cwd and spec.chdir is None:
        # The root directory, which is what is left to work in, is what nobody asked for.
        raise UsageError(
            "the working directory was deleted, which a job works in", hint="start it in another one, or give --chdir"
        )
    where = maker.home
    found = isolation.look(environ, spec, mode, where.path).replace(filter=_filter(spec, where))
    if spec.as_root:
        found = found.replace(subordinates=subordinates(spec, mode, say))
    if isolation.can_be_workspace(cwd, found):
        found = _with_workspace(found, spec, mode, maker, cwd, stack)
    found = _without_idmaps(found, maker, (*trees, *roots), say)
    for item in roots:
        found = found.replace(image=maker.material(item))
    return found


def _with_workspace(
    found: Surroundings, spec: Spec, mode: Mode, maker: Maker, cwd: bytes, stack: contextlib.ExitStack
) -> Surroundings:
    """The same with the working directory, and what of it is protected."""
    fd = stack.enter_context(fsops.closing(_open_workspace(cwd)))
    kind = TreeKind.DYNAMIC if spec.workspace == "overlay" else TreeKind.STATIC
    tree = Opened(kind, cwd, cwd, fd, os.fstat(fd), None)
    protected: tuple[Protect, ...] = ()
    if spec.workspace == "rw":
        from sandbox import guarding

        protected = guarding.protect(fd, cwd, stack) if guards_workspace(spec) else ()
        if mode is Mode.ROOT:
            protected += guarding.protect_programs(fd, cwd)
    return found.replace(workspace=maker.workspace(tree), protected=protected)


def _open_workspace(path: bytes) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"cannot read the working directory {printable(path)}, which a job works in: {reason(error)}",
            hint="start it in a directory that you may read",
        ) from None


def _without_idmaps(where: Surroundings, maker: Maker, trees: tuple[Opened, ...], say: Say) -> Surroundings:
    """Where an image has to be unpacked for a job of root's, which gives its files one owner."""
    if where.subordinates is None or not isolation.unpacks_images(maker.mode, maker.host):
        return where
    layers = [layer for tree in trees for layer in tree.layers]
    if not any(not layer.is_directory or maker.spec.cache or maker.needs_image(layer) for layer in layers):
        return where
    say("--as-root: one id inside, root's: an image cannot show more of them before Linux 6.2")
    return where.replace(subordinates=None)


def subordinates(spec: Spec, mode: Mode, say: Say) -> "Subordinates | None":
    """What there is beside the one id. What is saved is its user's, so nobody else writes it."""
    from sandbox import subordinate

    found = "what --save keeps is of one owner" if spec.saves else subordinate.look(mode)
    if isinstance(found, str):
        say(f"--as-root: one id inside, root's: {found}")
        return None
    return found


def _filter(spec: Spec, where: Home) -> tuple[int, ...]:
    from sandbox import seccomp, setid

    if spec.seccomp == b"default":
        found = seccomp.kept_filter(where.fd, spec.allow_syscalls)
    else:
        found = () if spec.seccomp == b"none" else seccomp.read_filter(spec.seccomp)
    return setid.before(spec, where.fd, found) if setid.applies(spec) else found
