"""What comes of a command, and the errors that say it went otherwise. Both are their `subprocess` namesakes as well."""

import contextlib
import functools
import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any, AnyStr, Generic

from sandbox import dispositions
from sandbox.errors import (
    EXIT_LAUNCHER_FAILED,
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_TIMED_OUT,
    CommandError,
    SandboxError,
    StepError,
    printable,
)


class Result(Generic[AnyStr]):
    """How a command ended.

    `returncode` is as in subprocess: the exit code, or -N when signal N killed it; 124 when --timeout ended it.
    `stdout` and `stderr` are what was captured, else empty.
    """

    def __init__(
        self, args: tuple[bytes, ...], returncode: int, stdout: AnyStr, stderr: AnyStr, account: bytes
    ) -> None:
        self.args, self.returncode, self._account = args, returncode, account
        self.stdout: AnyStr = stdout
        self.stderr: AnyStr = stderr

    @functools.cached_property
    def report(self) -> dict[str, Any]:
        """The account of the run (docs/report.md); empty when the supervisor was killed before it could write it."""
        return parse_account(self._account)

    @property
    def cause(self) -> str:
        """Why it ended: exited, signalled, timeout, limit or oom; empty when nobody was left to say."""
        return str(self.report.get("cause", ""))

    @property
    def timed_out(self) -> bool:
        """Whether the sandbox's own time limit ended it."""
        return self.cause == "timeout"

    def check_returncode(self) -> None:
        """Raises CommandFailedError unless the command succeeded."""
        if self.returncode:
            raise CommandFailedError(self)

    def __repr__(self) -> str:
        return f"Result(args={self.args!r}, returncode={self.returncode}, cause={self.cause!r})"


class CommandFailedError(SandboxError, subprocess.CalledProcessError):
    """The command ended with something else than 0, and that was to be checked. `result` says all there is to say."""

    def __init__(self, result: Result[Any]) -> None:
        how = f"with {result.returncode}" if result.returncode > 0 else f"of signal {-result.returncode}"
        what = printable(b" ".join(result.args))
        Exception.__init__(self, f"{what}: ended {how}")
        self.message, self.hint = f"{what}: ended {how}", ""
        self.exit_code = self.returncode = result.returncode
        self.cmd, self.output, self.stderr = result.args, result.stdout, result.stderr
        self.result = result

    __str__ = SandboxError.__str__


class TimeoutExpiredError(SandboxError, subprocess.TimeoutExpired):
    """The caller's time was up; everything that the command started has ended. `output` and `stderr` so far."""

    def __init__(self, args: tuple[bytes, ...], timeout: float, output: Any = None, stderr: Any = None) -> None:
        what = f"{printable(b' '.join(args))}: not done after {timeout:g} seconds"
        Exception.__init__(self, what)
        self.message, self.hint = what, ""
        self.cmd, self.timeout, self.output, self.stderr = args, timeout, output, stderr

    __str__ = SandboxError.__str__


def parse_account(account: bytes) -> dict[str, Any]:
    """The report that an engine wrote; empty when there is none."""
    # What fails after an engine has reported is told in one more line.
    with contextlib.suppress(ValueError, IndexError):
        if isinstance(report := json.loads(account.splitlines()[-1]), dict):
            return report
    return {}


def ended_with(waited: int, account: Callable[[], bytes]) -> int:
    """The return code of a process that was waited for, and left this account. Where this process ignores SIGCHLD the
    kernel does not tell it, and Python makes one up.
    """
    if not dispositions.is_ignored():
        return waited
    report = parse_account(account())
    if report.get("cause") == "timeout":
        return EXIT_TIMED_OUT
    if (code := report.get("exit_code")) is not None:
        return int(code)
    # Who leaves no account was killed, and most likely with this one.
    return -int(report.get("signal") or signal.SIGKILL)


def refuse_failed_launch(returncode: int, account: bytes, said: str | bytes) -> None:
    """Raises SandboxError when the command was not started; `said` is what was captured of standard error."""
    if account and returncode not in (EXIT_LAUNCHER_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
        return
    report = parse_account(account)
    if report.get("cause") == "launcher":
        code = int(report.get("exit_code") or 0)
        message = str(report.get("error"))
        if code in (EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND):
            raise CommandError(message, exit_code=code)
        raise StepError(message)
    if not report and returncode > 0:
        text = said if isinstance(said, str) else said.decode("utf-8", "replace")
        lines = text.strip().splitlines() or ["the sandbox ended without a word about it"]
        raise StepError(lines[-1].removeprefix("sandbox: "))
