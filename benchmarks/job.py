"""Job isolation: a ready plan beside bubblewrap, what the filter costs a system call, and real work inside and bare."""

import contextlib
import json
import shutil
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ready as ready_script
from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.stage import Stage
from tests.support import debian
from tests.support.modes import native_engine

_RUNS = 300
_SYSTEM_CALLS = 10
_BUILDS = 9
_PEER = ["--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "/bin/true"]
_COPY = ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=1M", "status=none"]
# BPF_RET | BPF_K with SECCOMP_RET_ALLOW: what the kernel itself takes for looking at any filter.
_YES = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
_LIKE = "bwrap with the same mounts, masks and filter, and a bind for the overlay"


def job(stage: Stage) -> Iterator[Figure]:
    """Host's view from spawn to exit, by turns, in a directory whose writes vanish."""
    engine, bwrap = native_engine(), shutil.which("bwrap")
    if engine is None or bwrap is None:
        return
    for bench, bar in ((stage.root, 0.7), (stage.user, 0.75)):
        if bench is None:
            continue
        who = "root" if bench is stage.root else "user"
        mode = ["--mode", "root" if bench is stage.root else "userns"]
        with _workspace(bench) as workspace:
            argv = [*mode, "--isolation", "job", "--", "/bin/true"]
            measure = _Measure(stage, bench, engine, workspace)
            ours, peer, like = measure([argv], peers=[[bwrap, *_PEER]], like=[argv], runs=_RUNS)
            shown = f"{'' if who == 'root' else '[user] '}sandbox-engine run PLAN ENV -- true, with --isolation job"
            yield seconds("job", f"a ready plan, true, {who}", ours, command=shown)
            plain = " ".join(["bwrap", *_PEER])
            yield ratio("job", f"a ready plan / bubblewrap, {who}", ours, peer, command=plain, bar=bar)
            yield ratio("job", f"a ready plan / the same by bubblewrap, {who}", ours, like, command=_LIKE, bar=0.6)
            if who == "user" or stage.root is None:
                yield from _filters(measure, mode)
        yield from _build(bench, who, mode)


def _build(bench: Bench, who: str, mode: Sequence[str]) -> Iterator[Figure]:
    """A C project made in a job, whose writes vanish, and bare, by turns; bare it is cleaned in between, untimed."""
    try:
        project = debian.c_project(bench.directory)
    except pytest.skip.Exception:
        return
    subprocess.run(["chown", "-R", f"{bench.who.uid}:{bench.who.gid}", project], check=True)
    in_job = [bench.sandbox, "run", *mode, "--isolation", "job", "--", *debian.MAKE]
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(2 if bench.quick else _BUILDS):
        for command, taken in ((in_job, times[True]), (debian.MAKE, times[False])):
            start = time.monotonic()
            bench.run(command, cwd=project, quiet=True)
            taken.append(time.monotonic() - start)
        bench.run(["make", "clean"], cwd=project, quiet=True)
    shutil.rmtree(project)
    shown = f"{bench.shown(in_job)}, in {project.name}"
    ours, bare = map(statistics.median, times.values())
    yield ratio("job", f"make -j2 of Lua / bare, {who}", ours, bare, command=shown, bar=1.05)


def _filters(measure: "_Measure", mode: Sequence[str]) -> Iterator[Figure]:
    """A loop of nothing but small reads and writes: with the filter, with one that says yes to all, and without."""
    yes = measure.workspace.parent / "yes.bpf"
    yes.write_bytes(_YES)
    filters: list[list[str]] = [[], ["--seccomp", str(yes)], ["--seccomp", "none"]]
    ready = [[*mode, "--isolation", "job", *which, "--", *_COPY] for which in filters]
    with_filter, floor, without = measure(ready, runs=_SYSTEM_CALLS)
    shown = " ".join(_COPY[:5])
    yield ratio("job", "the filter / none, 2 million calls", with_filter, without, command=shown, bar=1.05)
    yield ratio("job", "for information: a filter of one yes / none", floor, without, command=shown)


@contextlib.contextmanager
def _workspace(bench: Bench) -> Iterator[Path]:
    path = bench.directory / "workspace"
    subprocess.run(["mkdir", "-p", str(path)], check=True, **bench.who.popen_options())  # type: ignore[call-overload]
    yield path
    path.rmdir()


class _Measure:
    """Medians, measured by a process of the identity's own."""

    def __init__(self, stage: Stage, bench: Bench, engine: Path, workspace: Path) -> None:
        self.bench, self.engine, self.workspace = bench, engine, workspace
        script = Path(shutil.copy(ready_script.__file__, bench.directory / "ready.py"))
        self.command = [str(stage.python), str(script)]

    def __call__(
        self,
        ready: list[list[str]],
        *,
        runs: int,
        peers: Sequence[list[str]] = (),
        like: Sequence[list[str]] = (),
    ) -> list[float]:
        order: dict[str, Any] = {"program": str(self.engine), "environment": self.bench.environment, "ready": ready}
        order |= {"peers": peers, "like": like, "runs": min(runs, 40) if self.bench.quick else runs}
        done = subprocess.run(  # type: ignore[call-overload]
            self.command,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
            env=self.bench.environment,
            cwd=self.workspace,
            **self.bench.who.popen_options(),
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return list(map(float, json.loads(done.stdout)))
