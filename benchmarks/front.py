"""`sandbox run` as it is typed, its launch compiled before, against what people use today and against the floor."""

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import ready as ready_script
from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.stage import Stage
from tests.support import archives

_RUNS = 300
_LAUNCHES = 2000
_MANY = 1000


def front(stage: Stage) -> Iterator[Figure]:
    """From spawn to exit, by turns, as root and as an ordinary user in a user namespace."""
    for bench in filter(None, (stage.root, stage.user)):
        who = "root" if bench is stage.root else "userns"
        plain = _command(bench)
        peers = [["bwrap", "--dev-bind", "/", "/", "/bin/true"], [floor(stage), "/bin/true"]]
        ours, bwrap, least = medians(stage, bench, [plain, *peers])
        shown = bench.shown(plain)
        yield seconds("front", f"sandbox run -- true, {who}", ours, command=shown)
        yield ratio("front", f"the same / bubblewrap, {who}", ours, bwrap, command=bench.shown(peers[0]), bar=0.85)
        yield ratio("front", f"the same / the floor, {who}", ours, least, command="benchmarks/floor.c", bar=1.3)
        yield _job(stage, bench, who)
        yield from _throughput(bench, plain, peers[0], who)
    if stage.root is not None:
        yield from _images(stage, stage.root)


def _command(bench: Bench, *options: str, command: Sequence[str] = ("/bin/true",)) -> list[str]:
    """As typed; run once, so that it is compiled."""
    words = [bench.sandbox, "run", *options, "--", *command]
    bench.run([*words[: words.index("--") + 1], "/bin/true"])
    return words


def floor(stage: Stage) -> str:
    """The program that does the least, compiled once."""
    program = stage.user.directory.parent / "floor"
    if not program.exists():
        source = str(Path(__file__).with_name("floor.c"))
        subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
    return str(program)


def medians(stage: Stage, bench: Bench, commands: list[list[str]], runs: int = _RUNS) -> list[float]:
    """Measured by a process of the identity's."""
    script = Path(shutil.copy(ready_script.__file__, bench.directory / "ready.py"))
    found = [[shutil.which(command[0]) or command[0], *command[1:]] for command in commands]
    order = {"environment": bench.environment, "peers": found, "ready": [], "runs": 40 if bench.quick else runs}
    options = {"cwd": bench.directory, "input": json.dumps(order), "text": True, "capture_output": True}
    done = subprocess.run([str(stage.python), str(script)], check=False, **options, **bench.who.popen_options())  # type: ignore[call-overload]
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return list(map(float, json.loads(done.stdout)))


def _images(stage: Stage, bench: Bench) -> Iterator[Figure]:
    image = archives.make_squashfs(bench.directory / "front.sfs", [archives.Entry("f", b"x")])
    plain = _command(bench)
    static = _command(bench, "-s", f"i:{image}")
    script = f"mount -t squashfs -o ro,loop {image} /mnt && exec /bin/true"
    cold, peer = medians(stage, bench, [static, ["unshare", "-m", "/bin/sh", "-c", script]], _RUNS // 3)
    shown = bench.shown(static)
    yield ratio("front", "static image, cold loop / unshare -m and mount", cold, peer, command=shown, bar=0.8)
    dynamic = _command(bench, "-d", f"zig:{stage.wheel}", "--cache")
    with _running(bench, [*static[:-1], "sleep", "1000"]), _running(bench, [*dynamic[:-1], "sleep", "1000"]):
        base, warm, wheel = medians(stage, bench, [plain, static, dynamic])
    yield ratio("front", "static image already in use / sandbox run -- true", warm, base, command=shown, bar=1.1)
    yield ratio(
        "front", "dynamic ziglang, cached / sandbox run -- true", wheel, base, command=bench.shown(dynamic), bar=1.3
    )


def _job(stage: Stage, bench: Bench, who: str) -> Figure:
    job = _command(bench, "--isolation", "job")
    peer = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    ours, theirs = medians(stage, bench, [job, [*peer, "/bin/true"]])
    bar = 0.7 if who == "root" else 0.8
    return ratio("front", f"a job / {' '.join(peer)}, {who}", ours, theirs, command=bench.shown(job), bar=bar)


@contextlib.contextmanager
def _running(bench: Bench, command: Sequence[str]) -> Iterator[None]:
    """While another sandbox runs."""
    with subprocess.Popen(command, env=bench.environment, cwd=bench.directory) as process:
        time.sleep(0.5)
        yield
        process.terminate()


def _throughput(bench: Bench, ours: list[str], bwrap: list[str], who: str) -> Iterator[Figure]:
    """Launches per second with two at a time."""
    count = 200 if bench.quick else _LAUNCHES
    rates = [count / _two_at_a_time(bench, command, count) for command in (ours, bwrap)]
    shown = f"{count} x {bench.shown(ours)}, two at a time"
    yield Figure("front", f"launches per second, {who}", rates[0], "/s", shown)
    result = rates[0] / rates[1]
    yield Figure("front", f"launches per second / bubblewrap's, {who}", result, "x", shown, ">= 1.2", result >= 1.2)


def _two_at_a_time(bench: Bench, command: list[str], count: int) -> float:
    """Seconds; started by a process of the identity's, which costs the same for both."""
    argv = [shutil.which(command[0]) or command[0], *command[1:]]
    script = f"seq {count} | xargs -P 2 -I@ {' '.join(argv)}"
    start = time.monotonic()
    bench.run(["sh", "-c", script])
    return time.monotonic() - start


def many(stage: Stage) -> Iterator[Figure]:
    """A thousand at once on one image, started by two shells."""
    if (bench := stage.root) is None:
        return
    count = 100 if bench.quick else _MANY
    image = archives.make_squashfs(bench.directory / "many.sfs", [archives.Entry("f", b"x")])
    plain = _command(bench)
    static = _command(bench, "-s", f"i:{image}", command=("sleep", "10000"))
    (alone,) = medians(stage, bench, [plain])
    before = _loop_devices()
    started: list[subprocess.Popen[bytes]] = []
    threads = [threading.Thread(target=_start, args=(bench, static, count // 2, started)) for _ in range(2)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        pids = [process.pid for process in started]
        while sum(_is_running(pid) for pid in pids) < count and time.monotonic() < start + 120:
            time.sleep(0.02)
        elapsed = time.monotonic() - start
        alive = sum(_is_running(pid) for pid in pids)
        loops = _loop_devices() - before
        pss = sum(_pss(pid) for pid in pids) / max(alive, 1)
        (among,) = medians(stage, bench, [plain])
    finally:
        for process in started:
            process.terminate()
        codes = [process.wait() for process in started]
    shown = f"{count} x {bench.shown(static)}"
    yield Figure("many", f"of {count} at once, running", alive, "", shown, f"{count}", alive == count)
    yield seconds("many", "time to start them all, per sandbox", elapsed / count, command=shown)
    yield Figure("many", "loop devices", loops, "", shown, "1", loops == 1)
    yield Figure(
        "many",
        "PSS of a sandbox without its command",
        pss,
        " kB",
        "grep Pss: /proc/PID/smaps_rollup",
        "<= 400",
        pss <= 400,
    )
    yield ratio(
        "many",
        f"sandbox run -- true with {count} running / with none",
        among,
        alone,
        command=bench.shown(plain),
        bar=1.2,
    )
    ended = sum(code == -15 for code in codes)
    yield Figure("many", "ended cleanly", ended, "", shown, f"{count}", ended == count)


def _start(bench: Bench, command: list[str], count: int, started: list[subprocess.Popen[bytes]]) -> None:
    options = {"env": bench.environment, "cwd": bench.directory, "stdin": subprocess.DEVNULL}
    started.extend(subprocess.Popen(command, **options) for _ in range(count))  # type: ignore[call-overload]


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any("sleep" in Path(f"/proc/{child}/comm").read_text() for child in inside)
    return False


def _pss(pid: int) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0.0


def _loop_devices() -> int:
    return len(list(Path("/sys/block").glob("loop*/loop/backing_file")))
