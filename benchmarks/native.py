"""The native engine with a ready plan, against what people use today; no Python in either."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ready as ready_script
from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.ready import by_turns, ready, spawn
from benchmarks.stage import Stage
from sandbox import setuid
from sandbox.doctor import packaged_program
from tests.support import archives
from tests.support.helper import IMAGES, Helper, prepare
from tests.support.modes import native_engine
from tests.support.setuid import SetuidSystem, installed

_RUNS = 300
_PSS_BAR = 400.0


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


def _plain(bench: Bench, engine: Path, runs: int, stack: contextlib.ExitStack) -> Iterator[Figure]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return
    command = ready(str(engine), bench.environment, ["--", "/bin/true"], stack)
    peer = [bwrap, "--dev-bind", "/", "/", "/bin/true"]
    ours, theirs = by_turns([spawn(bench.environment, command), spawn(bench.environment, [*peer])], runs)
    shown = "sandbox-engine run PLAN ENV -- true"
    yield seconds("native", "a ready plan, true", ours, command=shown)
    yield seconds("native", "bubblewrap", theirs, command=" ".join(["bwrap", *peer[1:]]))
    yield ratio("native", "a ready plan / bubblewrap", ours, theirs, command=shown, bar=0.8)


def _cold_image(bench: Bench, engine: Path, runs: int, stack: contextlib.ExitStack) -> Iterator[Figure]:
    """Each launch attaches a loop device of its own, since the last one has gone with the last launch."""
    image = archives.make_squashfs(bench.directory / "bench.sfs", [archives.Entry("f", b"x")])
    command = ready(str(engine), bench.environment, ["-s", f"i:{image}", "--", "/bin/true"], stack)
    script = f"mount -t squashfs -o ro,loop {image} /mnt && exec /bin/true"
    peer: list[str | int] = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", script]
    ours, theirs = by_turns([spawn(bench.environment, command), spawn(bench.environment, peer)], runs // 3)
    shown = "sandbox-engine run PLAN ENV -- true, with -s i.sfs"
    yield seconds("native", "one static image, cold loop", ours, command=shown)
    yield ratio(
        "native", "the same / unshare -m and mount", ours, theirs, command=f"unshare -m sh -c '{script}'", bar=0.9
    )


def _memory(bench: Bench, engine: Path, stack: contextlib.ExitStack) -> Figure:
    command = ready(str(engine), bench.environment, ["--", "/bin/sleep", "1000"], stack)
    fds = [word for word in command if isinstance(word, int)]
    process = subprocess.Popen([*map(str, command)], env=bench.environment, pass_fds=fds)
    return _pss("native", "supervisor's PSS while the command sleeps", process)


def _pss(section: str, what: str, process: subprocess.Popen[bytes]) -> Figure:
    """Of a process whose only child becomes `sleep`; ends it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (inside := children.read_text().split()) or "sleep" not in Path(f"/proc/{inside[0]}/comm").read_text():
        if process.poll() is not None:
            raise RuntimeError(f"{what}: it ended with {process.returncode}")
        time.sleep(0.01)
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    pss = next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    process.terminate()
    process.wait()
    return Figure(section, what, pss, " kB", "grep Pss: /proc/PID/smaps_rollup", f"<= {_PSS_BAR:g}", pss <= _PSS_BAR)


def helper(stage: Stage) -> Iterator[Figure]:
    """The same with the setuid helper, installed in a mount namespace of its own, by an ordinary user of its group."""
    if stage.root is None or not os.access(packaged_program("sandbox-helper"), os.X_OK):
        return
    bench = stage.user
    top = stage.root.directory.parent / "setuid-system"
    with installed({True: bench.who}, Path(bench.sandbox), top) as system:
        prepare(system)
        assert system.private is not None
        image = archives.make_squashfs(system.private.inside(IMAGES / "bench.sfs"), [archives.Entry("f", b"x")])
        image.chmod(0o644)
        argvs = [["--mode", "setuid", *more, "--", "/bin/true"] for more in ([], ["-s", f"i:{IMAGES}/bench.sfs"])]
        runs = 40 if bench.quick else _RUNS
        yield from _helper_plain(stage, system, argvs[0], runs)
        yield from _helper_image(stage, system, argvs[1], runs // 3)
        script = f'exec {setuid.HELPER} run 8 9 -- /bin/sleep 1000 8<"$1/plan" 9<"$1/env"'
        yield _helper_memory(stage, system, script)
    yield from _lines()


def _timed(
    stage: Stage, system: SetuidSystem, argvs: list[list[str]], peers: list[list[str]], runs: int
) -> list[float]:
    """Medians, measured by a process of the user's that is in there."""
    bench = stage.user
    script = Path(shutil.copy(ready_script.__file__, bench.directory / "ready.py"))
    order = {"program": setuid.HELPER, "environment": bench.environment, "ready": argvs, "peers": peers, "runs": runs}
    command = system.command([stage.python, script], who=bench.who, cwd=Path("/"))
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return list(map(float, json.loads(done.stdout)))


def _helper_plain(stage: Stage, system: SetuidSystem, argv: list[str], runs: int) -> Iterator[Figure]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return
    peer = [bwrap, "--dev-bind", "/", "/", "/bin/true"]
    ours, theirs = _timed(stage, system, [argv], [peer], runs)
    shown = "[user] sandbox-helper run PLAN ENV -- true"
    yield seconds("setuid", "a ready plan, true", ours, command=shown)
    yield seconds("setuid", "bubblewrap", theirs, command="[user] bwrap --dev-bind / / /bin/true")
    yield ratio("setuid", "a ready plan / bubblewrap", ours, theirs, command=shown, bar=0.8)


def _helper_image(stage: Stage, system: SetuidSystem, argv: list[str], runs: int) -> Iterator[Figure]:
    """The peer needs root, so they cannot alternate one by one: some of these, some of those, several times."""
    assert stage.root is not None
    assert system.private is not None
    script = f"mount -t squashfs -o ro,loop {system.private.inside(IMAGES)}/bench.sfs /mnt && exec /bin/true"
    peer = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", script]
    attempt = spawn(stage.root.environment, peer)
    rounds = [(*_timed(stage, system, [argv], [], runs // 5), *by_turns([attempt], runs // 5)) for _ in range(5)]
    ours, theirs = (statistics.median(taken) for taken in zip(*rounds, strict=True))
    shown = "[user] sandbox-helper run PLAN ENV -- true, with -s of root's i.sfs"
    yield seconds("setuid", "one static image, cold loop", ours, command=shown)
    peer_shown = "unshare -m sh -c 'mount -t squashfs -o ro,loop i.sfs /mnt && exec /bin/true'"
    yield ratio("setuid", "the same / unshare -m and mount", ours, theirs, command=peer_shown, bar=0.9)


def _helper_memory(stage: Stage, system: SetuidSystem, script: str) -> Figure:
    bench = stage.user
    area = bench.directory / "setuid"
    area.mkdir()
    launcher = Helper(system, bench.who, area)
    (area / "plan").write_bytes(launcher.plan())
    (area / "env").touch()
    command = system.command(["sh", "-c", script, "sh", area], who=bench.who, cwd=Path("/"))
    figure = _pss("setuid", "supervisor's PSS while the command sleeps", subprocess.Popen(command))
    launcher.finish()
    return figure


def _lines() -> Iterator[Figure]:
    """What there is to read."""
    crate = Path(__file__).resolve().parent.parent / "setuid-helper/src"
    surface = sum(len(path.read_text().splitlines()) for path in (crate / "setuid").glob("*.rs"))
    every = [path.read_text() for path in crate.rglob("*.rs")]
    shown = "cat setuid-helper/src/setuid/*.rs | wc -l"  # their unit tests lie beside them, in tests/
    yield Figure("setuid", "lines of the setuid surface", surface, "", shown, "<= 1500", surface <= 1500)
    yield Figure("setuid", "lines of Rust in all", sum(len(text.splitlines()) for text in every), "", "the same of src")
    unsafe = sum("unsafe {" in line for text in every for line in text.splitlines())
    yield Figure("setuid", "blocks of unsafe", unsafe, "", "grep -rn 'unsafe {' setuid-helper/src | wc -l")
