"""Arbitrary valid plans, as a hypothesis strategy built from the fields of the steps."""

from hypothesis import strategies as st

from sandbox import level_steps, plan, plan_types
from sandbox.plan import Plan
from sandbox.plan_check import AFTER_PIVOT, MAX_HOSTNAME
from sandbox.plan_types import Attr, Base, Mode, OverlayOption, Place, PlanFlag, Resource, Source, SourceKind
from sandbox.versions import SINCE

HOME = Source(SourceKind.DIRECTORY, b"/home", 1, 2)
_U32, _U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
_bytes = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"\xff"))
_component = _bytes.map(lambda raw: raw.replace(b"/", b"\n")).filter(lambda raw: raw not in (b"", b".", b".."))
_absolute = _bytes.map(lambda raw: b"/" + raw)
_name = _component.map(lambda raw: raw.replace(b"=", b"_"))
_places = st.one_of(
    st.builds(Place, st.just(Base.ROOT), _absolute, _U64, _U64),
    st.builds(Place, st.just(Base.PROCDIR), st.lists(_component, max_size=3).map(b"/".join), _U64, _U64),
)
_sources = st.one_of(
    st.builds(Source, st.sampled_from([SourceKind.FILE, SourceKind.DIRECTORY]), _absolute, *[_U64] * 5),
    st.builds(Source, st.just(SourceKind.MEMORY), st.just(b""), *[_U64] * 5),
)
_KINDS = {
    plan_types.U32: _U32,
    plan_types.U64: _U64,
    plan_types.Path: _absolute,
    plan_types.String: _name,
    plan_types.Strings: st.builds(lambda program, more: (program, *more), _absolute, st.lists(_bytes, max_size=3)),
    plan_types.Place: _places,
    plan_types.Slots: st.lists(_U32, max_size=3).map(tuple),
    plan_types.Words: st.lists(_U64, min_size=1, max_size=3).map(tuple),
}
_ids = st.integers(0, 2**31 - 1)
_maps = st.lists(st.tuples(_ids, _ids, st.integers(1, 2**31)), min_size=1, max_size=3).map(lambda r: sum(r, ()))
_networks = st.builds(lambda address, prefix: address << 8 | prefix, _U32, st.integers(0, 32))
# What the kind of the field does not say.
_FIELDS = {
    **{(cls, name): _maps for cls in (level_steps.UserNamespace, level_steps.Shift) for name in ("uids", "gids")},
    (level_steps.UserNamespace, "programs"): st.just(()) | st.tuples(_absolute, _absolute),
    (plan.SetPropagation, "kind"): st.sampled_from([int(kind) for kind in plan_types.Propagation]),
    (plan.Tree, "recursive"): st.integers(0, 1),
    (level_steps.Init, "as_pid_1"): st.integers(0, 1),
    (level_steps.Nice, "value"): st.integers(0, 39),
    (level_steps.Limit, "resource"): st.sampled_from([int(resource) for resource in Resource]),
    (plan.Attach, "attrs"): st.integers(0, int(sum(Attr))),
    (level_steps.NewRoot, "attrs"): st.integers(0, int(sum(Attr))),
    (level_steps.PivotRoot, "read_only"): st.integers(0, 1),
    (level_steps.LockTree, "attrs"): st.integers(0, int(sum(Attr))),
    (level_steps.Protect, "attrs"): st.integers(0, int(sum(Attr))),
    (plan.Overlay, "options"): st.integers(0, int(sum(OverlayOption))),
    (plan.Stack, "options"): st.integers(0, int(OverlayOption.USERXATTR)),
    (level_steps.Allow, "access"): st.integers(1, 2**64 - 1),
    (level_steps.Allow, "optional"): st.integers(0, 1),
    (level_steps.Bind, "place"): st.builds(Place, st.just(Base.ROOT), _absolute, _U64, _U64),
    (level_steps.Node, "path"): st.lists(_component, min_size=1, max_size=3).map(b"/".join),
    (level_steps.Symlink, "target"): _absolute,
    (plan.Run, "path"): _bytes,
    (level_steps.Name, "name"): st.from_regex(rb"[A-Za-z][A-Za-z0-9._-]{0,62}", fullmatch=True),
    (level_steps.Network, "address"): _networks,
    (level_steps.Network, "closed"): st.lists(_networks, max_size=3).map(tuple),
    (level_steps.Hostname, "name"): st.binary(min_size=1, max_size=MAX_HOSTNAME).map(
        lambda raw: raw.replace(b"\0", b".")
    ),
}
_ONCE = (
    level_steps.Timeout,
    level_steps.Cgroup,
    level_steps.Landlock,
    level_steps.Network,
    level_steps.Name,
    level_steps.Label,
    level_steps.NewRoot,
)
_USES = (
    plan.Extract,
    plan.Attach,
    level_steps.Idmap,
    level_steps.Shift,
    level_steps.NewRoot,
    level_steps.CountChanges,
    level_steps.Node,
)
_NEWER = tuple(since.what for since in SINCE if isinstance(since.what, (type, Mode)))
_CLASSES = sorted(plan.OPCODES.values(), key=str)


def _step(draw, cls, sources, made, whole):
    """A step of this kind after those that made the slots in `made`; its own are added. `whole` are those of tmpfs."""
    values, makes = {}, []
    for name, kind in cls.__annotations__.items():
        if name == "overlay_slot" or (name == "slot" and cls not in _USES):
            values[name] = draw(_U32.filter(lambda slot: slot not in made and slot not in makes))
            makes.append(values[name])
        elif name == "of":
            values[name] = draw(st.sampled_from(whole))
        elif name in ("slot", "upper"):
            values[name] = draw(st.sampled_from(made))
        elif name == "lowers":
            fewest = 2 if cls is plan.Stack else 1
            values[name] = tuple(draw(st.lists(st.sampled_from(made), min_size=fewest, max_size=3)))
        elif name == "source":
            # The last one was handed over.
            values[name] = sources - 1 if cls is level_steps.Network else draw(st.integers(0, sources - 1))
        else:
            values[name] = draw(_FIELDS[cls, name] if (cls, name) in _FIELDS else _KINDS[kind])
    if cls is level_steps.Limit:
        values["soft"], values["hard"] = sorted((values["soft"], values["hard"]))
    made += makes
    return cls(**values)


def _steps(draw, classes, sources):
    steps, made = [], []
    for cls in draw(st.lists(st.sampled_from(classes), max_size=12)):
        whole = [step.slot for step in steps if isinstance(step, plan.Tmpfs)]
        needs_slot = (cls in (*_USES, plan.Overlay, plan.Stack) and not made) or (cls is plan.Part and not whole)
        kinds = {type(step) for step in steps}
        pivoted = level_steps.PivotRoot in kinds
        misplaced = cls is level_steps.PivotRoot and (pivoted or level_steps.NewRoot not in kinds)
        misplaced = misplaced or (pivoted and cls not in AFTER_PIVOT) or (cls in _ONCE and cls in kinds)
        if not needs_slot and not misplaced:
            steps.append(_step(draw, cls, sources, made, whole))
    return tuple(steps)


@st.composite
def plans(draw, version=2):
    """A valid plan that `version` has all of; every kind of step occurs."""
    sources = (*draw(st.lists(_sources, max_size=3)), Source(SourceKind.MEMORY, b""))
    flags = PlanFlag(draw(st.integers(0, int(sum(PlanFlag)) if version > 1 else 1)))
    home = draw(st.builds(Source, st.just(SourceKind.DIRECTORY), _absolute, *[_U64] * 5))
    newer = () if version > 1 else _NEWER
    classes = [cls for cls in _CLASSES if cls not in newer]
    return Plan(
        draw(st.sampled_from([mode for mode in Mode if mode not in newer])),
        flags,
        draw(_U32),
        draw(_U32),
        home,
        sources,
        _steps(draw, classes, len(sources)),
    )
