"""The encoding of plans: what goes in comes out, and nothing hostile gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import plan
from sandbox.codec import PlanError, decode, encode
from sandbox.plan import (
    Attach,
    Base,
    Mode,
    Overlay,
    Place,
    Plan,
    PlanFlag,
    Source,
    SourceKind,
    Tmpfs,
    UnsetEnv,
)

HOME = Source(SourceKind.DIRECTORY, b"/home", 1, 2)
_bytes = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"\xff"))
_component = _bytes.map(lambda raw: raw.replace(b"/", b"\n")).filter(lambda raw: raw not in (b"", b".", b".."))
_absolute = _bytes.map(lambda raw: b"/" + raw)
_places = st.one_of(
    st.builds(Place, st.just(Base.ROOT), _absolute, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.builds(Place, st.just(Base.PROCDIR), st.lists(_component, max_size=3).map(b"/".join)),
)
_sources = st.builds(
    Source, st.sampled_from([SourceKind.FILE, SourceKind.DIRECTORY]), _absolute, *[st.integers(0, 2**64 - 1)] * 5
)
_FIELDS = {
    plan.U8: st.integers(0, 1),
    plan.U32: st.integers(0, 2**32 - 1),
    plan.U64: st.integers(0, 2**64 - 1),
    plan.Path: _absolute,
    plan.String: _component.map(lambda raw: raw.replace(b"=", b"_")),
    plan.Strings: st.lists(_absolute, min_size=1, max_size=4).map(tuple),
    plan.Place: _places,
    plan.Slots: st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
    plan.Words: st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3).map(tuple),
}


def _steps(draw):
    """Steps that respect slots and sources; every kind occurs."""
    steps, slots = [], []
    for cls in draw(st.lists(st.sampled_from(sorted(plan.OPCODES.values(), key=str)), max_size=12)):
        values = {}
        for name, kind in cls.__annotations__.items():
            if name in ("slot", "overlay_slot") and cls not in (plan.Extract, Attach, plan.Idmap):
                slots.append(len(slots))
                values[name] = slots[-1]
            elif name in ("slot", "upper"):
                values[name] = draw(st.sampled_from(slots)) if slots else None
            elif name == "lowers":
                values[name] = tuple(draw(st.lists(st.sampled_from(slots), min_size=1, max_size=3))) if slots else None
            elif name == "source":
                values[name] = 0
            elif name in ("attrs", "options", "kind"):
                values[name] = draw(st.integers(1, 2))
            else:
                values[name] = draw(_FIELDS[kind])
        if None not in values.values() and not (
            cls is Overlay and values["slot"] in (*values["lowers"], values["upper"])
        ):
            steps.append(cls(**values))
    return tuple(steps)


@st.composite
def plans(draw):
    sources = (draw(_sources), *draw(st.lists(_sources, max_size=3)))
    flags = PlanFlag(draw(st.integers(0, int(sum(PlanFlag)))))
    ids = st.integers(0, 2**32 - 1)
    return Plan(draw(st.sampled_from(Mode)), flags, draw(ids), draw(ids), HOME, sources, _steps(draw))


def _encode_or_none(value):
    try:
        return encode(value)
    except PlanError:
        return None


@given(plans())
def test_round_trip(value):
    data = _encode_or_none(value)
    if data is not None:
        assert decode(data) == value


def test_the_property_above_is_not_empty():
    step = Tmpfs(0, 1, 0, 0o700)
    value = Plan(Mode.ROOT, PlanFlag(0), 0, 0, HOME, (), (step, Attach(0, Place(Base.PROCDIR, b"a/\xff\n"), 3)))
    assert decode(encode(value)) == value


@given(plans(), st.data())
def test_a_shorter_plan_is_refused(value, data):
    encoded = _encode_or_none(value)
    if encoded is not None:
        cut = data.draw(st.integers(0, len(encoded) - 1))
        with pytest.raises(PlanError):
            decode(encoded[:cut])


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    with pytest.raises(PlanError):
        decode(noise)


@given(plans(), st.data())
def test_a_changed_byte_is_refused_or_another_plan(value, data):
    encoded = _encode_or_none(value)
    if encoded is None:
        return
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + bytes([encoded[at] ^ data.draw(st.integers(1, 255))]) + encoded[at + 1 :]
    try:
        other = decode(changed)
    except PlanError:
        return
    assert encode(other, changed[8]) == changed


def _plan(*steps, sources=()):
    return Plan(Mode.ROOT, PlanFlag(0), 0, 0, HOME, sources, steps)


@pytest.mark.parametrize(
    "bad",
    [
        _plan(Attach(0, Place(Base.PROCDIR, b""), 0)),
        _plan(Tmpfs(0, 1, 0, 0), Tmpfs(0, 1, 0, 0)),
        _plan(Tmpfs(0, 1, 0, 0), Overlay(1, (), 0, 0)),
        _plan(Tmpfs(0, 1, 0, 0), Attach(0, Place(Base.PROCDIR, b"../x"), 0)),
        _plan(Tmpfs(0, 1, 0, 0), Attach(0, Place(Base.PROCDIR, b"a//x"), 0)),
        _plan(Tmpfs(0, 1, 0, 0), Attach(0, Place(Base.ROOT, b"x"), 0)),
        _plan(Tmpfs(0, 1, 0, 0), Attach(0, Place(Base.ROOT, b"/x"), 1 << 9)),
        _plan(plan.Image(0, 0)),
        _plan(plan.SetPropagation(9)),
        _plan(UnsetEnv(b"A=B")),
        _plan(UnsetEnv(b"")),
        _plan(plan.Tree(0, 0, 2), sources=(HOME,)),
        _plan(plan.Fuse(0, 0, b"squashfuse"), sources=(HOME,)),
        _plan(plan.Extract(0, 0, (b"/bin/cp",)), sources=(HOME,)),
        _plan(sources=(Source(SourceKind.FILE, b"relative"),)),
        _plan(sources=(Source(SourceKind.MEMORY, b"/named"),)),
        _plan(sources=(Source(SourceKind.FILE, b"/" + b"x" * 5000),)),
        _plan(*[UnsetEnv(b"A")] * 5000),
    ],
)
def test_what_the_page_calls_invalid_is_refused(bad):
    with pytest.raises(PlanError):
        encode(bad)


def test_equal_fields_of_different_steps_are_different():
    assert plan.UnsetEnv(b"x") != plan.Run(Place(Base.ROOT, b"/"), b"x")
    assert plan.Guard() != plan.NoNewPrivs()
