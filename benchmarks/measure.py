"""Timing, and the figures that come of it."""

import json
import os
import re
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.fuse import with_open_fuse
from tests.support.runner import PATH
from tests.support.users import Identity


class Figure(NamedTuple):
    """One line of the table. `value` is in seconds, or without unit where `unit` is not "s"; `bar` may be empty.

    What could not be measured has no value, and the reason for a unit.
    """

    section: str
    what: str
    value: float | None
    unit: str
    command: str
    bar: str = ""
    met: bool | None = None


class Bench:
    """Runs comparisons as one identity, with a home of its own."""

    def __init__(self, sandbox: Path, who: Identity, directory: Path, *, quick: bool) -> None:
        self.sandbox, self.who, self.directory, self.quick = str(sandbox), who, directory, quick
        self.home = directory / "sandbox-home"
        self.open_fuse = False
        self.environment = {
            "PATH": PATH,
            "HOME": str(who.home),
            "USER": who.name,
            "LANG": "C.UTF-8",
            "SANDBOX_HOME": str(self.home),
        }

    def run(self, command: Sequence[str], *, cwd: Path | None = None, quiet: bool = False) -> None:
        """Once, untimed: to fill a cache. In the identity's directory unless said otherwise."""
        options = {} if self.open_fuse else self.who.popen_options()
        whole = with_open_fuse(self.who, command) if self.open_fuse else [*command]
        options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if quiet else {}
        subprocess.run(whole, env=self.environment, cwd=cwd or self.directory, check=True, **options)  # type: ignore[call-overload]

    def compare(self, commands: Sequence[Sequence[str]], *, warmup: int = 3, around: Sequence[str] = ()) -> list[float]:
        """Median seconds of each, measured in one run of hyperfine; `around` starts that, and becomes this identity."""
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sbx-bench-") as scratch:
            Path(scratch).chmod(0o777)
            report = Path(scratch, "report.json")
            options = ["--shell=none", "--style=none", f"--warmup={warmup}", f"--export-json={report}"]
            options.append(f"--min-runs={20 if self.quick else 60}")
            whole = ["hyperfine", *options, *map(shlex.join, commands)]
            if around:
                subprocess.run([*around, *whole], env=self.environment, cwd=self.directory, check=True)
            else:
                self.run(whole)
            return [entry["median"] for entry in json.loads(report.read_text())["results"]]

    def alternate(self, entries: Sequence[tuple[Sequence[str], Path]], *, runs: int) -> list[float]:
        """Median seconds of long commands, by turns, so that a busy disk is everybody's; each makes its path anew."""
        times: list[list[float]] = [[] for _ in entries]
        for _ in range(2 if self.quick else runs):
            for taken, (command, product) in zip(times, entries, strict=True):
                self.run(["rm", "-rf", str(product)])
                # Keeps one command's writing to the disk out of the other's time.
                os.sync()
                start = time.monotonic()
                self.run(command)
                taken.append(time.monotonic() - start)
        return [statistics.median(taken) for taken in times]

    def shown(self, command: Sequence[str]) -> str:
        """As a reader would type it."""
        ours = {self.sandbox: "sandbox", str(Path(self.sandbox).parent / "python"): "python"}
        line = shlex.join([ours.get(word, word) for word in command])
        line = re.sub(r"ziglang-[^ ]*\.whl", "ziglang.whl", line.replace(f"{self.directory.parent}/", ""))
        return line if self.who.uid == 0 else f"[user] {line}"


def ratio(section: str, what: str, value: float, base: float, *, command: str, bar: float | None = None) -> Figure:
    """`value` against `base`; met when at most `bar`."""
    result = value / base
    text = "" if bar is None else f"<= {bar:g}"
    return Figure(section, what, result, "x", command, text, None if bar is None else result <= bar)


def seconds(section: str, what: str, value: float, *, command: str, bar: float | None = None) -> Figure:
    """A plain time; met when under `bar`."""
    text = "" if bar is None else f"< {bar * 1000:g} ms"
    return Figure(section, what, value, "s", command, text, None if bar is None else value < bar)
