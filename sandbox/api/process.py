"""A command that runs in a sandbox: `Process`, shaped like subprocess.Popen, and `AsyncProcess` for asyncio."""

import asyncio
import contextlib
import os
import signal
import subprocess
from types import TracebackType
from typing import IO, Any, AnyStr, Generic, Self

from sandbox import ending
from sandbox.api.result import Result, TimeoutExpiredError, ended_with, refuse_failed_launch
from sandbox.api.start import Start, cannot_start

# How long what was asked to end may take for it. Seconds.
GRACE = 2.0


def kill(start: Start, pid: int) -> None:
    """Kill all that the supervisor has below it, and never itself: it is to clean up. `pid` is not yet waited for."""
    from sandbox.processes import below

    for supervisor in below(pid)[:1] if start.nested else [pid]:
        ending.kill_below(supervisor)


class Process(Generic[AnyStr]):
    """A command in a sandbox. As a context manager it ends the command, if it still runs, and leaves nothing.

    `stdin`, `stdout` and `stderr` are files where PIPE was asked for. Whoever lets go of it without `wait`, `result` or
    `with` leaves the command running, as subprocess does.
    """

    def __init__(self, start: Start, *, text: bool, streams: dict[str, Any]) -> None:
        self._start, self._text = start, text
        self._report: bytes | None = None
        # Undecodable bytes survive, as in names of files.
        how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"} if text else {}
        try:
            self._popen: subprocess.Popen[AnyStr] = subprocess.Popen(
                start.argv,
                executable=start.program,
                pass_fds=start.fds,
                env=start.env,
                cwd=start.cwd,
                **how,
                **streams,
            )
        except OSError as error:
            raise cannot_start(start, error) from None
        except BaseException:
            start.end()
            raise
        start.close()

    @property
    def args(self) -> tuple[bytes, ...]:
        return self._start.args

    @property
    def pid(self) -> int:
        """Of the supervisor: signals that are sent to it reach the command."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        ended = self._popen.returncode
        return None if ended is None else ended_with(ended, self.account)

    @property
    def stdin(self) -> IO[AnyStr]:
        return _stream(self._popen.stdin, "stdin")

    @property
    def stdout(self) -> IO[AnyStr]:
        return _stream(self._popen.stdout, "stdout")

    @property
    def stderr(self) -> IO[AnyStr]:
        return _stream(self._popen.stderr, "stderr")

    def poll(self) -> int | None:
        """The return code if it has ended, else None."""
        self._popen.poll()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The return code. Raises TimeoutExpiredError, and goes on running, when `timeout` seconds are over."""
        try:
            return ended_with(self._popen.wait(timeout), self.account)
        except subprocess.TimeoutExpired:
            raise TimeoutExpiredError(self.args, timeout or 0.0) from None

    def send_signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Ask the command to end."""
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the command and all that it started; the supervisor then cleans up."""
        if self._popen.poll() is None:
            kill(self._start, self._popen.pid)

    def end(self, grace: float | None = None) -> int:
        """Ask for the end, and kill what is left `grace` seconds later (default 2). The return code."""
        if (ended := self.poll()) is not None:
            return ended
        try:
            supervisor = os.pidfd_open(self._popen.pid)
        except ProcessLookupError:  # reaped by the kernel, where this process ignores SIGCHLD
            return self.wait()
        try:
            seconds = GRACE if grace is None else grace
            with contextlib.suppress(ProcessLookupError):
                ending.end(supervisor, self.kill, self._has_ended, grace=seconds, patience=None)
        finally:
            os.close(supervisor)
        return self.wait()

    def _has_ended(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self._popen.returncode is not None

    def result(self, input: AnyStr | None = None, timeout: float | None = None) -> Result[AnyStr]:
        """Feed `input`, read what is captured, wait for the end.

        Raises TimeoutExpiredError after `timeout` seconds, SandboxError when the command could not be started. Nothing
        runs any more when this raises, whatever it raises.
        """
        try:
            out, err = self._popen.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self.end()
            out, err = self._popen.communicate()
            self.account()
            raise TimeoutExpiredError(self.args, timeout or 0.0, out, err) from None
        except BaseException:
            self.close()
            raise
        return finished(self._start, self.wait(), out, err, self.account(), text=self._text)

    def account(self) -> bytes:
        """The report as it was written, once the process has ended."""
        if self._report is None:
            self._report = self._start.end()
        return self._report

    def close(self) -> None:
        """End what still runs, and close what is open."""
        self.end()
        self.account()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finished(start: Start, returncode: int, out: Any, err: Any, account: bytes, *, text: bool) -> Result[Any]:
    """The result of an ended process. Raises SandboxError when the command never ran."""
    nothing = "" if text else b""
    refuse_failed_launch(returncode, account, err or nothing)
    return Result(start.args, returncode, nothing if out is None else out, nothing if err is None else err, account)


def _stream(stream: IO[AnyStr] | None, name: str) -> IO[AnyStr]:
    if stream is None:
        raise ValueError(f"{name} is not a pipe: {name}=subprocess.PIPE makes it one")
    return stream


def _ask(pid: int) -> None:
    """As Process.end does, for a process that was not waited for."""
    with contextlib.suppress(ProcessLookupError):
        supervisor = os.pidfd_open(pid)
        try:
            ending.ask(supervisor)
        finally:
            os.close(supervisor)


class AsyncProcess:
    """The same for asyncio, with bytes; as an `async with` it ends the command if it still runs."""

    def __init__(self, start: Start, process: asyncio.subprocess.Process) -> None:
        self._start, self._process = start, process
        self._report: bytes | None = None

    @classmethod
    async def spawn(cls, start: Start, streams: dict[str, Any]) -> Self:
        """Start it. Raises SandboxError."""
        try:
            process = await asyncio.create_subprocess_exec(
                *start.argv, executable=start.program, pass_fds=start.fds, env=start.env, cwd=start.cwd, **streams
            )
        except OSError as error:
            raise cannot_start(start, error) from None
        except BaseException:
            start.end()
            raise
        start.close()
        return cls(start, process)

    @property
    def args(self) -> tuple[bytes, ...]:
        return self._start.args

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        ended = self._process.returncode
        return None if ended is None else ended_with(ended, self._account)

    @property
    def stdin(self) -> asyncio.StreamWriter:
        if self._process.stdin is None:
            raise ValueError("stdin is not a pipe: stdin=subprocess.PIPE makes it one")
        return self._process.stdin

    @property
    def stdout(self) -> asyncio.StreamReader:
        return _reader(self._process.stdout, "stdout")

    @property
    def stderr(self) -> asyncio.StreamReader:
        return _reader(self._process.stderr, "stderr")

    async def wait(self) -> int:
        return ended_with(await self._process.wait(), self._account)

    async def end(self, grace: float | None = None) -> int:
        """Ask for the end, and kill what is left `grace` seconds later. Goes on to the end when it is cancelled."""
        return await asyncio.shield(self._end(GRACE if grace is None else grace))

    async def _end(self, grace: float) -> int:
        if self._process.returncode is None:
            _ask(self._process.pid)
        # As ending.end: that would keep the loop waiting.
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.wait(), grace)
            grace = ending.LOOK
            if self._process.returncode is None:
                kill(self._start, self._process.pid)

    async def result(self, input: bytes | None = None, timeout: float | None = None) -> Result[bytes]:  # noqa: ASYNC109
        """As Process.result; when it is cancelled, everything that the command started is ended first."""
        try:
            out, err = await asyncio.wait_for(self._process.communicate(input), timeout)
        except TimeoutError:
            await self.close()
            raise TimeoutExpiredError(self.args, timeout or 0.0) from None
        except BaseException:
            await self.close()
            raise
        returncode = await self.wait()
        return finished(self._start, returncode, out, err, self._account(), text=False)

    def _account(self) -> bytes:
        if self._report is None:
            self._report = self._start.end()
        return self._report

    async def close(self) -> None:
        """End what still runs, and close what is open."""
        try:
            await self.end()
        finally:
            self._account()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _reader(stream: asyncio.StreamReader | None, name: str) -> asyncio.StreamReader:
    if stream is None:
        raise ValueError(f"{name} is not a pipe: {name}=subprocess.PIPE makes it one")
    return stream
