"""`SandboxExecutor`: callables and commands, each in a sandbox of its own, as futures.

A callable is pickled and sent in; that is the caller's own data. What comes back is the callable's, and a callable that
is not trusted may send anything: it is read as plain data (wire.py), bounded in size, and never unpickled unless the
caller asked for that with results="pickle".
"""

import builtins
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal, ParamSpec, TypeVar, Unpack

from sandbox.api import interpreter, wire
from sandbox.api.box import Sandbox, Where
from sandbox.api.mailbox import Mailbox
from sandbox.api.options import CommonOptions, Text
from sandbox.api.result import Result
from sandbox.api.wire import CallError
from sandbox.errors import UsageError, printable

P = ParamSpec("P")
T = TypeVar("T")
_CALLEE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "callee.py")
MAX_RESULT = 64 << 20


class SandboxExecutor(Executor):
    """Runs callables with `submit` and `map`, and commands with `submit_command`, `max_workers` at a time.

    The options are those of Sandbox; the level is `job` unless they say otherwise. `timeout` is how many seconds each
    call may take. Results are plain data (numbers, strings, bytes, lists, tuples, sets, dicts) of at most `max_result`
    bytes; results="pickle" takes any, and lets what runs in the sandbox run code in this process.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        timeout: float | None = None,
        results: Literal["data", "pickle"] = "data",
        max_result: int = MAX_RESULT,
        **options: Unpack[CommonOptions],
    ) -> None:
        if results not in ("data", "pickle"):
            raise UsageError(f"results: {results!r} is neither data nor pickle")
        self._timeout, self._results, self._max_result = timeout, results, max_result
        options = {"isolation": "job", **options}
        self._commands = Sandbox(**options)
        self._calls = Sandbox(**interpreter.with_python(options))
        self._pool = ThreadPoolExecutor(max_workers or os.cpu_count(), "sandbox")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it in a sandbox. It must be importable there, as for multiprocessing; a lambda is not.

        The future raises what the callable raised where that is a built-in exception, else CallError; `remote` of it,
        or of its cause, is the traceback. It raises TimeoutExpiredError, and SandboxError when there is no sandbox.
        """
        return self._pool.submit(self._call, fn, args, kwargs)

    def submit_command(self, argv: Sequence[Text], **how: Unpack[Where]) -> "Future[Result[bytes]]":
        """Run a command; both its streams are captured unless they are given."""
        streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        return self._pool.submit(lambda: self._commands.run(argv, timeout=self._timeout, **streams))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As for every executor."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._commands.close()
            self._calls.close()

    def _call(self, fn: Callable[..., Any], args: Any, named: Any) -> Any:
        with contextlib.closing(Mailbox.make(self._job(fn, args, named), self._max_result)) as box:
            argv = [sys.executable, "-I", _CALLEE]
            ended = self._calls.run(argv, stdin=box.fd, timeout=self._timeout)
            return self._value(box.take(), ended)

    def _job(self, fn: Callable[..., Any], args: Any, named: Any) -> bytes:
        try:
            call = pickle.dumps((fn, args, named))
        except Exception as error:
            why = f"cannot send {printable(repr(fn))} into a sandbox: {error}"
            raise CallError(why, hint="a function of a module, and arguments that can be pickled") from None
        main = interpreter.main_program() if b"__main__" in call else {}
        facts = {"results": self._results, "room": self._max_result}
        return pickle.dumps({"path": interpreter.module_path(), "main": main, "call": call, **facts})

    def _value(self, data: bytes, ended: Result[bytes]) -> Any:
        if not data:
            raise CallError(f"the callable gave nothing back: its process ended with {ended.returncode}")
        match wire.load(data):
            case ("value", value):
                return value
            case ("pickle", bytes(pickled)) if self._results == "pickle":
                return pickle.loads(pickled)  # noqa: S301 (asked for)
            case ("refused", str(message), str(hint)):
                raise CallError(printable(message), hint=printable(hint))
            case ("raised", str(kind), list(args), str(text), str(remote)):
                raise _exception(kind, args, CallError(printable(text), remote=remote))
        raise CallError("the sandbox sent what is no result")


def _exception(kind: str, args: list[Any], error: CallError) -> Exception:
    """What was raised, if that is an exception that every Python has; nothing else is made by its name."""
    known = getattr(builtins, kind, None) if kind.isidentifier() else None
    if not (isinstance(known, type) and issubclass(known, Exception)):
        return error
    try:
        made = known(*args)
    except Exception:
        return error
    made.__cause__ = error
    return made
