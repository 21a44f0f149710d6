"""One run of a Spec in a process beside this one, which stays to tell how it went."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sandbox import dispositions
from sandbox.api import start as starting
from sandbox.api.process import Process
from sandbox.api.result import parse_account
from sandbox.record import Record
from sandbox.spec import Spec

# What CI systems, terminals and shutdowns send.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_CHUNK = 1 << 16
_LOOK_MS = 100
# How long a command that was asked to end may take. Seconds.
GRACE = 10.0


class Ended(Record):
    """`returncode` as in subprocess: -N when signal N killed it. `report` is docs/report.md's, empty when nobody wrote
    one; `signals` are those that this process got meanwhile."""

    returncode: int
    report: Mapping[str, Any]
    signals: tuple[int, ...]

    @property
    def exit_code(self) -> int:
        """As a shell tells it: 128 and the signal's number."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def was_launched(self) -> bool:
        """Whether the command was started at all."""
        return str(self.report.get("cause", "launcher")) != "launcher"


def run(
    spec: Spec,
    environ: dict[bytes, bytes],
    *,
    relay: Callable[[bytes], None] | None = None,
    grace: float = GRACE,
    **streams: Any,
) -> Ended:
    """Run it to its end. A launch that fails has printed its line by then.

    With `relay`, both outputs of the command go through that instead of to this process's. A signal that ends things is
    passed on; what is left `grace` seconds later is killed. If this process is killed, all is.
    """
    with contextlib.ExitStack() as stack:
        wake = stack.enter_context(_signals())
        output = -1
        if relay is not None:
            # Of our own: what is written to the log besides could be read back from a pipe that the command has.
            output, theirs = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, output)
            # Root's jobs are somebody else, and scripts open /dev/stdout. Nobody gets at it who does not hold it.
            os.fchmod(theirs, 0o666)
            streams |= {"stdout": theirs, "stderr": theirs}
        start = starting.start_python(spec, b"", environ)
        parent = os.getpid()
        try:
            process = Process[bytes](start, text=False, streams={**streams, "preexec_fn": lambda: _die_with(parent)})
        finally:
            if relay is not None:
                os.close(theirs)
        with process:
            signals = _wait(process, wake, output, relay, grace)
            returncode = process.wait()
        return Ended(returncode, parse_account(process.account()), tuple(signals))


def _die_with(parent: int) -> None:
    """In the child: whoever is to tell how it went, and to pass signals on, was killed."""
    import prctl

    dispositions.give_back()
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that signals arrive at as bytes. What is ignored stays so."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.getsignal(number) for number in _ENDING}
    kept = signal.set_wakeup_fd(writer)
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(kept)
        os.close(reader)
        os.close(writer)


def _wait(
    process: Process[bytes], wake: int, output: int, relay: Callable[[bytes], None] | None, grace: float
) -> list[int]:
    """Until it has ended and its output was passed on. The signals that came meanwhile."""
    signals: list[int] = []
    deadline = None
    poller = select.poll()
    for fd in (wake, output):
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    pidfd = os.pidfd_open(process.pid)
    try:
        poller.register(pidfd, select.POLLIN)
        while True:
            late = deadline is not None and time.monotonic() >= deadline
            if late:
                process.kill()
            ready = {fd for fd, _ in poller.poll(None if deadline is None else _patience_ms(deadline))}
            if wake in ready:
                signals += _pass_on(process, wake)
                deadline = deadline or time.monotonic() + grace
            if output in ready and relay is not None and not _relay(output, relay):
                poller.unregister(output)
            if pidfd in ready and output not in ready:
                return signals
    finally:
        os.close(pidfd)


def _patience_ms(deadline: float) -> int:
    return max(_LOOK_MS, round((deadline - time.monotonic()) * 1000))


def _pass_on(process: Process[bytes], wake: int) -> list[int]:
    numbers = [number for number in os.read(wake, 64) if number in _ENDING]
    for number in numbers:
        process.send_signal(number)
    return numbers


def _relay(output: int, relay: Callable[[bytes], None]) -> bool:
    """Pass on what is there; False at its end."""
    data = os.read(output, _CHUNK)
    if data:
        relay(data)
    return bool(data)
