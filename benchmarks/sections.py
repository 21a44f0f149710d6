"""The figures, one function per section. Each returns what it measured."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.api import api
from benchmarks.formats import formats
from benchmarks.front import front, many
from benchmarks.job import job
from benchmarks.living import living
from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.native import helper, native
from benchmarks.peers import peers
from benchmarks.setuid import rebuilt
from benchmarks.stage import Stage
from benchmarks.store import store
from tests.support import fuse

_HEAVY = ("pyroute2", "psutil", "rich", "libarchive")
_AT_ONCE = 100


def _zig(bench: Bench, stage: Stage, option: str, *more: str) -> list[str]:
    return [bench.sandbox, "run", option, f"zig:{stage.wheel}", "--cache", *more, "--", "true"]


def _plain(bench: Bench) -> list[str]:
    return [bench.sandbox, "run", "--", "true"]


def launch(stage: Stage) -> Iterator[Figure]:
    """A run of nothing, warm; and what the start-up imports."""
    for bench in filter(None, (stage.root, stage.user)):
        who = "root" if bench is stage.root else "userns"
        peers = {"python": [str(stage.python), "-I", "-S", "-c", ""]}
        if shutil.which("bwrap"):
            peers["bubblewrap"] = ["bwrap", "--dev-bind", "/", "/", "true"]
        command = [bench.sandbox, "run", "--engine", "python", "--", "true"]
        ours, *theirs = bench.compare([command, *peers.values()])
        yield seconds("launch", f"sandbox run -- true, {who}", ours, command=bench.shown(command), bar=0.060)
        for (peer, command), median in zip(peers.items(), theirs, strict=True):
            yield seconds("launch", f"for information: {peer}, {who}", median, command=bench.shown(command))
    yield _imports(stage)


def _imports(stage: Stage) -> Figure:
    bench = stage.root or stage.user
    command = [str(stage.python), "-X", "importtime", f"{bench.sandbox}-python", "run", "--", "true"]
    options = {"env": bench.environment, "cwd": bench.directory, "capture_output": True, "text": True}
    done = subprocess.run(command, check=True, **options, **bench.who.popen_options())  # type: ignore[call-overload]
    names = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    heavy = sorted(names & set(_HEAVY))
    what = f"slow imports on this path{': ' + ' '.join(heavy) if heavy else ''}"
    return Figure("launch", what, len(heavy), "", bench.shown(command), "0", not heavy)


def first(stage: Stage) -> Iterator[Figure]:
    """The first run of a large archive with --cache, against unpacking it."""
    bench = stage.root or stage.user
    target = bench.directory / "unzipped"
    unzip = ["unzip", "-q", str(stage.wheel), "-d", str(target)]
    run = _zig(bench, stage, "--static")
    medians = bench.alternate([(run, bench.home), (unzip, target)], runs=5)
    shutil.rmtree(target)
    yield seconds("first", "unzip -q of the ziglang wheel", medians[1], command=bench.shown(unzip))
    yield seconds("first", "first --cache run of it", medians[0], command=bench.shown(run))
    yield ratio("first", "first run / unzip", *medians, command=bench.shown(run), bar=1.0)


def root(stage: Stage) -> Iterator[Figure]:
    """The next runs as root: the image is mounted, not unpacked."""
    if (bench := stage.root) is None:
        return
    commands = [_plain(bench), _zig(bench, stage, "--static"), _zig(bench, stage, "--dynamic")]
    bench.run(commands[1])
    base, *others = bench.compare(commands)
    yield seconds("root", "sandbox run -- true", base, command=bench.shown(commands[0]))
    for what, value, command, bar in zip(("static", "dynamic"), others, commands[1:], (1.2, 1.3), strict=True):
        yield ratio("root", f"next run, {what} / true", value, base, command=bench.shown(command), bar=bar)


def userns(stage: Stage) -> Iterator[Figure]:
    """The next runs of an ordinary user: through FUSE, and from the kept tree where /dev/fuse is closed."""
    bench = stage.user
    commands = [_plain(bench), _zig(bench, stage, "--static"), _zig(bench, stage, "--dynamic")]
    commands = [[*command[:2], "--mode", "userns", *command[2:]] for command in commands]
    for what, open_fuse, bar in (("with FUSE", True, None), ("from the kept tree", False, 1.5)):
        if open_fuse and not fuse.possible():
            continue
        bench.open_fuse = open_fuse
        bench.run(commands[1])
        base, *others = bench.compare(commands)
        yield seconds("userns", f"sandbox run -- true ({what})", base, command=bench.shown(commands[0]))
        for kind, value, command in zip(("static", "dynamic"), others, commands[1:], strict=True):
            name = f"next run {what}, {kind} / true"
            yield ratio("userns", name, value, base, command=bench.shown(command), bar=bar)


def hundred(stage: Stage) -> Iterator[Figure]:
    """One hundred sandboxes at once on one cached image."""
    if (bench := stage.root) is None:
        return
    command = _zig(bench, stage, "--static")
    bench.run(command)
    before = _loop_devices()
    ready, tell = os.pipe()
    hold, release = os.pipe()
    script = f"echo . >&{tell}; read -r _ <&{hold}"
    waiting = [*command[:-1], "sh", "-c", script]
    start = time.monotonic()
    started = [_start(bench, waiting, (tell, hold)) for _ in range(_AT_ONCE)]
    os.close(tell)
    seen = 0
    while seen < 2 * _AT_ONCE and (block := os.read(ready, 4096)):
        seen += len(block)
    elapsed = time.monotonic() - start
    loops = _loop_devices() - before
    os.close(hold)
    os.close(release)
    codes = [process.wait() for process in started]
    os.close(ready)
    shown = f"{_AT_ONCE} x {bench.shown(command)}"
    # `read` meets the end of the pipe, hence 1; anything else is a launch that failed.
    failed = sum(code != 1 for code in codes)
    yield Figure("hundred", f"loop devices of {_AT_ONCE} at once", loops, "", shown, "1", loops == 1)
    yield Figure("hundred", "launches that failed", failed, "", shown, "0", not failed)
    yield seconds("hundred", "time to start them all, per sandbox", elapsed / _AT_ONCE, command=shown)


def _start(bench: Bench, command: list[str], fds: tuple[int, int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=bench.environment,
        cwd=bench.directory,
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )


def _loop_devices() -> int:
    return len(list(Path("/sys/block").glob("loop*/loop/backing_file")))


SECTIONS: dict[str, Callable[[Stage], Iterator[Figure]]] = {
    "launch": launch,
    "peers": peers,
    "front": front,
    "many": many,
    "first": first,
    "root": root,
    "userns": userns,
    "hundred": hundred,
    "native": native,
    "api": api,
    "setuid": helper,
    "job": job,
    "rebuilt": rebuilt,
    "store": store,
    "formats": formats,
    "living": living,
}
