"""Jobs of level job, by engine and mode, and a terminal to start them on."""

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, Self

import pytest

from tests.support.modes import native_engine
from tests.support.runner import Runner

COMBINATIONS = [
    ("python", "root"),
    ("native", "root"),
    ("python", "userns"),
    ("native", "userns"),
    ("native", "setuid"),
]


def starter(request: pytest.FixtureRequest, run_sandbox: Runner) -> Callable[..., Any]:
    """`launch(*words, popen=False, **options)` for the combination that a fixture's parameter names."""
    engine, mode = request.param
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    if mode == "root" and os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    head = ["run", "--engine", engine, "--mode", mode, "--isolation", "job"]

    def start(*words: Any, popen: bool = False, **options: Any) -> Any:
        run = run_sandbox.popen if popen else run_sandbox
        return run([*head, *words], as_user=mode != "root", **options)

    start.as_user = mode != "root"  # type: ignore[attr-defined]
    start.engine = engine  # type: ignore[attr-defined]
    start.mode = mode  # type: ignore[attr-defined]
    return start


def spare_python(launch: Any) -> None:
    """What depends on the mode and not on the engine is tried with the native one; with both in `make soak`."""
    if launch.engine == "python" and "SANDBOX_SOAK" not in os.environ:
        pytest.skip("with the Python engine in make soak only")


class Terminal:
    """A pseudo-terminal that a process is started on: `popen_options`, `expect`, `write`, `resize`."""

    def __init__(self) -> None:
        self.main, self.own = pty.openpty()
        self.seen = bytearray()
        self.resize(24, 80)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """The terminal goes, as when its window is closed."""
        for fd in (self.main, self.own):
            if fd >= 0:
                os.close(fd)
        self.main = self.own = -1

    def popen_options(self) -> dict[str, Any]:
        """A session of its own, whose terminal this is."""
        own = self.own

        def take() -> None:
            os.setsid()
            fcntl.ioctl(own, termios.TIOCSCTTY, 0)

        return {"stdin": own, "stdout": own, "stderr": own, "preexec_fn": take}

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def write(self, text: str) -> None:
        os.write(self.main, text.encode())

    def expect(self, words: str, timeout: float = 30) -> None:
        """Read until these words have been printed; what came before them is gone."""
        wanted = words.encode()
        end = time.monotonic() + timeout
        while wanted not in self.seen:
            ready = select.select([self.main], [], [], max(end - time.monotonic(), 0))[0]
            assert ready, f"no {words!r} in {self.seen.decode(errors='replace')!r}"
            try:
                self.seen.extend(os.read(self.main, 4096))
            except OSError:
                raise AssertionError(f"no {words!r} in {self.seen.decode(errors='replace')!r}, and the end") from None
        del self.seen[: self.seen.index(wanted) + len(wanted)]

    def drain(self, process: Any, timeout: float) -> bool:
        """Read, and forget, until the process has ended; False when it takes too long."""
        end = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < end:
            if select.select([self.main], [], [], 0.05)[0]:
                os.read(self.main, 65536)
        return process.poll() is not None

    def mode(self) -> list[Any]:
        """The settings of the terminal (tcgetattr(3))."""
        return termios.tcgetattr(self.own)
