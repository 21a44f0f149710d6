"""Living with sandboxes: joining one beside nsenter, and the list of a thousand that run."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.front import medians
from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.stage import Stage

_MANY = 1000
_READY_SECONDS = 120.0
# What nsenter calls a namespace of /proc/PID/ns.
_OPTIONS = {"user": "-U", "mnt": "-m", "cgroup": "-C", "uts": "-u", "ipc": "-i", "pid": "-p", "net": "-n"}


def living(stage: Stage) -> Iterator[Figure]:
    """sandbox exec ID -- /bin/true against nsenter into the same namespaces, and sandbox ps."""
    for bench in filter(None, (stage.root, stage.user)):
        who = "root" if bench is stage.root else "userns"
        for level in ("none", "job"):
            with _running(bench, ["--isolation", level], 1):
                yield from _joined(stage, bench, who, level)
        many = _MANY // 10 if bench.quick else _MANY
        with _running(bench, [], many):
            command = [bench.sandbox, "ps"]
            (median,) = bench.compare([command])
        bar = None if bench.quick else 0.5
        yield seconds("living", f"{many} run, {who}", median, command=bench.shown(command), bar=bar)


def _joined(stage: Stage, bench: Bench, who: str, level: str) -> Iterator[Figure]:
    (run,) = _own(bench)
    ours = [bench.sandbox, "exec", run["id"][:12], "--", "/bin/true"]
    theirs = _nsenter(_command_of(run["pid"]))
    joined, entered = medians(stage, bench, [ours, theirs])
    yield seconds("living", f"join a sandbox, {level}, {who}", joined, command="sandbox exec ID -- /bin/true")
    shown = " ".join(["nsenter", *theirs[1:-4], "-t PID -- /bin/true"])
    yield seconds("living", f"nsenter into the same namespaces, {level}, {who}", entered, command=shown)
    what = f"the one / the other, {level}, {who}"
    yield ratio("living", what, joined, entered, command="sandbox exec ID -- /bin/true", bar=1.15)


@contextlib.contextmanager
def _running(bench: Bench, options: list[str], count: int) -> Iterator[None]:
    """So many sandboxes that sleep, with their commands started."""
    how: dict[str, Any] = {"env": bench.environment, "cwd": bench.directory, **bench.who.popen_options()}
    command = [bench.sandbox, "run", *options, "--", "sleep", "1000"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        # The first one is compiled, and stored for the others.
        for _ in range(count):
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how))
            if len(started) == 1:
                _wait(bench, 1)
        _wait(bench, count)
        yield
    finally:
        subprocess.run([bench.sandbox, "kill", "--all"], check=True, stdout=subprocess.DEVNULL, **how)
        for process in started:
            process.wait()


def _wait(bench: Bench, count: int) -> None:
    end = time.monotonic() + _READY_SECONDS
    while sum((run["tasks"] or 0) > 0 and _command_of(run["pid"]) > 0 for run in _own(bench)) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} sandboxes do not start")
        time.sleep(0.1)


def _own(bench: Bench) -> list[dict[str, Any]]:
    how: dict[str, Any] = {"env": bench.environment, "cwd": bench.directory, **bench.who.popen_options()}
    told = subprocess.run([bench.sandbox, "ps", "--json"], check=True, capture_output=True, **how).stdout
    return [run for run in json.loads(told) if run["home"] == str(bench.home)]


def _command_of(pid: int) -> int:
    """The innermost process that is `sleep`; 0 while there is none."""
    with contextlib.suppress(OSError):
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            pid = int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])
        return pid
    return 0


def _nsenter(pid: int) -> list[str]:
    """The command that enters what the process has of its own, as the process's own user."""
    differs = [
        kind for kind in _OPTIONS if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    ]
    kept = ["--preserve-credentials"] if "user" in differs else []
    return ["nsenter", *kept, *(_OPTIONS[kind] for kind in differs), "-t", str(pid), "--", "/bin/true"]
