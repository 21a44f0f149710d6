"""From a Spec to a compiled launch: opens everything, asks the image services, compiles."""

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sandbox import builder, compiler, environment, fsops, home, host, sources
from sandbox.builder import Programs
from sandbox.compiler import Compiled
from sandbox.engine import Launch
from sandbox.errors import HostError, UsageError, printable, reason, remedy, warn
from sandbox.home import Home
from sandbox.images import formats
from sandbox.materials import Maker, Say
from sandbox.plan_types import Mode, Source
from sandbox.record import Record
from sandbox.sources import Opened
from sandbox.spec import Spec, Tree, TreeKind, check_name, needs_attendant, validate
from sandbox.treatments import Material, Target

if TYPE_CHECKING:
    from sandbox import attending, network, refine, saving
    from sandbox.isolation import Surroundings
    from sandbox.stored import Keeper


class Prepared(Record):
    """A compiled launch; valid while the context that made it is open."""

    compiled: Compiled
    launch: Launch
    home: Home
    trees: list[Opened]
    materials: list[Material]
    changes: "saving.Draft | saving.HandedOut | None" = None
    surroundings: "Surroundings | None" = None
    # The same plan for other surroundings.
    recompile: "Callable[[Surroundings | None], Compiled] | None" = None
    wanted: "attending.Wanted | None" = None
    roots: list[Opened] = []  # noqa: RUF012


class Calling(Record):
    """What a program that starts a run adds to its spec: None is this process's own.

    `cwd` and `environ` are the command's, an absolute path and the variables that options then change; `account` is a
    descriptor for one more report; `keeper` stores the launch for the front; `verbose`: each step is told
    when it is done.
    """

    cwd: bytes | None = None
    environ: Mapping[bytes, bytes] | None = None
    account: int | None = None
    keeper: "Keeper | None" = None
    verbose: bool = False


def choose_mode(spec: Spec, machine: host.Host) -> Mode:
    """The mode of a run. Raises HostError when the one that is asked for cannot be had."""
    # What the helper refuses for its power, a user namespace may still do.
    helper = spec.engine != "python" and spec.scratch is None and not spec.as_root
    if helper and spec.net == "private" and spec.mode == "auto" and not machine.may_mount:
        from sandbox import network

        # With pasta alone a user namespace does, where there are any.
        helper = network.takes_frames(host.find_program(network.SLIRP)) or not host.may_map_ids()
    return host.choose_mode(spec.mode, machine, helper=helper)


def prepare(
    spec: Spec,
    environ: dict[bytes, bytes],
    stack: contextlib.ExitStack,
    *,
    say: Say,
    hint: Say,
    build: bool = True,
    calling: Calling = Calling(),  # noqa: B008 (frozen)
) -> Prepared:
    """Open everything and compile. Without `build` nothing is converted: the plan is for reading only."""
    validate(spec)
    _require_mounts(spec)
    machine, mode = _machine(spec, hint)
    # Bad input leaves nothing behind, a home neither: it is opened first only where sources are in it.
    where, opened, roots = _open_trees(spec, environ, stack, say)
    given = environ if calling.environ is None else calling.environ
    cwd = _working_directory() if calling.cwd is None else calling.cwd
    command_env = environment.build(spec, given)
    # In a root of its own nothing of the host is there to be mounted on.
    targets = {} if spec.isolation == "strict" else _targets(opened, spec)
    where = where or _home(environ, stack, say)
    maker = Maker(spec, machine, mode, where, stack, say=say, hint=hint, build=build)
    materials = [maker.material(item) for item in opened]
    surroundings = None
    if spec.isolation != "none":
        from sandbox import enclosing

        surroundings = enclosing.surroundings(spec, mode, maker, tuple(opened), roots, given, cwd, stack, say)
        command_env |= surroundings.variables(spec)
    wanted = _wanted(spec, cwd, where, stack)
    maker.show_hint()
    draft = _draft(spec, mode, where, stack)
    recompile = _compiler(spec, maker, materials, targets, surroundings, cwd, draft, stack, say=say, build=build)
    compiled = recompile(where=surroundings)
    if wanted is not None and surroundings is not None:
        # As the filter would decide by itself: the one in the plan asks.
        words = surroundings.filter if spec.audit else ()
        wanted = wanted.replace(words=words, limit=builder.tmpfs_size(spec, machine))
    launch = Launch(spec.command, command_env, compiled.fds, log_format=spec.log_format)
    if (handed := _handed_out(spec, draft, compiled, stack)) is not None:
        launch = launch.replace(trees=handed.given)
    return Prepared(
        compiled,
        launch,
        where,
        opened,
        materials,
        draft or handed,
        surroundings,
        lambda other: recompile(where=other),
        wanted,
        roots,
    )


def _machine(spec: Spec, hint: Say) -> tuple[host.Host, Mode]:
    """What this machine can do, and the mode of the run. Raises UsageError and HostError."""
    machine = host.probe()
    mode = choose_mode(spec, machine)
    if spec.allow_new_privs and mode is Mode.USERNS:
        raise UsageError(
            "--allow-new-privs: in a user namespace setuid programs gain nothing",
            hint="leave it out, or use --mode root or setuid",
        )
    return _more_facts(machine, spec, mode, hint), mode


def _compiler(
    spec: Spec,
    maker: Maker,
    materials: list[Material],
    targets: dict[bytes, Target],
    surroundings: "Surroundings | None",
    cwd: bytes,
    draft: "saving.Draft | None",
    stack: contextlib.ExitStack,
    *,
    say: Say,
    build: bool,
) -> Callable[..., Compiled]:
    """The compiler with all that it is to know but the surroundings, of which a run may have others of its own."""
    mode, as_root = maker.mode, None
    if spec.as_root and spec.isolation == "none" and mode is Mode.USERNS:
        from sandbox import enclosing

        # Root, who is not isolated, has all ids as it is.
        as_root = enclosing.subordinates(spec, mode, say)
    return functools.partial(
        compiler.compile_plan,
        spec,
        maker.host,
        mode,
        maker.home.source(),
        materials,
        targets,
        scratch=_scratch(spec),
        cgroup=_cgroup(spec, build=build),
        programs=Programs(maker.fuse_program, maker.extract_argv, maker.copy_argv),
        cwd=cwd,
        saving=None if draft is None else draft.source,
        private=_private(spec, mode, maker.home, stack, build=build),
        changes=_changes(spec, surroundings, targets, stack),
        subordinates=as_root,
    )


def _draft(spec: Spec, mode: Mode, where: Home, stack: contextlib.ExitStack) -> "saving.Draft | None":
    """Where what --save keeps is written, unless the setuid helper hands it out. Raises UsageError."""
    if not spec.saves:
        return None
    from sandbox import saving

    saving.check_names(spec)
    return saving.draft(where, stack) if mode is not Mode.SETUID else None


def _handed_out(
    spec: Spec, draft: "saving.Draft | None", compiled: Compiled, stack: contextlib.ExitStack
) -> "saving.HandedOut | None":
    """What takes the trees to be saved from the setuid helper."""
    if not spec.saves or draft is not None:
        return None
    from sandbox import saving

    return saving.HandedOut(compiled.saved.values(), stack)


def _open_trees(
    spec: Spec, environ: dict[bytes, bytes], stack: contextlib.ExitStack, say: Say
) -> tuple[Home | None, list[Opened], list[Opened]]:
    """The trees, and what the root is made of; the home, if any of it is there."""
    roots = [] if spec.root is None else [Tree(TreeKind.DYNAMIC, b"root:" + spec.root)]
    where = _home(environ, stack, say) if any(map(_names_image, (*spec.trees, *roots))) else None
    opened = [_open_tree(tree, where, stack) for tree in spec.trees]
    opened_roots = [_open_tree(tree, where, stack, option="--root") for tree in roots]
    sources.refuse_repeated(opened)
    return where, opened, opened_roots


def _wanted(spec: Spec, cwd: bytes, where: Home, stack: contextlib.ExitStack) -> "attending.Wanted | None":
    """What the run is attended for; a place for artefacts is looked at before anything is done. Raises UsageError."""
    if not needs_attendant(spec):
        return None
    from sandbox import attending, keeping, terminal

    if spec.tty:
        terminal.check()
    return attending.Wanted(tuple(keeping.open_destinations(spec, cwd, stack)), (), 0, 0, where)


def _require_mounts(spec: Spec) -> None:
    """Before anything is opened or made: what is absent would be filled, or looked for in vain."""
    for path in spec.require_mounts:
        from sandbox import guards

        guards.require_mounted(path)


def _home(environ: dict[bytes, bytes], stack: contextlib.ExitStack, say: Say) -> Home:
    return stack.enter_context(home.open_home(environ, say=say))


def _names_image(tree: Tree) -> bool:
    if tree.kind is TreeKind.EMPTY:
        return False
    return any(layer.startswith(b"@") for layer in sources.layers_of(sources.split(tree.text)[1]))


def _open_tree(tree: Tree, where: Home | None, stack: contextlib.ExitStack, *, option: str = "") -> Opened:
    """Every layer of a tree; open as long as `stack`. `option` is what named it, where the tree does not say.

    Raises SourceError or UsageError with the way out.
    """
    if tree.kind is TreeKind.EMPTY:
        return Opened(tree.kind, tree.text, b"", -1, None, None)
    name, path = sources.split(tree.text)
    layers: list[Opened] = []
    for layer in sources.layers_of(path):
        if layer.startswith(b"@"):
            assert where is not None
            item = _open_image(tree.kind, name, layer, where)
        else:
            named_by = option or f"--{tree.kind.value}"
            item = sources.open_path(tree.kind, name, layer, option=named_by, is_stacked=bool(layers))
        stack.enter_context(fsops.closing(item.fd))
        layers.append(item)
        name = item.name
    sources.refuse_twice((item.label, (item.status.st_dev, item.status.st_ino)) for item in layers if item.status)
    if len(layers) > 1 and where is not None:
        from sandbox import saving

        saving.check_bases(where, layers)
    return layers[0].replace(above=tuple(layers[1:]))


def _open_image(kind: TreeKind, name: bytes | None, reference: bytes, where: Home) -> Opened:
    """A layer that is @NAME or @sha256:PREFIX."""
    from sandbox.images import names
    from sandbox.images.store import IMAGE, Store

    with Store(where.fd) as images:
        found = names.open_reference(images, reference)
    path = os.path.join(where.path, b"cache", found.digest + IMAGE)
    name = check_name(name or found.name, option=f"--{kind.value}")
    return Opened(kind, name, path, found.fd, os.fstat(found.fd), formats.Kind.SQUASHFS)


def _working_directory() -> bytes:
    """Empty when it was deleted: a command may still run there, and only relative paths cannot be resolved."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def _more_facts(machine: host.Host, spec: Spec, mode: Mode, hint: Say) -> host.Host:
    """What only some runs need to know of this machine."""
    if mode is Mode.SETUID:
        from sandbox import setuid

        machine = machine.replace(redirects=not setuid.shows_any_image())
    if spec.allow_read or spec.allow_write or mode is Mode.LANDLOCK:
        from sandbox import landlock

        machine = machine.replace(landlock=landlock.probe())
        for remark in landlock.remarks(spec, machine.landlock):
            hint(remark)
    if mode is Mode.ROOT and spec.isolation != "none":
        machine = machine.replace(id_maps=host.may_map_ids())
    return machine


def _changes(
    spec: Spec, where: "Surroundings | None", targets: dict[bytes, Target], stack: contextlib.ExitStack
) -> "tuple[refine.Opened, ...]":
    if not spec.refinements:
        return ()
    from sandbox import refine

    own = [target.path for target in targets.values()]
    if where is not None and where.workspace is not None:
        own.append(where.workspace.tree.name)
    return refine.opened(spec, where, own, stack)


def _targets(opened: list[Opened], spec: Spec) -> dict[bytes, Target]:
    """The host's directories that trees with an absolute name cover, as they are now."""
    targets: dict[bytes, Target] = {}
    for tree in opened:
        if not tree.name.startswith(b"/"):
            continue
        # Inside an earlier mount only the run itself can see what is there.
        name = os.path.normpath(tree.name)
        outer = [other for other in targets if name.startswith(os.path.normpath(other) + b"/")]
        if outer:
            longest = max(outer, key=len)
            rest = name[len(os.path.normpath(longest)) :]
            targets[tree.name] = Target(targets[longest].path + rest, None)
        else:
            targets[tree.name] = _target(tree.name, mkdir=spec.mkdir)
    return targets


def _target(path: bytes, *, mkdir: bool) -> Target:
    """Resolved once, to a descriptor: what it is and where it is are of one and the same directory."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if mkdir and isinstance(error, FileNotFoundError):
            return Target(os.path.realpath(path), None)
        hints = {errno.ENOENT: "create the directory, or let --mkdir do it", errno.ENOTDIR: "name a directory"}
        hint = hints.get(error.errno or 0, remedy(error))
        raise UsageError(f"cannot mount on {printable(path)}: {reason(error)}", hint=hint) from None
    with fsops.closing(fd):
        return Target(os.readlink(b"/proc/self/fd/%d" % fd), os.fstat(fd))


def _private(
    spec: Spec, mode: Mode, where: Home, stack: contextlib.ExitStack, *, build: bool
) -> "network.Private | None":
    """A private network, with the process behind it. Reading the plan starts none."""
    if spec.net != "private":
        return None
    from sandbox import network

    found = network.look(mode, spec.isolation)
    if not build:
        return found
    started = network.start(found, where.run_path + b"/records")
    stack.enter_context(fsops.closing(started.socket))
    return started


def _scratch(spec: Spec) -> Source | None:
    if spec.scratch is None:
        return None
    try:
        fd = os.open(spec.scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"--scratch: cannot use {printable(spec.scratch)}: {reason(error)}",
            hint="tmpfs, or a directory that you may write to",
        ) from None
    with fsops.closing(fd):
        return sources.describe(os.readlink(b"/proc/self/fd/%d" % fd), os.fstat(fd))


def _cgroup(spec: Spec, *, build: bool) -> Source | None:
    """Where the run's cgroup goes, if a limit needs one. Only reading the plan asks systemd for nothing."""
    if spec.limits is None or not spec.limits.controllers:
        return None
    from sandbox import cgroups, limits

    try:
        path = cgroups.place(spec.limits.controllers, ask_systemd=build)
    except HostError as error:
        if not spec.limits.best_effort:
            options = ", ".join("--cpus" if name == "cpu" else f"--{name}" for name in sorted(spec.limits.controllers))
            raise HostError(f"{options}: {error.message}", hint=error.hint) from None
        warn(limits.compromise(spec.limits, error.message))
        return None
    return sources.describe(path, os.stat(path))
