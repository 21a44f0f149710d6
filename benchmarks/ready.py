"""A native program with a ready plan, timed from spawn to exit; no Python in what is measured.

Also a script, so that it can run as the user and in the mount namespace that a figure is about: reads its order as
JSON from standard input, writes the medians as JSON.
"""

import contextlib
import json
import os
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from sandbox import preparing
from sandbox.cli.run import parse
from sandbox.codec import encode
from sandbox.level_steps import Hide, Hostname, Seccomp, Text
from sandbox.plan import Attach, Chdir, Overlay, Part, Plan, Tmpfs, Tree
from sandbox.plan_types import Base

# docs/plan.md, section 11.
_PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_PROC_MASKED = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
]
Attempt = Callable[[], object]
# Descriptors stand in it as numbers.
Command = Sequence[str | int]


def compiled(environment: Mapping[str, str], argv: Sequence[str], stack: contextlib.ExitStack) -> Plan:
    """What `sandbox run ARGV` compiles to."""
    spec = parse([os.fsencode(word) for word in argv])[0]
    environ = {os.fsencode(key): os.fsencode(value) for key, value in environment.items()}
    return preparing.prepare(spec, environ, stack, say=lambda _: None, hint=lambda _: None).compiled.plan


def ready(program: str, environment: Mapping[str, str], argv: Sequence[str], stack: contextlib.ExitStack) -> Command:
    """The program's command line for what `sandbox run ARGV` compiles to."""
    plan = encode(compiled(environment, argv, stack))
    fds = [_in_memory(name, data, stack) for name, data in (("plan", plan), ("env", b"PATH=/usr/bin:/bin\0"))]
    return [program, "run", *fds, "--", *argv[argv.index("--") + 1 :]]


def _in_memory(name: str, data: bytes, stack: contextlib.ExitStack) -> int:
    fd = os.memfd_create(name, 0)
    stack.callback(os.close, fd)
    os.write(fd, data)
    return fd


def bubblewrap_like(plan: Plan, command: Sequence[str], stack: contextlib.ExitStack) -> Command:
    """The command line of bubblewrap for the same namespaces, mounts, masks, filter and directory."""
    first = [
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
    ]
    line: list[str | int] = ["bwrap", *first]
    slots = {step.slot: step for step in plan.steps if isinstance(step, Tmpfs | Part | Overlay | Tree | Text)}
    for step in plan.steps:
        if isinstance(step, Attach) and step.place.base is Base.ROOT:
            made, place = slots[step.slot], os.fsdecode(step.place.path)
            if isinstance(made, Text):
                line += ["--ro-bind-data", _in_memory("text", made.content, stack), place]
            else:  # bubblewrap before 0.11 has no overlay: a bind does less
                line += ["--tmpfs", place] if isinstance(made, Tmpfs | Part) else ["--bind", place, place]
        elif isinstance(step, Hide):
            line += _hidden(os.fsdecode(step.path))
        elif isinstance(step, Hostname):
            line += ["--hostname", os.fsdecode(step.name)]
        elif isinstance(step, Chdir):
            line += ["--chdir", os.fsdecode(step.place.path)]
        elif isinstance(step, Seccomp):
            line += ["--seccomp", _in_memory("filter", struct.pack(f"<{len(step.filter)}Q", *step.filter), stack)]
    for path in filter(os.path.exists, (f"/proc/{name}" for name in _PROC_READ_ONLY)):
        line += ["--ro-bind", path, path]
    for name in _PROC_MASKED:
        line += _hidden(f"/proc/{name}")
    return [*line, *command]


def _hidden(path: str) -> list[str]:
    if os.path.isdir(path):
        return ["--tmpfs", path, "--remount-ro", path]
    return ["--ro-bind", "/dev/null", path] if os.path.exists(path) else []


def spawn(environment: Mapping[str, str], command: Command) -> Attempt:
    fds = [word for word in command if isinstance(word, int)]
    argv = [str(word) for word in command]

    def attempt() -> None:
        for fd in fds:
            os.lseek(fd, 0, os.SEEK_SET)
        if status := os.waitpid(os.posix_spawn(argv[0], argv, environment), 0)[1]:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")

    for fd in fds:
        os.set_inheritable(fd, True)
    return attempt


def by_turns(attempts: Sequence[Attempt], runs: int) -> list[float]:
    """The median seconds of each."""
    times: list[list[float]] = [[] for _ in attempts]
    for turn in range(runs + 5):
        for taken, attempt in zip(times, attempts, strict=True):
            start = time.perf_counter()
            attempt()
            if turn >= 5:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    order = json.load(sys.stdin)
    environment = order["environment"]
    with contextlib.ExitStack() as stack:
        attempts = [
            spawn(environment, ready(order["program"], environment, argv, stack)) for argv in order["ready"]
        ] + [spawn(environment, argv) for argv in order["peers"]]
        for argv in order.get("like", ()):
            command = bubblewrap_like(compiled(environment, argv, stack), argv[argv.index("--") + 1 :], stack)
            attempts.append(spawn(environment, [shutil.which("bwrap") or "bwrap", *command[1:]]))
        json.dump(by_turns(attempts, order["runs"]), sys.stdout)


if __name__ == "__main__":
    main()
