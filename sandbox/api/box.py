"""`Sandbox`, and the functions beside it: what to run commands in, prepared once and used any number of times."""

import asyncio
import contextlib
import subprocess
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Literal, Self, TypedDict, Unpack, overload

from sandbox import environment
from sandbox.api import shielded
from sandbox.api import start as starting
from sandbox.api.options import CommonOptions, Options, Text, command_words, make_spec, variables
from sandbox.api.process import AsyncProcess, Process
from sandbox.api.result import Result
from sandbox.api.start import Ready, Start
from sandbox.errors import StepError, UsageError
from sandbox.spec import Spec, validate

Stream = int | IO[Any] | None
# Plans kept ready: one for each directory that commands are started in, mostly.
_MOST_READY = 4


class Where(TypedDict, total=False):
    """How a command is started. `env` is the whole environment that it and its options start from."""

    env: Mapping[str, str] | None
    cwd: Text | None
    stdin: Stream
    stdout: Stream
    stderr: Stream


class Waiting(Where, total=False):
    """And how its end is waited for, as in subprocess.run."""

    check: bool
    capture_output: bool
    timeout: float | None


class RunOptions(Waiting, CommonOptions, total=False):
    """All of it, with the options of a sandbox."""


class Sandbox:
    """A sandbox that commands run in, each in a new one that is gone when it ends.

    The keywords are the options of `sandbox run`, `_` for `-` (docs/python.md), or a Spec is given. What they name is
    opened and converted once, before the first command or by `with`, and used by all, from any number of threads; what
    changes on disk, or the directory or variables that count, is noticed, and prepared anew. Raises SandboxError.
    """

    def __init__(self, spec: Spec | None = None, /, **options: Unpack[Options]) -> None:
        if spec is not None and options:
            raise UsageError("a Spec and options", hint="spec.replace(...), or options alone")
        self.spec = make_spec(options) if spec is None else spec
        self._lock = threading.Lock()
        self._ready: list[Ready] = []
        self._finalizer = weakref.finalize(self, _retire, self._ready)

    def prepare(self, *, env: Mapping[str, str] | None = None, cwd: Text | None = None) -> Self:
        """Do now what is done once. Raises SandboxError."""
        spec = self.spec if self.spec.command or self.spec.run else self.spec.replace(command=(b"true",))
        if starting.has_plan(validate(spec)):
            with contextlib.closing(self._begin(spec.command, env, cwd)) as start:
                start.end()
        return self

    def close(self) -> None:
        """Let go of what is open here. What runs, runs on."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self.prepare()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- running ----------------------------------------------------------------------------------------------

    @overload
    def run(
        self, argv: Sequence[Text], *, text: Literal[True], input: str | None = None, **how: Unpack[Waiting]
    ) -> Result[str]: ...

    @overload
    def run(
        self, argv: Sequence[Text], *, text: Literal[False] = False, input: bytes | None = None, **how: Unpack[Waiting]
    ) -> Result[bytes]: ...

    def run(
        self, argv: Sequence[Text], *, text: bool = False, input: Any = None, **how: Unpack[Waiting]
    ) -> Result[Any]:
        """Run a command to its end, as subprocess.run does.

        Raises CommandFailedError with `check`, TimeoutExpiredError after `timeout` seconds, CommandError when it is not
        found or cannot be executed, another SandboxError when the sandbox could not be made.
        """
        where, check, timeout = _streams(how, input)
        made: list[Process[Any]] = []
        try:
            self._spawn(argv, text, where, made)
            with self._forgetting():
                result = made[0].result(input, timeout)
        finally:
            for process in made:
                process.close()
        if check:
            result.check_returncode()
        return result

    @overload
    def spawn(self, argv: Sequence[Text], *, text: Literal[True], **how: Unpack[Where]) -> Process[str]: ...

    @overload
    def spawn(self, argv: Sequence[Text], *, text: Literal[False] = False, **how: Unpack[Where]) -> Process[bytes]: ...

    def spawn(self, argv: Sequence[Text], *, text: bool = False, **how: Unpack[Where]) -> Process[Any]:
        """Start a command, as subprocess.Popen does. Raises SandboxError when the sandbox cannot be prepared."""
        made: list[Process[Any]] = []
        try:
            self._spawn(argv, text, dict(how), made)
            return made[0]
        except BaseException:
            for process in made:
                process.close()
            raise

    def _spawn(self, argv: Sequence[Text], text: bool, how: dict[str, Any], made: list[Process[Any]]) -> None:
        """The process goes into `made`, where it is found whatever is raised meanwhile."""
        words, env, cwd = command_words(argv), how.pop("env", None), how.pop("cwd", None)
        if not self._ready and words and words[0]:
            # It may convert an archive, which can be interrupted.
            self.prepare(env=env, cwd=cwd)

        def launch() -> None:
            made.append(Process(self._begin(words, env, cwd), text=text, streams=how))

        shielded.call(launch)

    async def run_async(
        self,
        argv: Sequence[Text],
        *,
        input: bytes | None = None,
        **how: Unpack[Waiting],
    ) -> Result[bytes]:
        """The same for asyncio. When it is cancelled, everything that the command started is ended first."""
        where, check, timeout = _streams(how, input)
        process = await self._spawn_async(argv, where)
        with self._forgetting():
            result = await process.result(input, timeout)
        if check:
            result.check_returncode()
        return result

    async def spawn_async(self, argv: Sequence[Text], **how: Unpack[Where]) -> AsyncProcess:
        """Start a command, as asyncio.create_subprocess_exec does."""
        return await self._spawn_async(argv, dict(how))

    async def _spawn_async(self, argv: Sequence[Text], how: dict[str, Any]) -> AsyncProcess:
        words, env, cwd = command_words(argv), how.pop("env", None), how.pop("cwd", None)
        # It may convert an archive. A thread cannot be cancelled: what it then makes for nobody is let go of.
        begin = asyncio.ensure_future(asyncio.to_thread(self._begin, words, env, cwd))
        try:
            start = await asyncio.shield(begin)
        except asyncio.CancelledError:
            begin.add_done_callback(_let_go)
            raise
        return await AsyncProcess.spawn(start, how)

    # -- preparing --------------------------------------------------------------------------------------------

    def _begin(self, command: tuple[bytes, ...], env: Mapping[str, str] | None, cwd: Text | None) -> Start:
        """A start, to be closed by the caller. Raises SandboxError."""
        if not self._finalizer.alive:
            raise UsageError("this sandbox is closed", hint="make another one")
        directory = starting.absolute(cwd)
        environ = environment.own() if env is None else variables(env)
        if not command or not command[0]:
            validate(self.spec.replace(command=command))
        with self._lock:
            ready = next((ready for ready in self._ready if ready.fits(directory, environ)), None)
            if ready is None:
                spec = validate(self.spec.replace(command=command))
                if not starting.has_plan(spec):
                    return starting.start_python(spec, directory, environ)
                ready = Ready(spec, directory, environ)
                ready.reap()
                self._ready.insert(0, ready)
            start = ready.start(command, environ)
            _retire(self._ready, keep=_MOST_READY)
        return start

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        """What failed to start is not tried a second time with the same plan."""
        try:
            yield
        except StepError:
            with self._lock:
                _retire(self._ready)
            raise


def _streams(how: Any, given: Any) -> tuple[dict[str, Any], bool, float | None]:
    """What is left for the start, whether to check, and for how long to wait."""
    where = dict(how)
    check, timeout = where.pop("check", False), where.pop("timeout", None)
    if where.pop("capture_output", False):
        if where.keys() & {"stdout", "stderr"}:
            raise UsageError("capture_output, and stdout or stderr", hint="leave one of them out")
        where |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if given is not None:
        if "stdin" in where:
            raise UsageError("input, and stdin", hint="leave one of them out")
        where["stdin"] = subprocess.PIPE
    return where, check, timeout


def _retire(ready: list[Ready], keep: int = 0) -> None:
    for old in ready[keep:]:
        old.retire()
    del ready[keep:]


def _let_go(begin: "asyncio.Future[Start]") -> None:
    if not begin.cancelled() and begin.exception() is None:
        begin.result().end()


def prepare(spec: Spec | None = None, /, **options: Unpack[Options]) -> Sandbox:
    """A sandbox, prepared: what keeps it from being made is raised here. Close it, or use `with`."""
    return Sandbox(spec, **options).prepare()


@overload
def run(
    argv: Sequence[Text], *, text: Literal[True], input: str | None = None, **how: Unpack[RunOptions]
) -> Result[str]: ...


@overload
def run(
    argv: Sequence[Text], *, text: Literal[False] = False, input: bytes | None = None, **how: Unpack[RunOptions]
) -> Result[bytes]: ...


def run(argv: Sequence[Text], *, text: bool = False, input: Any = None, **how: Unpack[RunOptions]) -> Result[Any]:
    """Run a command in a sandbox of its own, as subprocess.run does. The other keywords are Sandbox's.

    Raises what Sandbox and Sandbox.run do.
    """
    waiting, options = _split(how)
    with contextlib.closing(Sandbox(**options)) as box:
        return box.run(argv, text=text, input=input, **waiting)  # type: ignore[call-overload, no-any-return]


async def run_async(
    argv: Sequence[Text],
    *,
    input: bytes | None = None,
    **how: Unpack[RunOptions],
) -> Result[bytes]:
    """The same for asyncio."""
    waiting, options = _split(how)
    with contextlib.closing(await asyncio.to_thread(lambda: Sandbox(**options))) as box:
        return await box.run_async(argv, input=input, **waiting)


def _split(how: Any) -> tuple[Any, Any]:
    names = Waiting.__annotations__.keys() | Where.__annotations__.keys()
    return {k: v for k, v in how.items() if k in names}, {k: v for k, v in how.items() if k not in names}
