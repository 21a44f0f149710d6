"""The encoding of plans: what goes in comes out, and nothing hostile gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import plan
from sandbox.codec import PlanError, decode, encode
from sandbox.plan import Attach, Overlay, Plan, Tmpfs, UnsetEnv
from sandbox.plan_types import Base, Mode, Place, PlanFlag, Source, SourceKind
from tests.support.plans import HOME, plans


@given(plans())
def test_round_trip(value):
    assert decode(encode(value)) == value


def test_the_property_above_is_not_empty():
    step = Tmpfs(0, 1, 0, 0o700)
    value = Plan(Mode.ROOT, PlanFlag(0), 0, 0, HOME, (), (step, Attach(0, Place(Base.PROCDIR, b"a/\xff\n"), 3)))
    assert decode(encode(value)) == value


@given(plans(), st.data())
def test_a_shorter_plan_is_refused(value, data):
    encoded = encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(PlanError):
        decode(encoded[:cut])


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    with pytest.raises(PlanError):
        decode(noise)


@given(plans(), st.data())
def test_a_changed_byte_is_refused_or_another_plan(value, data):
    encoded = encode(value)
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
