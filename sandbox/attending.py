"""Beside a run: who is handed the tree to keep artefacts of, the questions of an audited filter, the job's terminal.

The engine is a child of this process, whichever it is: what is done here is written once, and by neither engine.
"""

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from sandbox.engine import Launch, Result
from sandbox.engine.attendance import ENDED, LISTENER, LONGEST_ANSWER, ROOT, TERMINAL
from sandbox.errors import EXIT_LAUNCHER_FAILED, TIMED_OUT, SandboxError, complain, note, reason, warn
from sandbox.home import Home
from sandbox.keeping import Destination, Kept
from sandbox.level_steps import Identity, Timeout, UserNamespace, mapped
from sandbox.plan import Plan
from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.capturing import Capture

# How often the caller's terminal is asked for its size: the signal that tells of it goes to another thread. Seconds.
_LOOK = 0.25
_LONGEST_MESSAGE = 16


class Wanted(Record):
    """What a run is attended for: `words` are the audited filter as it would decide by itself, empty without --audit.

    `limit` is how much is kept at most, in bytes.
    """

    destinations: tuple[Destination, ...]
    words: tuple[int, ...]
    umask: int
    limit: int
    home: Home


class Attendant:
    """One run's."""

    def __init__(self, end: socket.socket, plan: Plan, wanted: Wanted, capture: "Capture | None" = None) -> None:
        from sandbox import auditing, terminal

        self.end, self.plan, self.wanted, self.capture = end, plan, wanted, capture
        # The root directory, the working directory and the mount namespace of the command.
        self.tree: list[int] = []
        self.listener = -1
        self.failed = False
        self.auditor = auditing.Auditor(wanted.words) if wanted.words else None
        self.relay: terminal.Relay | None = None
        self.answer: dict[str, object] = {"kept": None, "refused_calls": None}

    def serve(self) -> None:
        """Until the engine lets go of its end."""
        try:
            while self._once():
                pass
        except (OSError, SandboxError) as error:
            self.failed = True
            warn(f"nobody attends the run any more: {reason(error) if isinstance(error, OSError) else error}")
        finally:
            # Whatever happens: the engine waits for an answer or the end.
            try:
                self._let_go()
            finally:
                self.end.close()

    def _once(self) -> bool:
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        if self.listener >= 0:
            poll.register(self.listener, select.POLLIN)
        for fd, events in {} if self.relay is None else self.relay.wants().items():
            poll.register(fd, events)
        ready = dict(poll.poll(None if self.relay is None else _LOOK * 1000))
        if self.relay is not None:
            self.relay.stay()
            for fd in ready.keys() - {self.end.fileno(), self.listener}:
                self.relay.serve(fd)
        if self.auditor is not None and (asked := ready.get(self.listener)):
            if asked & select.POLLIN:
                self.auditor.answer(self.listener)
            else:  # POLLHUP: nobody is left who could ask
                os.close(self.listener)
                self.listener = -1
        return self.end.fileno() not in ready or self._hear()

    def _hear(self) -> bool:
        """What the engine has to say. False at the end of it."""
        data, fds, _flags, _address = socket.recv_fds(self.end, _LONGEST_MESSAGE, 3)
        if data == ROOT:
            self.tree = fds
        elif data == LISTENER:
            self.listener = fds[0]
        elif data == TERMINAL:
            from sandbox import terminal

            log = None if self.capture is None else self.capture.log.write
            self.relay = terminal.Relay(fds[0], log, self._latest_end())
            self.end.send(b"\0")
        elif data[:1] == ENDED:
            self._conclude(started=data[1:] == b"\1")
            self.end.send(self._text())
        return data != b""

    def _latest_end(self) -> float | None:
        """When the job, which starts now, has used up its time and its grace."""
        allowed = next((step for step in self.plan.steps if isinstance(step, Timeout)), None)
        return None if allowed is None else time.monotonic() + (allowed.limit_ns + allowed.kill_after_ns) / 1e9

    def _conclude(self, *, started: bool) -> None:
        self._let_go_of_terminal()
        if not started:
            return
        if self.tree:
            self.answer["kept"] = [
                dict(zip(Kept.fields, kept, strict=True)) for kept in map(self._keep, self.wanted.destinations)
            ]
        if self.auditor is not None:
            from sandbox import auditing

            refusals = self.auditor.refusals()
            self.answer["refused_calls"] = [dict(zip(item.fields, item, strict=True)) for item in refusals]
            note(auditing.line(refusals))

    def _keep(self, destination: Destination) -> Kept:
        from sandbox import fsops, keeping

        # The launching user's rights count, but where that is root those of the command.
        ids = next((step for step in self.plan.steps if isinstance(step, Identity)), None)
        inside = next((step for step in self.plan.steps if isinstance(step, UserNamespace)), None)
        reader = fsops.Reader(None, None)
        if ids is not None:
            # Root inside reads what all its ids have written.
            ranges = () if inside is None else (mapped(inside.uids), mapped(inside.gids))
            reader = fsops.Reader(ids.uid, ids.gid, *ranges)
        root, directory, mounts = self.tree
        wanted = self.wanted

        def copy() -> Kept:
            return keeping.copy_out(destination, root, directory, reader, wanted.limit, wanted.umask, wanted.home)

        kept = keeping.as_root_inside(mounts, copy) if inside is not None and ids is None else copy()
        wanted = wanted.replace(limit=max(wanted.limit - kept.size, 0))
        self.wanted = wanted
        if kept.error:
            self.failed = True
            note(kept.error)
        elif text := keeping.complaint(kept):
            warn(text)
        return kept

    def _text(self) -> bytes:
        """Members of a JSON object."""
        text = json.dumps(self.answer)[1:-1].encode()
        if len(text) > LONGEST_ANSWER:
            text = json.dumps(dict.fromkeys(self.answer))[1:-1].encode()
        return text

    def _let_go_of_terminal(self) -> None:
        if self.relay is not None:
            self.relay.finish()
            self.relay = None

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._let_go_of_terminal()
        for fd in (*self.tree, *([self.listener] if self.listener >= 0 else [])):
            os.close(fd)


def run(
    plan: Plan, launch: Launch, wanted: Wanted, engine: Callable[[Launch], Result], capture: "Capture | None" = None
) -> Result:
    """Like the engine, in a process of its own, with an attendant in this one. What could not be kept is a failure of
    the launcher's, unless the command itself has failed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    attendant = Attendant(ours, plan, wanted, capture)
    thread = threading.Thread(target=attendant.serve)

    def attend() -> None:
        theirs.close()
        thread.start()

    with theirs:
        result = beside(plan, lambda: engine(launch.replace(attend=theirs.fileno())), capture, attend)
    thread.join()
    if attendant.failed and result == Result(0):
        return Result(EXIT_LAUNCHER_FAILED)
    return result


def beside(
    plan: Plan,
    engine: Callable[[], Result],
    capture: "Capture | None" = None,
    start: Callable[[], None] = lambda: None,
) -> Result:
    """The engine as a child, with this process before it as the supervisor is before a command. `start` runs here once
    the child is there. With a `capture` it gets what the child writes; the caller finishes it.
    """
    from sandbox.engine import init, supervisor
    from sandbox.engine.account import Account

    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    parent = os.getpid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            _become_engine(engine, inherited, parent, capture)
        if capture is not None:
            capture.start()
        start()
        account = Account(plan, wanted=False)
        result = supervisor.supervise(child, None, init.Reports(reader), account)
        if capture is not None and account.asked_to_end:
            capture.hurry()
        return result
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, inherited)
        os.close(reader)
        os.close(writer)


def _become_engine(
    engine: Callable[[], Result],
    inherited: "set[signal.Signals] | set[int]",
    parent: int,
    capture: "Capture | None",
) -> NoReturn:
    import prctl

    from sandbox.engine import supervisor

    code = EXIT_LAUNCHER_FAILED
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() == parent:
            if capture is not None:
                capture.redirect()
            signal.pthread_sigmask(signal.SIG_SETMASK, inherited)
            result = engine()
            if result.timed_out:
                complain(TIMED_OUT)
            supervisor.end_like(result)
    except SandboxError as error:
        complain(error)
        code = error.exit_code
    finally:
        os._exit(code)
