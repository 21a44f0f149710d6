"""`sandbox doctor --self-test`: one sandbox of each level in each mode that works, started as a user would."""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

from sandbox.doctor_features import command
from sandbox.spec import LEVELS

_SECONDS = 60
_WORD = "the sandbox works"


class Try(NamedTuple):
    """A mode and a level. Times in milliseconds: of the first start, and of the same once its plan is stored."""

    mode: str
    level: str
    ok: bool
    first_ms: float
    again_ms: float
    error: str


def run(modes: dict[str, bool], *, landlock: bool) -> Iterator[Try]:
    """Try each. `modes` are those of the doctor; a fence alone (mode landlock) has no levels."""
    for mode, works in modes.items():
        # Root's own uid is all that a user namespace of root's would have, and a job may not have it.
        levels = LEVELS[:1] if mode == "userns" and os.geteuid() == 0 else LEVELS
        for level in levels if works else ():
            yield _try(mode, level)
    if landlock:
        yield _try("landlock", LEVELS[0])


def _try(mode: str, level: str) -> Try:
    times: list[float] = []
    for _ in range(2):
        start = time.monotonic()
        error = _start(mode, level)
        times.append((time.monotonic() - start) * 1000)
        if error:
            break
    return Try(mode, level, not error, round(times[0], 1), round(times[-1], 1), error)


def _start(mode: str, level: str) -> str:
    """Start one; what is wrong, "" when nothing is."""
    words = ["run", "--mode", mode, "--isolation", level, "--", "/bin/echo", _WORD]
    try:
        # At / there is nothing of anybody's, so no working directory can be in the way.
        done = subprocess.run(
            [*command(), *words], capture_output=True, text=True, cwd="/", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {_SECONDS} s"
    if done.returncode == 0 and done.stdout == f"{_WORD}\n":
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}, and it said nothing"
