"""A callable that is not trusted, and what it sends back to the process that called it."""

import json

import pytest

from sandbox import CallError, SandboxExecutor, TimeoutExpiredError
from sandbox.api import wire
from tests.support import callables


@pytest.fixture
def executor(monkeypatch, area):
    monkeypatch.setenv("SANDBOX_HOME", str(area.path / "home"))
    monkeypatch.chdir(area.dir(False))
    with SandboxExecutor(2, timeout=60, max_result=1 << 20) as pool:
        yield pool


@pytest.mark.parametrize("as_pickle", [False, True])
def test_no_pickle_is_loaded(executor, area, as_pickle):
    marker = area.path / "run-by-the-parent"
    with pytest.raises(CallError, match="sent what is no result"):
        executor.submit(callables.send_pickle, str(marker), as_pickle=as_pickle).result()
    with pytest.raises(CallError, match="a Runs, which is no plain data"):
        executor.submit(callables.give, str(marker)).result()
    assert not marker.exists()


def test_a_pickle_is_loaded_by_who_asked_for_it(monkeypatch, area):
    monkeypatch.setenv("SANDBOX_HOME", str(area.path / "home"))
    monkeypatch.chdir(area.dir(False))
    marker = area.path / "run-by-the-parent"
    with SandboxExecutor(1, results="pickle") as pool:
        assert pool.submit(callables.give, str(marker)).result() == 0
    assert marker.exists(), "else the tests above prove nothing"


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04.",
        b"{}",
        b"[]",
        b'["tuple", ["value"]]',
        b'["tuple", ["raised", "KeyError", ["list", []], "x", "y", "z"]]',
        b'["os", ["system", "id"]]',
        b'["set", [["list", []]]]',
        b'["bytes", "?"]',
        b'["complex", ["1", []]]',
        b'["dict", [1, 2]]',
        b"[" * 100_000,
        b'["list", [' * 200 + b"]]" * 200,
        b"9" * 5000,
    ],
    ids=range(13),
)
def test_nonsense(data):
    with pytest.raises(CallError):
        SandboxExecutor._value(SandboxExecutor(1), data, None)


def test_lengths_are_bounded(executor):
    for length in (1 << 63, (1 << 20) + 17, 1):
        with pytest.raises(CallError, match="sent what is no result"):
            executor.submit(callables.send, b'["tuple"', length).result()
    assert executor.submit(callables.flood).result() == "sealed"
    with pytest.raises(CallError, match=r"larger than 1048576 bytes \(max_result= allows more\)"):
        executor.submit(callables.echo, b"x" * (1 << 20)).result()


@pytest.mark.parametrize(
    "kind", ["SystemExit", "KeyboardInterrupt", "BaseException", "eval", "object", "__import__", "os.x"]
)
def test_only_plain_exceptions_are_made(executor, kind):
    raised = ["raised", kind, ["list", ["1"]], "said \x1b[2J", "trace"]
    with pytest.raises(CallError) as caught:
        executor._value(json.dumps(["tuple", raised]).encode(), None)
    assert (str(caught.value), caught.value.remote) == ("said \\x1b[2J", "trace")


def test_it_is_confined_and_ends(executor, area):
    target = area.path / "written"
    executor.submit(callables.write, str(target)).result()
    assert not target.exists()
    with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
        executor.submit(callables.write, "/etc/sandbox-written").result()
    with pytest.raises(CallError, match="its process ended with 3"):
        executor.submit(callables.leave).result()
    with SandboxExecutor(1, timeout=0.5) as hurried, pytest.raises(TimeoutExpiredError):
        hurried.submit(callables.nap, 600).result()


def test_what_is_read_is_what_was_written():
    value = {"a": [1, 2.5, None, True, "\udcff"], (1, b"\xff"): {frozenset({1})}, 3: bytearray(b"x"), "c": 1 + 2j}
    assert wire.load(wire.dump(value)) == value
    assert type(wire.load(wire.dump((1, [2])))) is tuple
    deep = []
    for _ in range(wire.DEEPEST + 5):
        deep = [deep]
    for bad in (deep, object(), {1: print}):
        with pytest.raises(CallError):
            wire.dump(bad)
