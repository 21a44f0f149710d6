"""What the sections work on."""

from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Bench


class Stage(NamedTuple):
    """Who measures, and on what. `root` is None when not run as root."""

    root: Bench | None
    user: Bench
    wheel: Path
    python: Path
