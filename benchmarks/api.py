"""A command from a warm Python, against the native engine with the plan that this Python would give it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.ready import by_turns, ready, spawn
from benchmarks.stage import Stage
from sandbox import Sandbox
from tests.support.modes import native_engine

_RUNS = 300


def api(stage: Stage) -> Iterator[Figure]:
    """From the call to the result, by turns with spawn to exit of the engine."""
    engine, bench = native_engine(), stage.root
    if engine is None or bench is None:
        return
    for level in ("none", "job"):
        yield from _level(bench, engine, level)


def _level(bench: Bench, engine: Path, level: str) -> Iterator[Figure]:
    runs = 40 if bench.quick else _RUNS
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, bench.environment, clear=True))
        bare = spawn(
            bench.environment, ready(str(engine), bench.environment, ["--isolation", level, "--", "/bin/true"], stack)
        )
        box = stack.enter_context(Sandbox(engine="native", isolation=level))  # type: ignore[arg-type]
        ours, theirs = by_turns([lambda: box.run(["/bin/true"], check=True), bare], runs)
    shown = f'Sandbox(isolation="{level}").run(["/bin/true"])'
    yield seconds("api", f"a command from a warm Python, {level}", ours, command=shown)
    yield seconds(
        "api", f"the engine with a ready plan, {level}", theirs, command="sandbox-engine run PLAN ENV -- true"
    )
    yield ratio("api", f"the one / the other, {level}", ours, theirs, command=shown, bar=1.3)
