"""Sandboxes that live as long as a test wants, in every mode and with every engine."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.support.runner import Runner

T = TypeVar("T")
# As in the conformance cases: who, engine, mode.
COMBINATIONS = [
    ("python", "root"),
    ("python", "userns"),
    ("native", "root"),
    ("native", "userns"),
    ("native", "setuid"),
]


def wait_for(condition: Callable[[], T], seconds: float = 30.0) -> T:
    """The first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)
    return value


class Living:
    """One engine in one mode: `start` returns when the command runs, `json` asks `sandbox` something."""

    def __init__(self, run: Runner, engine: str, mode: str) -> None:
        self.run, self.as_user = run, mode != "root"
        self.options = ["--engine", engine, "--mode", mode]
        self.marks: Iterator[int] = iter(range(1000))

    @property
    def area(self) -> Path:
        return self.run.area.dir(self.as_user)

    def start(self, *options: str, script: str = "", **popen: Any) -> subprocess.Popen[str]:
        """A sandbox with these options whose shell does `script` and then sleeps."""
        mark = self.area / f"mark-{next(self.marks)}"
        words = ["run", *self.options, "--workspace", "rw"] if "--isolation" in options else ["run", *self.options]
        script = f"{script}\necho up > {mark}; while :; do sleep 0.2; done"
        process = self.run.popen([*words, *options, "--", "sh", "-c", script], as_user=self.as_user, **popen)
        wait_for(lambda: mark.exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        return process

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(list(words), as_user=self.as_user, **options)

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def own(self) -> list[dict[str, Any]]:
        """What `sandbox ps` says of this test's home."""
        home = str(self.run.area.home(self.as_user))
        return [facts for facts in self.json("ps") if facts["home"] == home]
