"""Limits: what is typed, and the steps that become of it."""

import pytest

from sandbox.cli import run
from sandbox.errors import UsageError
from sandbox.limits import Limits, parse, parse_duration, steps
from sandbox.plan import Limit, Nice, Resource, Timeout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("1.5", 1.5), ("2", 2), ("1m0.5s", 60.5), ("10h", 36000), (" 3 ", 3)],
)
def test_durations(text, seconds):
    assert parse_duration(text, option="--timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-1", "1d", "m", "1.5m", "1s1m", "1e3", "inf", "nan", "1 0", "99999999h"]
)
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="--timeout"):
        parse_duration(text, option="--timeout")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nofile", "0"),
        ("nofile", "-1"),
        ("nofile", "many"),
        ("nice", "20"),
        ("nice", "-21"),
        ("nice", ""),
        ("fsize", "0"),
    ],
)
def test_what_is_no_limit(name, text):
    with pytest.raises(UsageError, match=f"--{name}: "):
        parse({name: text})


def test_a_grace_needs_an_end():
    with pytest.raises(UsageError, match="--timeout"):
        parse({"kill_after": "1"})
    assert parse({"kill_after": "1", "cpu_time": "2"}) == Limits(kill_after=1, cpu_time=2)


def test_steps():
    limits = parse(
        {"timeout": "1.5", "kill_after": "2s", "cpu_time": "0.5", "nofile": "9", "fsize": "1K", "nice": "-5"}
    )
    assert steps(limits) == [
        Timeout(1_500_000_000, 2_000_000_000),
        Limit(Resource.CPU_SECONDS, 1, 3),
        Limit(Resource.FILE_BYTES, 1024, 1024),
        Limit(Resource.OPEN_FILES, 9, 9),
        Nice(15),
    ]


def test_no_limit_asked_for_is_none():
    assert run.parse([b"true"])[0].limits is None
    assert run.parse([b"--nice=3", b"true"])[0].limits == Limits(nice=3)
