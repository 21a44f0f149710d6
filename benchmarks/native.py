"""The native engine with a ready plan, against what people use today; no Python in either."""

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.stage import Stage
from sandbox import launch
from sandbox.cli.run import parse
from sandbox.codec import encode
from tests.support import archives
from tests.support.modes import native_engine

_RUNS = 300
_PSS_BAR = 400.0
Attempt = Callable[[], None]


def native(stage: Stage) -> Iterator[Figure]:
    """Host's view from spawn to exit, by turns; the plan is compiled before."""
    engine, bench = native_engine(), stage.root
    if engine is None or bench is None:
        return
    with contextlib.ExitStack() as stack:
        runs = 40 if bench.quick else _RUNS
        yield from _plain(bench, engine, runs, stack)
        yield from _cold_image(bench, engine, runs, stack)
        yield _memory(bench, engine, stack)
    for name in ("sandbox-engine", "sandbox-helper"):
        size = (engine.parent / name).stat().st_size / 1000
        yield Figure("native", f"size of {name}", size, " kB", f"ls -l sandbox/bin/{name}", "< 1000", size < 1000)


def _ready(bench: Bench, engine: Path, argv: list[str], stack: contextlib.ExitStack) -> list[str | int]:
    """The engine's command line for a compiled plan; the descriptor of the plan stands as a number in it."""
    spec = parse([os.fsencode(word) for word in argv])[0]
    environ = {os.fsencode(key): os.fsencode(value) for key, value in bench.environment.items()}
    prepared = launch.prepare(spec, environ, stack, say=lambda _: None, hint=lambda _: None)
    fd = os.memfd_create("plan", 0)
    stack.callback(os.close, fd)
    os.write(fd, encode(prepared.compiled.plan))
    return [str(engine), "run", fd, "-", "--", *argv[argv.index("--") + 1 :]]


def _spawn(bench: Bench, command: list[str | int]) -> Attempt:
    fds = [word for word in command if isinstance(word, int)]
    argv = [str(word) for word in command]

    def attempt() -> None:
        for fd in fds:
            os.lseek(fd, 0, os.SEEK_SET)
        if status := os.waitpid(os.posix_spawn(argv[0], argv, bench.environment), 0)[1]:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")

    for fd in fds:
        os.set_inheritable(fd, True)
    return attempt


def _by_turns(attempts: list[Attempt], runs: int) -> list[float]:
    times: list[list[float]] = [[] for _ in attempts]
    for turn in range(runs + 5):
        for taken, attempt in zip(times, attempts, strict=True):
            start = time.perf_counter()
            attempt()
            if turn >= 5:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _plain(bench: Bench, engine: Path, runs: int, stack: contextlib.ExitStack) -> Iterator[Figure]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return
    command = _ready(bench, engine, ["--", "/bin/true"], stack)
    peer = [bwrap, "--dev-bind", "/", "/", "/bin/true"]
    ours, theirs = _by_turns([_spawn(bench, command), _spawn(bench, [*peer])], runs)
    shown = "sandbox-engine run PLAN - -- true"
    yield seconds("native", "a ready plan, true", ours, command=shown)
    yield seconds("native", "bubblewrap", theirs, command=" ".join(["bwrap", *peer[1:]]))
    yield ratio("native", "a ready plan / bubblewrap", ours, theirs, command=shown, bar=0.8)


def _cold_image(bench: Bench, engine: Path, runs: int, stack: contextlib.ExitStack) -> Iterator[Figure]:
    """Each launch attaches a loop device of its own, since the last one has gone with the last launch."""
    image = archives.make_squashfs(bench.directory / "bench.sfs", [archives.Entry("f", b"x")])
    command = _ready(bench, engine, ["-s", f"i:{image}", "--", "/bin/true"], stack)
    script = f"mount -t squashfs -o ro,loop {image} /mnt && exec /bin/true"
    peer: list[str | int] = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", script]
    ours, theirs = _by_turns([_spawn(bench, command), _spawn(bench, peer)], runs // 3)
    shown = "sandbox-engine run PLAN - -- true, with -s i.sfs"
    yield seconds("native", "one static image, cold loop", ours, command=shown)
    yield ratio(
        "native", "the same / unshare -m and mount", ours, theirs, command=f"unshare -m sh -c '{script}'", bar=0.9
    )


def _memory(bench: Bench, engine: Path, stack: contextlib.ExitStack) -> Figure:
    command = _ready(bench, engine, ["--", "/bin/sleep", "1000"], stack)
    fds = [word for word in command if isinstance(word, int)]
    os.lseek(fds[0], 0, os.SEEK_SET)
    process = subprocess.Popen([*map(str, command)], env=bench.environment, pass_fds=fds)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (inside := children.read_text().split()) or "sleep" not in Path(f"/proc/{inside[0]}/comm").read_text():
        time.sleep(0.01)
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    pss = next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    process.terminate()
    process.wait()
    what = "supervisor's PSS while the command sleeps"
    return Figure("native", what, pss, " kB", "grep Pss: /proc/PID/smaps_rollup", f"<= {_PSS_BAR:g}", pss <= _PSS_BAR)
