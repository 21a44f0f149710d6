"""A native program with a ready plan, timed from spawn to exit; no Python in what is measured.

Also a script, so that it can run as the user and in the mount namespace that a figure is about: reads its order as
JSON from standard input, writes the medians as JSON.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from sandbox import launch
from sandbox.cli.run import parse
from sandbox.codec import encode

Attempt = Callable[[], None]
# Descriptors stand in it as numbers.
Command = Sequence[str | int]


def ready(program: str, environment: Mapping[str, str], argv: Sequence[str], stack: contextlib.ExitStack) -> Command:
    """The program's command line for what `sandbox run ARGV` compiles to."""
    spec = parse([os.fsencode(word) for word in argv])[0]
    environ = {os.fsencode(key): os.fsencode(value) for key, value in environment.items()}
    prepared = launch.prepare(spec, environ, stack, say=lambda _: None, hint=lambda _: None)
    fds = []
    for name, data in (("plan", encode(prepared.compiled.plan)), ("env", b"PATH=/usr/bin:/bin\0")):
        fd = os.memfd_create(name, 0)
        stack.callback(os.close, fd)
        os.write(fd, data)
        fds.append(fd)
    return [program, "run", *fds, "--", *argv[argv.index("--") + 1 :]]


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
        json.dump(by_turns(attempts, order["runs"]), sys.stdout)


if __name__ == "__main__":
    main()
