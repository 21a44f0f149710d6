"""The account of a run, as JSON: how it ended and what it used (docs/report.md), and its phases as a trace.

What is known before the command starts is the start of the text. An engine appends the rest: the native one is
handed that start, as this process is gone by then.
"""

import contextlib
import enum
import json
import os
import stat
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, Protocol

from sandbox import __version__, fsops
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, UsageError, line, printable, reason
from sandbox.level_steps import Bind, Text
from sandbox.outputs import is_descriptor
from sandbox.plan import Attach, Erofs, Extract, Fuse, Image, Overlay, Part, Plan, Scratch, Stack, Tmpfs, Tree
from sandbox.plan_types import Attr, Base
from sandbox.sources import Opened

SCHEMA = 1


class Kind(enum.IntEnum):
    """What is written, and when: the account or its trace in the end, a line for each event or step as it happens."""

    REPORT = 1
    TRACE = 2
    STATUS = 3
    STEPS = 4


class Phase(NamedTuple):
    """A part of the launch, in nanoseconds of the monotonic clock."""

    name: str
    start_ns: int
    end_ns: int


class Target(NamedTuple):
    """Where a report goes: `name` in the directory `fd`, or `fd` itself."""

    fd: int
    name: bytes
    kind: Kind


class Outcome(Protocol):
    """What an engine knows in the end."""

    phases: list[Phase]

    def facts(self) -> dict[str, Any]: ...


class Reporter:
    """What to tell of one run, and to whom."""

    def __init__(
        self,
        report: bytes | None,
        trace: bytes | None,
        command: tuple[bytes, ...],
        account: int | None = None,
        status: int | None = None,
    ) -> None:
        self.origin_ns = self.last_ns = time.monotonic_ns()
        self.phases: list[Phase] = []
        self.targets: list[Target] = []
        self.mode = 0o666
        # By hand, as below: each json.dumps shows in what a launch from a warm Python takes.
        started = datetime.now(UTC).isoformat(timespec="microseconds")
        words = ", ".join(encode_basestring_ascii(os.fsdecode(word)) for word in command)
        self.head = f'"schema": {SCHEMA}, "sandbox": "{__version__}", "started": "{started}", "command": [{words}]'
        self.described = _UNDESCRIBED
        self.steps: list[bytes] = []
        self.is_incomplete = False
        for text, option, kind in ((report, "--report", Kind.REPORT), (trace, "--trace", Kind.TRACE)):
            if text is not None:
                self.targets.append(open_target(text, option, kind))
        if status is not None:
            self.targets.append(open_target(b"fd:%d" % status, "--status-fd", Kind.STATUS))
        if any(target.name for target in self.targets):
            self.mode &= ~_umask()
        if account is not None:
            # For whoever called, whatever else was asked for.
            self.targets.append(Target(os.dup(account), b"", Kind.REPORT))

    def describe(self, plan: Plan, engine: str, level: str, trees: list[Opened], home_fd: int) -> None:
        """What the compiled plan says. Raises SourceError when an image changes while it is read."""
        if self._of(Kind.REPORT):
            self.described = description(plan, engine, level, trees, home_fd)

    def tell_steps(self, lines: list[bytes]) -> None:
        """Say these, each when its step is done. They are handed to an engine with their ends."""
        self.steps = lines
        self.targets.append(Target(os.dup(2), b"", Kind.STEPS))

    @property
    def is_live(self) -> bool:
        """Whether anybody wants to be told while the launch goes on."""
        return any(target.kind in (Kind.STATUS, Kind.STEPS) for target in self.targets)

    def event(self, event: str, **facts: Any) -> None:
        """A line of the status. Who does not listen is told nothing, and stops nothing."""
        self._tell(Kind.STATUS, json.dumps({"event": event, **facts}).encode() + b"\n")

    def step_done(self, number: int) -> None:
        """The steps count from 0; what is marked before and after them has no line."""
        if 0 <= number < len(self.steps):
            self._tell(Kind.STEPS, line("step", os.fsdecode(self.steps[number][:-1])).encode())

    def _tell(self, kind: Kind, line: bytes) -> None:
        for target in self._of(kind):
            with contextlib.suppress(SandboxError):
                write_target(target, line, self.mode)

    def _of(self, kind: Kind) -> list[Target]:
        return [target for target in self.targets if target.kind is kind]

    def close(self) -> None:
        for target in self.targets:
            os.close(target.fd)
        self.targets = []

    def phase(self, name: str) -> None:
        """A phase ends now; the next one starts."""
        now = time.monotonic_ns()
        self.phases.append(Phase(name, self.last_ns, now))
        self.last_ns = now

    def handed_over(self) -> Iterator[tuple[bytes, int]]:
        """For a native engine: what it is to finish, and the descriptor where that goes (docs/plan.md, section 9)."""
        for target in self.targets:
            mode, name = self.mode, target.name
            head = struct.pack("<BIQI", target.kind, mode, self.origin_ns, len(name)) + name
            yield head + self._start(target), target.fd

    def _start(self, target: Target) -> bytes:
        """The text up to and without the end of the list of phases; the lines of all steps; for a status nothing."""
        if target.kind in (Kind.STATUS, Kind.STEPS):
            return b"".join(self.steps) if target.kind is Kind.STEPS else b""
        events = ", ".join(self._event(phase, target, thread=1) for phase in self.phases)
        if target.kind is Kind.TRACE:
            return f'{{"displayTimeUnit": "ms", "traceEvents": [{events}'.encode()
        return f'{{{self.head}, {self.described}, "phases": [{events}'.encode()

    def _event(self, phase: Phase, target: Target, *, thread: int) -> str:
        start, length = (phase.start_ns - self.origin_ns) // 1000, (phase.end_ns - phase.start_ns) // 1000
        name = encode_basestring_ascii(phase.name)
        if target.kind is Kind.TRACE:
            return f'{{"name": {name}, "ph": "X", "pid": 1, "tid": {thread}, "ts": {start}, "dur": {length}}}'
        return f'{{"name": {name}, "start_us": {start}, "us": {length}}}'

    def finish(self, outcome: Outcome) -> None:
        """Write everything. Raises SandboxError at the end: a command that is in the way of one spoils no other."""
        wrong: list[SandboxError] = []
        facts = {"ended": datetime.now(UTC).isoformat(timespec="microseconds"), **outcome.facts()}
        self.event("ended", **{name: facts[name] for name in _ENDING})
        for target in (*self._of(Kind.REPORT), *self._of(Kind.TRACE)):
            more = "".join(", " + self._event(phase, target, thread=2) for phase in outcome.phases)
            rest = "" if target.kind is Kind.TRACE else ", " + _text(facts)
            try:
                write_target(target, self._start(target) + f"{more}]{rest}}}\n".encode(), self.mode)
            except SandboxError as error:
                wrong.append(error)
        if wrong:
            self.is_incomplete = True
            raise wrong[0]

    def failed(self, error: BaseException) -> None:
        """Write that the launch failed here. Whatever is wrong with the report, the failure itself is what counts."""
        if self.is_incomplete:  # Then the command has ended, and it is the report that failed.
            return
        with contextlib.suppress(SandboxError):
            self.phase("Fail")
            self.finish(_Failed(error))


def description(plan: Plan, engine: str, level: str, trees: list[Opened], home_fd: int) -> str:
    """What a compiled plan says of every run of it, as members of a JSON object.

    Raises SourceError when an image changes while it is read.
    """
    layers = [layer for tree in trees for layer in tree.layers]
    images = [_image(layer, home_fd) for layer in layers if layer.status is not None]
    facts = {"mode": plan.mode.name.lower(), "engine": engine, "level": level}
    sockets = None if level == "none" else _sockets(plan)
    return _text({**facts, "images": images, "mounts": _mounts(plan), "sockets": sockets})


def _text(members: dict[str, Any]) -> str:
    """The members of a JSON object, without its braces."""
    return json.dumps(members)[1:-1]


_UNDESCRIBED = _text({**dict.fromkeys(("mode", "engine", "level")), "images": [], "mounts": [], "sockets": None})


def _sockets(plan: Plan) -> list[str]:
    from sandbox import sockets

    return [os.fsdecode(path) for path in sockets.reachable(plan, sockets.bound())]


def _umask() -> int:
    """From /proc (proc_pid_status(5), Linux 4.7): umask(2) can only be asked by changing it, for all threads."""
    with open("/proc/self/status", "rb") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))


def _image(tree: Opened, home_fd: int) -> dict[str, Any]:
    from sandbox.images.store import Store

    with Store(home_fd) as images:
        digest = None if tree.is_directory else "sha256:" + images.digest_of(tree.fd, tree.label).decode()
    return {
        "name": os.fsdecode(tree.name),
        "source": os.fsdecode(os.path.abspath(tree.path)),
        "use": tree.kind.value,
        "digest": digest,
    }


def _mounts(plan: Plan) -> list[dict[str, Any]]:
    """Every mount that is attached, in order; one below the procdir without its beginning, which each run has anew."""
    made: dict[int, tuple[str, bytes]] = {}
    mounts = []
    for step in plan.steps:
        match step:
            case Overlay(slot, lowers) | Stack(slot, lowers):
                made[slot] = ("overlay", made[lowers[-1]][1])
            case Tmpfs(slot) | Part(slot) | Text(slot):
                made[slot] = ("file" if isinstance(step, Text) else "tmpfs", b"")
            case Scratch(source, slot, overlay):
                made[slot] = made[overlay] = ("directory", plan.sources[source].path)
            case Tree(slot, source):
                made[slot] = ("directory", plan.sources[source].path)
            case Image(slot, source) | Erofs(slot, source) | Fuse(slot, source):
                made[slot] = ("image", plan.sources[source].path)
            case Extract(slot, source):
                made[slot] = ("tmpfs", plan.sources[source].path)
            case Bind(slot, origin_place):
                made[slot] = ("directory", origin_place.path)
            case Attach(slot, place, attrs):
                path = place.path if place.base == Base.ROOT else b"/".join((b"PROCDIR", place.path)).rstrip(b"/")
                kind, origin = made[slot]
                where = {"on": os.fsdecode(path), "kind": kind, "source": os.fsdecode(origin) or None}
                mounts.append({**where, "read_only": bool(attrs & Attr.READ_ONLY)})
    return mounts


_ENDING = ("ended", "cause", "limit", "error", "exit_code", "signal")
# What there is to tell only of a command that was started.
UNKNOWN = dict.fromkeys(
    (
        "wall_seconds",
        "user_seconds",
        "system_seconds",
        "peak_memory_bytes",
        "peak_memory_of",
        "processes",
        "oom_kills",
        "forks_refused",
        "read_bytes",
        "written_bytes",
        "discarded",
        "kept",
        "refused_calls",
    )
)


class _Failed:
    """The outcome of a launch that this process could not make."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.phases: list[Phase] = []

    def facts(self) -> dict[str, Any]:
        text = reason(self.error) if isinstance(self.error, OSError) else str(self.error)
        code = getattr(self.error, "exit_code", EXIT_LAUNCHER_FAILED)
        ending = {"cause": "launcher", "limit": None, "error": text, "exit_code": code, "signal": None}
        return {**ending, **UNKNOWN}


def open_target(text: bytes, option: str, kind: Kind = Kind.REPORT) -> Target:
    """Opened before anything else is done: a report that cannot be written is to be known before the command runs.

    `text` is FILE, - or fd:N. The caller closes the descriptor. Raises UsageError, which names the option.
    """
    if not text:
        raise UsageError(f"{option}: the value is empty", hint="FILE, -, or as in fd:3")
    if is_descriptor(text):
        digits = b"1" if text == b"-" else text[3:]
        try:
            if not digits.isdigit():
                raise UsageError(f"{option}: '{printable(text)}' names no descriptor", hint="FILE, -, or as in fd:3")
            return Target(_own_descriptor(int(digits)), b"", kind)
        except (OSError, OverflowError, ValueError):
            raise UsageError(f"{option}: descriptor {printable(digits)} is not open for writing") from None
    parent, name = os.path.split(text)
    try:
        if name in (b"", b".", b".."):
            raise IsADirectoryError(21, os.strerror(21))
        fd = os.open(parent or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_replaceable(fd, name, text, option, or_else=", or a descriptor as in fd:3")
            with fsops.Draft(fd):
                pass
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        hint = "name a file in a directory that you may write to, - or fd:N"
        raise UsageError(f"{option}: cannot write {printable(text)}: {reason(error)}", hint=hint) from None
    return Target(fd, name, kind)


def _own_descriptor(number: int) -> int:
    """A copy, and for all but the standard ones in place of the original: it is not for the command."""
    import fcntl

    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, os.strerror(9))
    copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    if number > 2:
        os.set_inheritable(number, False)
    return copy


def check_replaceable(parent: int, name: bytes, text: bytes, option: str, *, or_else: str = "") -> None:
    """What we write takes the place of an own regular file and of nothing else. Raises UsageError.

    `or_else` is what the option takes beside names.
    """
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    what = f"{option}: {printable(text)}"
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{what} is there and no regular file", hint=f"name a new file{or_else}")
    if found.st_uid != os.geteuid():
        raise UsageError(f"{what} belongs to somebody else", hint="name a new file")


def write_target(target: Target, data: bytes, mode: int) -> None:
    """Put all of it where it belongs, complete or not at all. Raises SandboxError."""
    try:
        if target.name:
            fsops.replace_file(target.fd, target.name, data, mode=mode, durable=True)
            return
        while data:
            data = data[os.write(target.fd, data) :]
    except OSError as error:
        what = "trace" if target.kind is Kind.TRACE else "report"
        hint = f"the command has ended as it has; only its {what} is missing"
        where = f"the {what} {printable(target.name)}".rstrip()
        raise SandboxError(f"cannot write {where}: {reason(error)}", hint=hint) from None
