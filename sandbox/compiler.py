"""Spec + Host -> Plan. The only place that decides what is done; engines only know how."""

import os
from typing import TYPE_CHECKING

from sandbox.builder import Builder, Programs, names_of
from sandbox.engine.syscalls import CLONE_NEWNET, CLONE_NEWUTS
from sandbox.errors import UsageError, printable
from sandbox.host import Host
from sandbox.images.formats import Kind
from sandbox.level_steps import Loopback
from sandbox.plan import NoNewPrivs, Plan
from sandbox.plan_types import Mode, PlanFlag, Source
from sandbox.record import Record
from sandbox.sources import Opened, absolute
from sandbox.spec import Spec, TreeKind
from sandbox.treatments import Material, Target

if TYPE_CHECKING:
    from sandbox import refine
    from sandbox.isolation import Surroundings
    from sandbox.network import Private
    from sandbox.subordinate import Subordinates


class Compiled(Record):
    """A plan, and the descriptors that go with it by source number."""

    plan: Plan
    fds: dict[int, int]
    saved: dict[bytes, int] = {}  # noqa: RUF012


def compile_plan(
    spec: Spec,
    host: Host,
    mode: Mode,
    home: Source,
    materials: list[Material],
    targets: dict[bytes, Target],
    *,
    scratch: Source | None,
    cgroup: Source | None,
    programs: Programs,
    cwd: bytes,
    where: "Surroundings | None" = None,
    saving: Source | None = None,
    private: "Private | None" = None,
    changes: "tuple[refine.Opened, ...]" = (),
    subordinates: "Subordinates | None" = None,
) -> Compiled:
    """The plan for one launch. Pure: everything it needs to know is in its arguments."""
    builder = Builder(spec, host, mode, programs)
    builder.cgroup, builder.cwd, builder.private = cgroup, cwd, private
    builder.images = _images(materials)
    trees = [material.tree for material in materials]
    inside = [tree for tree in trees if not tree.name.startswith(b"/")]
    kinds: set[TreeKind] = {TreeKind.DYNAMIC if tree.kind is TreeKind.EMPTY else tree.kind for tree in inside}
    policies = {policy.name: policy.deny for policy in spec.symlinks}
    for name in policies.keys() - {tree.name for tree in trees} - {b""}:
        raise UsageError(f"--symlinks: no tree is named '{printable(name)}'", hint=f"one of: {names_of(trees)}")
    _check_saves(spec, trees)
    builder.saving = saving
    if changes:
        from sandbox.refine import Refiner

        builder.refiner = Refiner(builder, changes)
    deny = {tree.name: policies.get(tree.name, policies.get(b"", False)) for tree in trees}
    if where is not None:
        from sandbox.isolation import level

        level(builder, where).compile(materials, targets, kinds, deny, cwd)
    elif mode is Mode.LANDLOCK:
        from sandbox import landlock

        landlock.compile_alone(builder, cwd)
    else:
        flags = CLONE_NEWUTS if spec.hostname else 0
        builder.subordinates = subordinates
        builder.namespaces(flags | (0 if spec.net in (None, "host") else CLONE_NEWNET))
        builder.before()
        if spec.net == "none":
            builder.steps.append(Loopback())
        builder.procdir(scratch, kinds)
        builder.resolve_names()
        for material in materials:
            name = material.tree.name
            builder.tree(material, targets.get(name), deny_symlinks=deny[name])
        covered = builder.after(private_dev=False)
        builder.command(trees, cwd, covered=[*covered, *(target.path for target in targets.values())])
        builder.as_root((host.uid, host.gid))
        if mode is Mode.USERNS or (mode is Mode.SETUID and not spec.allow_new_privs):
            builder.steps.append(NoNewPrivs())
        builder.last()
    flags = PlanFlag.LEAVE_RUNNING if spec.leave_running else PlanFlag(0)
    if mode is Mode.SETUID:
        flags |= PlanFlag.KEEP_IMAGES if spec.cache and materials else PlanFlag(0)
        flags |= PlanFlag.ALLOW_NEW_PRIVS if spec.allow_new_privs else PlanFlag(0)
    plan = Plan(mode, flags, host.uid, host.gid, home, tuple(builder.sources), tuple(builder.steps))
    return Compiled(plan, builder.fds, builder.saved)


def _images(materials: list[Material]) -> tuple[bytes, ...]:
    """NAME=SOURCE of every layer that has a source, for who looks at the run."""
    layers = [layer for material in materials for layer in material.tree.layers if layer.path]
    return tuple(layer.name + b"=" + os.path.normpath(absolute(layer.path)) for layer in layers)


def _check_saves(spec: Spec, trees: list[Opened]) -> None:
    for save in spec.saves:
        found = [tree for tree in trees if tree.name == save.tree and tree.kind is not TreeKind.STATIC]
        if not found:
            raise UsageError(
                f"--save: no dynamic tree is named '{printable(save.tree)}'",
                hint="--dynamic NAME:SRC --save NAME=IMAGE",
            )
        for layer in found[0].layers:
            if layer.format is Kind.EROFS:
                raise UsageError(
                    f"--save: {layer.label}: what changed on an erofs image cannot be told",
                    hint="use a squashfs image, an archive or a directory",
                )
