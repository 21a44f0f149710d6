"""The codecs of both engines: what one writes means the same to the other, and of hostile bytes they take the same."""

import enum
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import level_steps, plan, plan_types
from sandbox.codec import PlanError, decode, encode
from sandbox.versions import FIRST, LAST
from tests.support import echo
from tests.support.plans import plans

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = 20_000


# -- a plan in words, as Rust's derived Debug has it ----------------------------------------------------------

# The fields that are numbers here and have a type of their own there.
_TYPES = {
    (plan_types.Source, "kind"): plan_types.SourceKind,
    (plan_types.Place, "base"): plan_types.Base,
    (plan.SetPropagation, "kind"): plan_types.Propagation,
    (level_steps.Limit, "resource"): plan_types.Resource,
    (plan.Tree, "recursive"): bool,
    (level_steps.Init, "as_pid_1"): bool,
    (level_steps.Allow, "optional"): bool,
    (level_steps.PivotRoot, "read_only"): bool,
}


def words(value):
    match value:
        case bool():
            return str(value).lower()
        case enum.IntFlag():
            return str(int(value))
        case enum.IntEnum():
            return value.name.title().replace("_", "")
        case int():
            return str(value)
        case bytes():
            return str(list(value))
        case tuple():
            return f"[{', '.join(map(words, value))}]"
    name = type(value).__name__
    typed = (
        (field, _TYPES.get((type(value), field), lambda same: same)(getattr(value, field))) for field in value.fields
    )
    inner = ", ".join(f"{field}: {words(content)}" for field, content in typed)
    return f"{name} {{ {inner} }}" if inner else name


def answer(data):
    """What the Python codec makes of the bytes."""
    try:
        value = decode(data)
    except PlanError as error:
        return echo.Answer(False, b"", str(error))
    return echo.Answer(True, encode(value, data[8]), f"{data[8]} {words(value)}")


def disagreements(data, here, there):
    """What to say about bytes that the two codecs do not take the same way, or change; empty when they agree."""
    same = here == there and here.encoded == data if here.accepted else not there.accepted
    return [] if same else [f"{data.hex()}\n  python {here}\n  native {there}"]


# -- properties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(FIRST, LAST + 1))
def test_plans_written_in_python_mean_the_same_in_rust(version):
    # An older version does not change any more: fewer do, and make soak draws many.
    @settings(max_examples=200 if version == LAST else 40 * echo.ROUNDS, deadline=None)
    @given(st.lists(plans(version), min_size=1, max_size=4))
    def check(values):
        encoded = [encode(value, version) for value in values]
        expected = [
            echo.Answer(True, data, f"{version} {words(value)}") for data, value in zip(encoded, values, strict=True)
        ]
        assert echo.ask(encoded) == expected

    check()


def test_plans_written_in_rust_mean_the_same_in_python():
    written = echo.ask(arguments=["--arbitrary", "1", "1000"])
    assert len(written) == 1000
    for one in written:
        assert answer(one.encoded) == one
    decoded = [decode(one.encoded) for one in written]
    assert {type(step) for value in decoded for step in value.steps} == set(plan.OPCODE_OF)
    assert {one.encoded[8] for one in written} == {FIRST, LAST}


# -- hostile bytes --------------------------------------------------------------------------------------------


def _head_and_steps(data):
    """The bytes up to the number of steps, and each step."""
    value = decode(data)
    at = len(encode(value.replace(steps=()), data[8])) - 4
    head, at, steps = data[:at], at + 4, []
    for _ in value.steps:
        (length,) = struct.unpack_from("<I", data, at + 2)
        steps.append(data[at : at + 6 + length])
        at += 6 + length
    return head, steps


def _change_steps(rng, parts, others):
    """Among the steps, their number and lengths kept true, so that what is beyond the layout is reached."""
    head, steps = parts[0], list(parts[1])
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(steps) + 1)
        other = rng.choice(rng.choice(others)[1] or [b"\x12\0\0\0\0\0"])
        match rng.randrange(5):
            case 0:
                steps.insert(at, other)
            case 1:
                rng.shuffle(steps)
            case 2:
                del steps[at : at + 1]
            case 3:
                steps[at : at + 1] = [other]
            case _ if at < len(steps):
                body = echo.changed(rng, steps[at][6:])
                opcode = rng.choice([steps[at], other])[:2]
                steps[at] = opcode + struct.pack("<I", len(body)) + body
    if rng.random() < 0.2:
        head = head[:8] + struct.pack("<H", rng.randint(FIRST - 1, LAST + 1)) + head[10:]
    return head + struct.pack("<I", len(steps)) + b"".join(steps)


def _mutants(rng, seeds, parts, count):
    for _ in range(count):
        if rng.random() < 0.5:
            yield _change_steps(rng, rng.choice(parts), parts)
        else:
            data = rng.choice(seeds)
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                data = echo.changed(rng, data)
            yield data


@pytest.mark.parametrize("number", range(echo.ROUNDS))
def test_of_mutants_both_take_the_same(number):
    rng = random.Random(number)
    vectors = [path.read_bytes() for path in sorted((ROOT / "tests/vectors").glob("*.plan"))]
    vectors += [path.read_bytes() for path in sorted((echo.CRATE / "fuzz/corpus/plan").iterdir())]
    good = [one.encoded for one in echo.ask(arguments=["--arbitrary", str(number), "200"])]
    # The longest vectors say little, and cost most.
    seeds = [data for data in vectors if len(data) < 8192] + good
    parts = [_head_and_steps(data) for data in seeds if answer(data).accepted]
    mutants = [*vectors, *_mutants(rng, seeds, parts, MUTANTS)]
    accepted, found = 0, []
    for data, there in zip(mutants, echo.ask(mutants), strict=True):
        here = answer(data)
        accepted += here.accepted
        found += disagreements(data, here, there)
    assert not found, f"{len(found)} disagreements, as\n" + "\n".join(sorted(found, key=len)[:5])
    assert MUTANTS // 10 < accepted < MUTANTS * 9 // 10, "mutants that are nearly all alike show nothing"
    print(f"{len(mutants)} mutants, {accepted} of them accepted by both")
