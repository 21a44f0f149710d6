"""A filter in fewer instructions answers as the one that it was made of."""

import itertools
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sandbox import auditing, bpf, filter_ranges, seccomp
from sandbox.filter_ranges import compacted

_FOREIGN = 0x40000003
_ARGUMENTS = (0, 1, 2, 10, 16, 0x10, 0x20008, 0x20000, 0x10000000, 0x7E020080, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1)
_CALL = struct.Struct("=IIQ6Q")
_NATIVE = int.from_bytes(auditing.call("execve")[4:8], "little")


_HEAD = (bpf.packed(0x20, 0, 0, 4), bpf.packed(0x15, 1, 0, _NATIVE), bpf.packed(0x06, 0, 0, 0))
_NUMBER = bpf.packed(0x20, 0, 0, 0)


@pytest.fixture(scope="module")
def rules():
    """As libseccomp has them and as a launch has them; the default's, without the exceptions before them."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_ranges, "compacted", lambda words: made.append(words) or words)
        seccomp.compile_filter((b"mount",))
    return made[0], compacted(made[0])


def test_the_default_filter_is_shorter(rules):
    before, after = rules
    assert len(after) < len(before) / 2


def test_every_call_is_answered_alike(rules):
    before, after = rules
    numbers = [*range(600), *((1 << bit) + more for bit in range(10, 32) for more in (-1, 0, 1, 59))]
    for machine, number, argument in itertools.product((_NATIVE, _FOREIGN), numbers, _ARGUMENTS):
        call = _CALL.pack(number, machine, 0, *[argument] * 6)
        assert auditing.judge(before, call) == auditing.judge(after, call), (hex(machine), number, hex(argument))


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.sampled_from([0x15, 0x25, 0x35]), st.integers(1, 3)), max_size=40)
)
def test_any_list_of_numbers(comparisons):
    words = [_HEAD[0], bpf.packed(0x15, 0, 1 + 2 * len(comparisons), _NATIVE), _NUMBER]
    for number, compares, answer in comparisons:
        words += [bpf.packed(compares, 0, 1, number), bpf.packed(0x06, 0, 0, answer)]
    before = (*words, bpf.packed(0x06, 0, 0, 0x7FFF0000))
    after = compacted(before)
    assert len(after) <= len(before)
    numbers = {number for told, _, _ in comparisons for number in (told - 1, told, told + 1)} | {0, 0xFFFFFFFF}
    for number, machine in itertools.product(numbers, (_NATIVE, _FOREIGN)):
        call = _CALL.pack(number & 0xFFFFFFFF, machine, 0, *[0] * 6)
        assert auditing.judge(before, call) == auditing.judge(after, call)


@pytest.mark.parametrize(
    "words",
    [
        (bpf.packed(0x06, 0, 0, 0x7FFF0000),),
        # Another architecture goes on, and this one ends.
        (_HEAD[0], bpf.packed(0x15, 4, 0, _NATIVE), _NUMBER, *[bpf.packed(0x15, 0, 1, 1), _HEAD[2]] * 3),
        # The number is changed before it is compared.
        (
            _HEAD[0],
            bpf.packed(0x15, 0, 3, _NATIVE),
            _NUMBER,
            bpf.packed(0x54, 0, 0, 1),
            *[bpf.packed(0x15, 0, 1, 1), _HEAD[2]] * 2,
        ),
    ],
)
def test_what_libseccomp_does_not_write_stays_as_it_is(words):
    assert compacted(words) == words
