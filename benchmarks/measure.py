"""Timing by hyperfine, and the figures that come of it."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.runner import PATH
from tests.support.users import Identity


class Figure(NamedTuple):
    """One line of the table. `value` is in seconds, or without unit where `unit` is not "s"; `bar` may be empty."""

    section: str
    what: str
    value: float
    unit: str
    command: str
    bar: str = ""
    met: bool | None = None


class Timed(NamedTuple):
    """One command of a comparison. `prepare` runs before every timing and is not timed (a shell line)."""

    what: str
    command: Sequence[str]
    prepare: str = ""


class Bench:
    """Runs comparisons as one identity, with a home of its own."""

    def __init__(self, sandbox: Path, who: Identity, directory: Path, *, quick: bool) -> None:
        self.sandbox, self.who, self.directory, self.quick = str(sandbox), who, directory, quick
        self.home = directory / "sandbox-home"
        self.environment = {
            "PATH": PATH,
            "HOME": str(who.home),
            "USER": who.name,
            "LANG": "C.UTF-8",
            "SANDBOX_HOME": str(self.home),
        }

    def run(self, command: Sequence[str]) -> None:
        """Once, untimed: to fill a cache."""
        subprocess.run([*command], env=self.environment, cwd=self.directory, check=True, **self.who.popen_options())  # type: ignore[call-overload]

    def compare(self, timed: Sequence[Timed], *, runs: int = 0, warmup: int = 3) -> list[float]:
        """Median seconds of each, measured in one run of hyperfine."""
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sbx-bench-") as scratch:
            Path(scratch).chmod(0o777)
            report = Path(scratch, "report.json")
            options = ["--export-json", str(report), "--style", "none", "--warmup", str(warmup)]
            if all(entry.prepare == "" for entry in timed):
                options.append("--shell=none")
            else:
                for entry in timed:
                    options += ["--prepare", entry.prepare or "true"]
            count = max(3, runs // 4) if self.quick and runs else runs
            options += ["--runs", str(count)] if count else ["--min-runs", "20" if self.quick else "60"]
            self.run(["hyperfine", *options, *(shlex.join(entry.command) for entry in timed)])
            return [entry["median"] for entry in json.loads(report.read_text())["results"]]

    def shown(self, command: Sequence[str]) -> str:
        """As a reader would type it."""
        short = ["sandbox" if word == self.sandbox else word for word in command]
        return ("" if self.who.uid == 0 else f"[{'user'}] ") + shlex.join(short)


def ratio(section: str, what: str, value: float, base: float, *, command: str, bar: float | None = None) -> Figure:
    """`value` against `base`; met when at most `bar`."""
    result = value / base
    text = "" if bar is None else f"<= {bar:g}"
    return Figure(section, what, result, "x", command, text, None if bar is None else result <= bar)


def seconds(section: str, what: str, value: float, *, command: str, bar: float | None = None) -> Figure:
    """A plain time; met when under `bar`."""
    text = "" if bar is None else f"< {bar * 1000:g} ms"
    return Figure(section, what, value, "s", command, text, None if bar is None else value < bar)
