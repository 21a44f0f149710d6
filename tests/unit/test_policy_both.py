"""The helper's strict parser of policies: what it accepts, any TOML parser accepts with the same values."""

import random
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.policy import template
from tests.support import echo

MUTANTS = 10_000

_key = st.sampled_from(["images", "groups", "store", "limits", "image_bytes", "a", "_"])
_text = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f'"{text}"')
_number = st.one_of(
    st.integers(0, 2**63).map(str), st.sampled_from(["00", "01", "+1", "1_0", "0x1", "1e3", "1.0", "-1"])
)
_item = st.one_of(_text, _number, st.sampled_from(["true", "false", "truex", "''", '"\\t"', "[]"]))
_list = st.builds(
    lambda items, comma, end: f"[{comma.join(items)}{end}]",
    st.lists(st.one_of(_item, _text), max_size=3) | st.lists(_number, max_size=3),
    st.sampled_from([",", ", ", " ,\t", " "]),
    st.sampled_from(["", ",", " , ", ",,"]),
)
_space = st.sampled_from(["", " ", "\t", "  "])
_line = st.one_of(
    st.builds("{}{}={}{}{}".format, _space, _key, _space, st.one_of(_item, _list), _space),
    _key.map("[{}]".format),
    st.sampled_from(["", "#", "# \u00fc", " # x\t", "[a.b]", "[[a]]", "a.b = 1", '"a" = 1', "\r", "#\x7f"]),
)
_policies = st.builds(
    lambda end, lines: end.join(lines).encode(), st.sampled_from(["\n", "\r\n"]), st.lists(_line, max_size=6)
)


def _worded(value):
    match value:
        case bool():
            return f"Truth({str(value).lower()})"
        case int():
            return f"Number({value})"
        case str():
            return f"Text({list(value.encode())})"
        case [str(), *_]:
            return f"Texts({[list(item.encode()) for item in value]})"
        case _:
            return f"Numbers({value})"


def _words(text):
    """What tomllib reads, a line for each key; raises what tomllib does."""
    lines = []
    for key, value in tomllib.loads(text.decode()).items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        lines += [f"{name} = {_worded(item)}\n" for name, item in inner.items()]
    return sorted(lines)


def _accepted(texts):
    """How many of the texts the helper takes, having compared those with tomllib."""
    count = 0
    for text, answer in zip(texts, echo.ask(texts, ["--policy"]), strict=True):
        if answer.accepted:
            assert _words(text) == sorted(answer.words.splitlines(keepends=True)), text
            count += 1
    return count


@settings(max_examples=200, deadline=None)
@given(st.lists(_policies, min_size=1, max_size=20))
def test_of_arbitrary_policies(texts):
    _accepted(texts)


@pytest.mark.parametrize("number", range(echo.ROUNDS))
def test_of_mutants_of_policies(number):
    rng = random.Random(number)
    seeds = [path.read_bytes() for path in sorted((echo.CRATE / "fuzz/corpus/policy").iterdir())]
    seeds.append(template(groups=[7], uid=8, gid=9).encode())
    mutants = [echo.changed(rng, rng.choice(seeds)) for _ in range(MUTANTS)]
    accepted = _accepted([*seeds, *mutants])
    assert accepted > MUTANTS // 50, "mutants that are nearly all refused show nothing"
    print(f"{len(seeds) + MUTANTS} policies, {accepted} of them accepted")
