"""What is started for one run: a native engine with a plan, or a Python of its own where only that will do.

Nothing here forks this process, which may have threads, or changes what they share: directory, umask, signals.
"""

import contextlib
import fcntl
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sandbox import dispositions, environment, fsops, host, isolation, launch, outputs, preparing
from sandbox.codec import encode
from sandbox.engine import native
from sandbox.errors import HostError, SandboxError, UsageError, reason, remedy
from sandbox.images import reaper
from sandbox.plan import Extract
from sandbox.plan_types import Mode
from sandbox.preparing import Calling
from sandbox.report import Reporter, description
from sandbox.spec import Spec, is_watched
from sandbox.stored import Consulted

_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")
_LONGEST_REPORT = 16 << 20
# Above the numbers that subprocess takes for its own pipes.
_SPREAD_FROM = 64


class Lanes:
    """Numbers for the runs of this process that go on at the same time: started by root, each gets ids of its own."""

    def __init__(self) -> None:
        self._lock, self._taken = threading.Lock(), set[int]()

    def take(self) -> int:
        """The lowest free one. Raises HostError when all are taken."""
        with self._lock:
            lane = next((number for number in range(isolation.LANES) if number not in self._taken), None)
            if lane is None:
                raise HostError(f"this process has {isolation.LANES} sandboxes running", hint="wait for one to end")
            self._taken.add(lane)
            return lane

    def free(self, lane: int) -> None:
        with self._lock:
            self._taken.discard(lane)


_LANES = Lanes()


class Start:
    """A program to start, with what it inherits; `args` is the command, `account` where the report will be.

    `nested`: what is started has the run's supervisor as its child, and is not itself that. `close` what was lent to
    the program as soon as it has started; `end` gives the report once the program has ended, and keeps nothing.
    """

    def __init__(self, args: tuple[bytes, ...]) -> None:
        self.args = args
        self.program = ""
        self.argv: list[bytes] = []
        self.fds: list[int] = []
        self.env: dict[bytes, bytes] | None = None
        self.cwd: bytes | None = None
        self.nested = False
        self._next = _SPREAD_FROM
        # What undoes it, the last one first: once the program has started, and once it has ended.
        self.lent: list[Callable[[], object]] = []
        self.kept: list[Callable[[], object]] = []
        self.account = os.memfd_create("sandbox-account")
        self.kept.append(partial(os.close, self.account))

    def lend(self, fd: int) -> int:
        """A descriptor that the program gets, closed here once it has it."""
        self.lent.append(partial(os.close, fd))
        return fd

    def share(self, fd: int) -> int:
        """A copy for the program, which has no neighbour.

        Where two that it inherits are neighbours, subprocess reads in /proc which others to close (CPython 3.11): that
        is a tenth of a launch.
        """
        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._next)
        except OSError:  # it may have few numbers (RLIMIT_NOFILE)
            copy = os.dup(fd)
        self._next = copy + 2
        return self.lend(copy)

    def close(self) -> None:
        while self.lent:
            self.lent.pop()()

    def end(self) -> bytes:
        """The report as it was written; empty when the supervisor was killed before it could."""
        self.close()
        try:
            return os.pread(self.account, min(os.fstat(self.account).st_size, _LONGEST_REPORT), 0)
        finally:
            while self.kept:
                self.kept.pop()()


class Ready:
    """A compiled plan with its open sources, for any number of runs at the same time, until `retire`.

    Raises SandboxError for whatever keeps the plan from being made.
    """

    def __init__(self, spec: Spec, cwd: bytes, environ: Mapping[bytes, bytes]) -> None:
        self.spec, self.cwd = spec, cwd
        self._lock, self._users, self._retired = threading.Lock(), 0, False
        self._stack = contextlib.ExitStack()
        asked = Consulted(dict(environ))
        try:
            self._prepared = preparing.prepare(
                spec, dict(os.environb), self._stack, say=_silent, hint=_silent, calling=Calling(cwd, asked)
            )
            self._describe()
            self._plans = {0: self._memory(self._prepared.compiled.plan)}
        except BaseException:
            self._stack.close()
            raise
        self._variables: tuple[Mapping[bytes, bytes], int] | None = None
        self._stack.callback(self._forget_variables)
        self._environ = {name: environ.get(name) for name in asked.names}

    def _describe(self) -> None:
        prepared = self._prepared
        plan = prepared.compiled.plan
        self.version: int | None = None
        self.facts = description(plan, "native", self.spec.isolation, prepared.trees, prepared.home.fd)
        layers = (layer for tree in prepared.trees for layer in tree.layers)
        self._seen = [(os.path.abspath(layer.path), layer.status) for layer in layers if layer.status is not None]
        self._seen += [(os.path.abspath(path), os.stat(path)) for path in self.spec.env_files]
        self._seen.append((prepared.home.run_path, os.fstat(prepared.home.run_fd)))
        # Whoever unpacks a source reads it through the descriptor's own offset, which runs must not share.
        self._unpacked = {step.source for step in plan.steps if isinstance(step, Extract)}

    def _memory(self, plan: Any) -> int:
        """The encoded plan in a file that every run reads, as the program that takes it understands it."""
        from sandbox import setuid, versions

        version = versions.LAST
        if plan.mode is Mode.SETUID:
            plan, version = setuid.acceptable(plan, self._prepared.home.fd, launch.beside_the_plan(self.spec))
        return self._stack.enter_context(fsops.closing(native.memory("sandbox-plan", encode(plan, version))))

    def reap(self) -> None:
        """Start the reaper of a cache that this may have filled, if it is due. Never raises for its sake."""
        with contextlib.suppress(OSError):
            if self.spec.cache and reaper.is_due(self._prepared.home.fd):
                reap(_child(Start((b"sandbox-reaper",)), ("reap", None, None), nested=False))

    def fits(self, cwd: bytes, environ: Mapping[bytes, bytes]) -> bool:
        """Whether this is what would be prepared now."""
        same = cwd == self.cwd and all(environ.get(name) == value for name, value in self._environ.items())
        return same and all(_is_still(path, status) for path, status in self._seen)

    def start(self, command: tuple[bytes, ...], environ: Mapping[bytes, bytes]) -> Start:
        """One run, to be started. The caller closes it."""
        start = Start(command)
        try:
            with self._lock:
                self._users += 1
            start.lent.append(self._release)
            sources = {index: self._own(index, fd, start) for index, fd in self._prepared.launch.fds.items()}
            plan_fd, env_fd = start.share(self._plan(start)), start.share(self._block(environ))
            mode = self._prepared.compiled.plan.mode
            reports = self._reports(command, start)
            told = self.spec.log_format
            given = native.command_line(mode, plan_fd, env_fd, sources, reports, log_format=told)
            start.program, start.argv, start.fds = given[0], [*given[1], *command], given[2]
            start.fds += self.spec.pass_fds
            start.cwd = self.cwd or None
            if mode is Mode.SETUID:
                start.env = {}
        except BaseException:
            start.end()
            raise
        return start

    def _block(self, environ: Mapping[bytes, bytes]) -> int:
        """The variables of the command in a file in memory, as the engine reads them, from the start and by pread."""
        known = self._variables
        if known is None or known[0] != environ:
            env = environment.build(self.spec, environ)
            if (where := self._prepared.surroundings) is not None:
                env |= where.variables(self.spec)
            made = native.memory("sandbox-env", native.environment_block(env))
            self._forget_variables()
            known = self._variables = (environ, made)
        return known[1]

    def _forget_variables(self) -> None:
        if self._variables is not None:
            os.close(self._variables[1])
        self._variables = None

    def _own(self, index: int, fd: int, start: Start) -> int:
        if index not in self._unpacked:
            return start.share(fd)
        return start.lend(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))

    def _plan(self, start: Start) -> int:
        """The plan for a run with ids of its own, where runs have such."""
        prepared = self._prepared
        where = prepared.surroundings
        if where is None or where.ids is None or self.spec.user is not None:
            return self._plans[0]
        lane = _LANES.take()
        start.kept.append(partial(_LANES.free, lane))
        with self._lock:
            if lane not in self._plans:
                own = where.replace(ids=isolation.ids(self.spec, prepared.compiled.plan.mode, lane))
                assert prepared.recompile is not None
                self._plans[lane] = self._memory(prepared.recompile(own).plan)
            return self._plans[lane]

    def _reports(self, command: tuple[bytes, ...], start: Start) -> list[tuple[int, int]]:
        spec = self.spec
        outputs.refuse_shared(spec)
        reporter = Reporter(spec.report, spec.trace, command, start.account, spec.status_fd)
        start.lent.append(reporter.close)
        reporter.described = self.facts
        reporter.phase("Prepare")
        return [
            (start.share(start.lend(native.memory("sandbox-report", data))), start.share(fd))
            for data, fd in reporter.handed_over()
        ]

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            done = self._retired and not self._users
        if done:
            self._stack.close()

    def retire(self) -> None:
        """Let go of everything, once the last run that was to be started has been."""
        with self._lock:
            done = not self._retired and not self._users
            self._retired = True
        if done:
            self._stack.close()


def _is_still(path: bytes, known: os.stat_result) -> bool:
    """Whether a file has not changed, or a directory is the same one: what is in that may change."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    names = ["st_dev", "st_ino"]
    if not stat.S_ISDIR(known.st_mode):
        names += ["st_size", "st_mtime_ns", "st_ctime_ns"]
    return all(getattr(found, name) == getattr(known, name) for name in names)


def has_plan(spec: Spec) -> bool:
    """Whether a run of this spec is nothing but a plan for a native engine.

    Otherwise the launcher has something to do of its own before or after it: be the engine, save what was changed, stay
    beside the run or write its log, be put into a scope of systemd's, take a name from a dead run, start what is behind
    a private network. So it does where this process ignores SIGCHLD: how programs that convert a source end is lost.
    """
    if (
        dispositions.is_ignored()
        or spec.saves
        or spec.name is not None
        or spec.net == "private"
        or is_watched(spec)
        or (spec.limits is not None and spec.limits.controllers)
    ):
        return False
    return _engine(spec) == "native"


def _engine(spec: Spec) -> str:
    return launch.choose_engine(spec.engine, preparing.choose_mode(spec, host.probe()))


def start_python(spec: Spec, cwd: bytes, environ: Mapping[bytes, bytes]) -> Start:
    """A Python that launches: it gets the spec through a file in memory, so nothing of it is seen from outside."""
    start = Start(spec.command)
    calling = Calling(cwd or None, dict(environ), start.account)
    return _child(
        start, ("run", spec, calling), nested=is_watched(spec) or (bool(spec.saves) and _engine(spec) == "native")
    )


def reap(start: Start) -> None:
    """Start the cache's reaper through a Python, as it becomes a daemon: that is not for a process with threads."""
    with contextlib.closing(start):
        subprocess.run(start.argv, pass_fds=start.fds, stdin=subprocess.DEVNULL, check=False)
    start.end()


def _child(start: Start, order: tuple[Any, ...], *, nested: bool) -> Start:
    path = [os.path.abspath(entry) for entry in sys.path]
    data = pickle.dumps((path, pickle.dumps(order)))
    fd = start.lend(native.memory("sandbox-order", data))
    start.program = sys.executable
    start.argv = [os.fsencode(word) for word in (sys.executable, "-I", _CHILD, str(fd))]
    start.fds = [fd, start.account]
    if order[0] == "run":
        start.fds += order[1].pass_fds
        start.fds += [order[1].status_fd] if order[1].status_fd is not None else []
    start.nested = nested
    return start


def absolute(cwd: Any) -> bytes:
    """The directory that a command is to work in, checked. Raises UsageError."""
    if cwd is None:
        try:
            return os.getcwdb()
        except FileNotFoundError:
            return b""
    path = os.fsencode(cwd)
    try:
        path = os.path.abspath(path)
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cwd: {os.fsdecode(path)!r}: {reason(error)}", hint=remedy(error)) from None
    os.close(fd)
    return path


def cannot_start(start: Start, error: OSError) -> SandboxError:
    """What is to be raised when the program itself could not be started."""
    start.end()
    return HostError(f"cannot start {start.program}: {reason(error)}", hint="sandbox doctor looks for what is wrong")


def _silent(_: str) -> None:
    pass
