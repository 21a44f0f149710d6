"""Limits: what is typed, and the steps that become of it."""

import pytest

from sandbox.cli import run
from sandbox.errors import UsageError
from sandbox.level_steps import Cgroup, Limit, Nice, Timeout
from sandbox.limits import UNLIMITED, Limits, compromise, parse, parse_duration, steps
from sandbox.plan_types import Resource


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
        ("memory", "0"),
        ("pids", "0"),
        ("cpus", "0.001"),
        ("cpus", "all"),
        ("limits", "no"),
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
    assert steps(limits, None) == [
        Timeout(1_500_000_000, 2_000_000_000),
        Limit(Resource.CPU_SECONDS, 1, 3),
        Limit(Resource.FILE_BYTES, 1024, 1024),
        Limit(Resource.OPEN_FILES, 9, 9),
        Nice(15),
    ]


def test_no_limit_asked_for_is_none():
    assert run.parse([b"true"])[0].limits is None
    assert run.parse([b"--nice=3", b"true"])[0].limits == Limits(nice=3)


def test_a_cgroup_s_limits():
    limits = parse({"memory": "64M", "cpus": "1.5"})
    assert limits.controllers == {"memory", "cpu"}
    assert steps(limits, 3) == [Cgroup(3, 64 << 20, 0, UNLIMITED, 150_000)]
    assert steps(parse({"pids": "9"}), 0) == [Cgroup(0, UNLIMITED, UNLIMITED, 9, UNLIMITED)]


def test_best_effort_says_what_differs():
    limits = parse({"memory": "64M", "pids": "9", "cpus": "2", "limits": "best-effort"})
    assert steps(limits, None) == [
        Limit(Resource.DATA_BYTES, 64 << 20, 64 << 20),
        Limit(Resource.PROCESSES, 9, 9),
    ]
    said = compromise(limits, "no cgroup")
    assert said.startswith("no cgroup: ")
    assert all(option in said for option in ("--memory", "--pids", "--cpus"))
