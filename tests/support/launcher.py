"""A native program started with plans that a test writes, without `sandbox run` around it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandbox.codec import encode
from sandbox.plan import (
    Attach,
    DeathSignal,
    Guard,
    IdMap,
    NoNewPrivs,
    PlaceEnv,
    Plan,
    SetPropagation,
    Step,
    Tmpfs,
    Unshare,
)
from sandbox.plan_types import Base, Mode, Place, PlanFlag, Source, SourceKind
from tests.support.users import Identity

TOP = Place(Base.PROCDIR, b"")
MEMORY = Source(SourceKind.MEMORY, b"")
NEWNS, NEWUSER = 0x20000, 0x10000000
_TIMEOUT_S = 60

Ended = tuple[int, str, str]


def below(path: str) -> Place:
    """A place in the procdir."""
    return Place(Base.PROCDIR, path.encode())


def at(path: Path) -> Place:
    """A place in the root directory."""
    return Place(Base.ROOT, bytes(path))


def source(path: Path, *, seen_at: Path | None = None) -> Source:
    """What the compiler would write about it. `seen_at` is its name where the engine runs, if that is elsewhere."""
    status = path.stat()
    name = bytes(seen_at or path)
    if path.is_dir():
        return Source(SourceKind.DIRECTORY, name, status.st_dev, status.st_ino)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return Source(SourceKind.FILE, name, status.st_dev, status.st_ino, status.st_size, *times)


def squashfs(tree: Path, path: Path, *options: str) -> Path:
    command = ["mksquashfs", tree, path, "-quiet", "-no-progress", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def memory_file(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


class Launcher:
    """One program, one mode, one user with a home of its own and a tree. `finish` checks that nothing is left."""

    def __init__(self, program: Path, mode: Mode, who: Identity, area: Path) -> None:
        self.program, self.mode, self.who, self.area = program, mode, who, area
        self.uid, self.gid = who.uid, who.gid
        self.home, self.disk, self.tree = area / "home", area / "disk", area / "tree"
        for directory in (self.home, self.home / "procdirs", self.home / "records", self.disk):
            directory.mkdir(mode=0o700)
        (self.tree / "sub").mkdir(parents=True)
        (self.tree / "f").write_text("hello\n")
        (self.tree / "sub/g").write_text("g\n")
        (self.tree / "tool").write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
        (self.tree / "broken").write_text("#!/no/such/interpreter\n")
        for name in ("tool", "broken"):
            (self.tree / name).chmod(0o755)
        for path in (self.home, *self.home.iterdir(), self.disk, self.tree, *self.tree.rglob("*")):
            os.chown(path, self.uid, self.gid)
        self._started: list[subprocess.Popen[str]] = []

    # -- plans ------------------------------------------------------------------------------------------------

    def start_steps(self) -> list[Step]:
        """Namespaces, guard, and a tmpfs on the procdir in slot 0."""
        names: list[Step] = [Unshare(NEWNS)]
        if self.mode == Mode.USERNS:
            names = [Unshare(NEWUSER | NEWNS), IdMap(self.uid, self.uid, self.gid, self.gid)]
        return [*names, SetPropagation(1), Guard(), Tmpfs(0, 1 << 26, 0, 0o700), Attach(0, TOP, 6)]

    def plan(self, *steps: Step, sources: Sequence[Source] = (), flags: int = 0, death: bool = True) -> bytes:
        """An encoded plan with the usual start and end around `steps`; the command has the procdir in $T."""
        end: list[Step] = [NoNewPrivs()] if self.mode == Mode.USERNS else []
        if death:
            end.append(DeathSignal(9))
        return self.raw(*self.start_steps(), *steps, PlaceEnv(b"T", TOP), *end, sources=sources, flags=flags)

    def raw(
        self,
        *steps: Step,
        sources: Sequence[Source] = (),
        flags: int = 0,
        mode: Mode | None = None,
        uid: int | None = None,
        home: Source | None = None,
    ) -> bytes:
        """An encoded plan of these steps and no others."""
        who = self.uid if uid is None else uid
        home = home or source(self.home)
        plan = Plan(mode or self.mode, PlanFlag(flags), who, self.gid, home, tuple(sources), tuple(steps))
        return encode(plan)

    # -- launches ---------------------------------------------------------------------------------------------

    def become(self, then: Callable[[], object] | None = None) -> dict[str, Any]:
        """Keyword arguments of subprocess that make a child this user where the program is; `then` runs last."""
        return {**self.who.popen_options(), **({"preexec_fn": then} if then else {})}

    def start(
        self,
        plan: bytes,
        *command: str,
        fds: dict[int, int] | None = None,
        trees: dict[int, int] | None = None,
        env: bytes | None = b"PATH=/usr/bin:/bin\0",
        pass_fds: Sequence[int] = (),
        pairs: Sequence[str] = (),
        program_env: dict[str, str] | None = None,
        then: Callable[[], object] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """`fds` hands over sources by index, `trees` are sockets by slot; `env` is the command's environment (None: the
        program's own).
        """
        given = [memory_file(plan), *([] if env is None else [memory_file(env)])]
        numbers = [str(given[0]), "-" if env is None else str(given[1])]
        pairs = [*pairs, *(f"{index}={number}" for index, number in (fds or {}).items())]
        pairs += [f"tree={slot},{number}" for slot, number in (trees or {}).items()]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [str(self.program), "run", *numbers, *pairs, "--", *command],
            text=True,
            env={"PATH": "/usr/bin:/bin"} if program_env is None else program_env,
            pass_fds=[*given, *(fds or {}).values(), *(trees or {}).values(), *pass_fds],
            **{"cwd": "/", **pipes, **self.become(then), **options},
        )
        self._started.append(process)
        for fd in given:
            os.close(fd)
        return process

    def run(self, plan: bytes, *command: str, **options: Any) -> Ended:
        """Exit code, output, errors."""
        process = self.start(plan, *command, **options)
        out, err = process.communicate(timeout=_TIMEOUT_S)
        self._started.remove(process)
        return process.returncode, out, err

    def check(self, plan: bytes, script: str, expected: str, code: int = 0, **options: Any) -> None:
        """What a shell script prints."""
        done = self.run(plan, "sh", "-c", script, **options)
        assert done == (code, expected, ""), done

    def refused(self, plan: bytes, *texts: str, **options: Any) -> None:
        """One line, exit code 125, and nothing ran."""
        code, out, err = self.run(plan, "echo", "ran", **options)
        assert (code, out, err.count("\n")) == (125, "", 1), err
        assert err.startswith("sandbox: ")
        for text in texts:
            assert text in err, err

    # -- afterwards -------------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """What is left of launches; never anything, but for a moment."""
        places = [self.home / "procdirs", self.home / "records"]
        found = [str(entry) for place in places for entry in place.iterdir() if not entry.name.startswith(".")]
        return found + [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.area) in line
        ]

    def finish(self) -> None:
        for process in self._started:
            if process.poll() is None:  # a test that failed half-way
                process.terminate()
                process.communicate(timeout=10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        assert wait_until_empty(self.left) == []


def wait_until_empty(look: Callable[[], list[str]]) -> list[str]:
    """What `look` still finds after a while: the kernel detaches loop devices late, orphans take a moment to end."""
    for _ in range(100):
        if not (found := look()):
            break
        time.sleep(0.05)
    return found


def copied(program: Path, area: Path) -> Path:
    """A copy that every identity can execute."""
    return Path(shutil.copy(program, area / program.name))
