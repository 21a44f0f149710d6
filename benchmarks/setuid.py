"""Setuid mode: what it costs that a user's image is rebuilt, the first time and later."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, ratio, seconds
from benchmarks.stage import Stage
from sandbox.codec import decode, encode
from sandbox.doctor import packaged_program
from sandbox.images import convert, formats
from sandbox.plan_types import PlanFlag
from sandbox.setuid import HELPER
from tests.support import helper, setuid
from tests.support.launcher import source

_RUNS = 300
_REBUILDS = 5
# Launches the plans by turns, as an ordinary user, and prints the median seconds of each.
_BY_TURNS = """
import json, os, statistics, sys, time
helper, runs, *plans = sys.argv[1:]
times = [[] for _ in plans]
for turn in range(int(runs) + 5):
    for taken, plan in zip(times, plans):
        fds = [os.open(path, os.O_RDONLY) for path in (plan, plan + '.env')]
        for fd in fds:
            os.set_inheritable(fd, True)
        start = time.perf_counter()
        pid = os.posix_spawn(helper, [helper, 'run', *map(str, fds), '--', '/bin/true'], {})
        assert os.waitpid(pid, 0)[1] == 0
        if turn >= 5:
            taken.append(time.perf_counter() - start)
        for fd in fds:
            os.close(fd)
print(json.dumps([statistics.median(taken) for taken in times]))
"""


def rebuilt(stage: Stage) -> Iterator[Figure]:
    """An image of a user's against one of root's; both the ziglang wheel."""
    if stage.root is None or not os.access(packaged_program("sandbox-helper"), os.X_OK):
        return
    area = stage.user.directory / "setuid"
    area.mkdir(mode=0o755)
    identities = {False: stage.root.who, True: stage.user.who}
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(setuid.installed(identities, Path(stage.user.sandbox), area / "system"))
        helper.prepare(system)
        launcher = helper.Helper(system, stage.user.who, area)
        stack.callback(launcher.finish)
        launcher.policy(helper.WITH_BUILDER)
        image = area / "zig.sfs"
        _convert(stage.wheel, image, launcher.uid, launcher.gid)
        remade: list[float] = []
        first: list[float] = []
        for times, flag in ((remade, PlanFlag(0)), (first, PlanFlag.KEEP_IMAGES)):
            for _ in range(2 if stage.user.quick else _REBUILDS):
                os.utime(image)  # another state of it, so it is made anew
                plan = _flagged(launcher.image_plan(source(image), dynamic=False), flag)
                start = time.monotonic()
                launcher.check(plan, "true", "")
                times.append(time.monotonic() - start)
        mib = image.stat().st_size >> 20
        shown = "sandbox-helper run PLAN ENV -- true"
        yield seconds("rebuilt", f"rebuilt in memory ({mib} MiB, 375 MB unpacked)", min(remade), command=shown)
        yield seconds("rebuilt", "first launch that keeps it", min(first), command=shown)
        roots = launcher.images / "zig.sfs"
        shutil.copyfile(image, roots)
        plans = [plan, launcher.image_plan(launcher.source(roots), dynamic=False)]
        runs = 40 if stage.user.quick else _RUNS
        for state in ("cold", "warm"):
            again, base = _by_turns(launcher, plans, runs)
            what = f"a ready plan with an image of root's, {state} loop"
            yield seconds("rebuilt", what, base, command=shown)
            what = f"later launch of a rebuilt image / of root's, {state}"
            yield ratio("rebuilt", what, again, base, command=shown, bar=1.05)
            if state == "cold":  # from now on another sandbox has each of them mounted
                holding = [launcher.start(plan, "sh", "-c", "echo; read x", stdin=subprocess.PIPE) for plan in plans]
                for process in holding:
                    process.stdout.readline()
        for process in holding:
            process.communicate("\n")
        roots.unlink()


def _convert(wheel: Path, image: Path, uid: int, gid: int) -> None:
    with open(wheel, "rb") as file:
        made = convert.image_in_memory(
            file.fileno(), formats.Kind.ZIP, label="the wheel", max_unpacked=1 << 32, uid=uid, gid=gid
        )
    os.lseek(made, 0, os.SEEK_SET)
    with open(made, "rb") as data, open(image, "xb") as out:
        shutil.copyfileobj(data, out)
    os.chown(image, uid, gid)


def _flagged(plan: bytes, flag: PlanFlag) -> bytes:
    decoded = decode(plan)
    return encode(decoded.replace(flags=decoded.flags | flag))


def _by_turns(launcher: helper.Helper, plans: list[bytes], runs: int) -> list[float]:
    names = []
    for number, plan in enumerate(plans):
        names.append(str(launcher.area / f"plan-{number}"))
        Path(names[-1]).write_bytes(plan)
        Path(f"{names[-1]}.env").write_bytes(b"PATH=/usr/bin:/bin\0")
    command = ["/usr/bin/python3", "-I", "-S", "-c", _BY_TURNS, HELPER, str(runs), *names]
    process = launcher.as_user(*command, stdout=subprocess.PIPE, stderr=sys.stderr)
    return [float(value) for value in json.loads(process.communicate()[0])]
