"""The process that stays behind: waits, forwards signals, ends what is left, cleans up (docs/plan.md, section 5)."""

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from sandbox import processes
from sandbox.engine import Result, init
from sandbox.engine import syscalls as sys
from sandbox.engine.account import Account, reap
from sandbox.errors import EXIT_TIMED_OUT
from sandbox.level_steps import Timeout

if TYPE_CHECKING:
    from sandbox.cgroups import Cgroup
    from sandbox.engine.progress import Progress

_GRACE = 0.5
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# How often what is left is looked at again: it may have started something new.
_LOOK = 0.05
# How often at most before the killing: each time fewer are left that can start something.
_SCANS = 100


class _Clock:
    """When everything is asked to end, and when it is killed: a Timeout step, or never."""

    def __init__(self, timeout: Timeout | None, cgroup: "Cgroup | None") -> None:
        self.is_up = False
        self.cgroup = cgroup
        self.kill_after = timeout.kill_after_ns / 1e9 if timeout else 0.0
        self.deadline = time.monotonic() + timeout.limit_ns / 1e9 if timeout else None

    def left(self) -> float:
        """Seconds to wait for signals; without a deadline, long ones."""
        return 3600.0 if self.deadline is None else max(self.deadline - time.monotonic(), 0)

    def strike(self) -> None:
        """What the time that has come demands: once SIGTERM, then SIGKILL, again and again."""
        if self.deadline is None or time.monotonic() < self.deadline:
            return
        if self.is_up:
            if self.cgroup is not None:
                self.cgroup.kill()
            _kill_below()
            self.deadline = time.monotonic() + _LOOK
            return
        self.is_up = True
        _ask(processes.below(os.getpid()))
        self.deadline = time.monotonic() + self.kill_after


def supervise(
    command: int,
    timeout: Timeout | None,
    reports: init.Reports,
    account: Account,
    progress: "Progress | None" = None,
) -> Result:
    """Wait for the command, with all signals blocked by the caller, and pass signals on. Reaps orphans as well."""
    clock = _Clock(timeout, account.cgroup)
    forwarded = init.forwarded(account.plan)
    # A job that stops stops its supervisor, and must not stop the clock by that.
    with contextlib.nullcontext() if clock.deadline is None else sys.continued_at(clock.deadline):
        while True:
            info = signal.sigtimedwait(signal.valid_signals(), clock.left())
            clock.strike()
            if info is None:
                continue
            # Of signals that wait the lowest number comes first: one to pass on before the news of who is to get it.
            command, result = _hear(command, reports, clock)
            is_news = info.si_signo in (signal.SIGCHLD, signal.SIGIO)
            if is_news and progress is not None:
                progress.look(command)
            if result is not None:
                _end_namespace(command, account)
            elif is_news:
                command, result = _reap(command, reports, account, clock)
                if result is not None and progress is not None:
                    # It may have gone on, and ended, since that look.
                    progress.look(command)
            if result is not None:
                return result.replace(timed_out=clock.is_up)
            if not is_news and info.si_signo in forwarded and _is_for_command(info, command):
                account.asked_to_end |= info.si_signo in _ENDING
                _send(command, info.si_signo)


def _hear(command: int, reports: init.Reports, clock: _Clock) -> tuple[int, Result | None]:
    """What an init has to say: who stands for the command, and how it ended."""
    for kind, value in reports.read():
        if init.is_start(kind):
            command = value
        elif init.is_stop(kind):
            _stop_too(command, clock)
        elif (result := init.heard(kind, value)) is not None:
            return command, result
    return command, None


def _end_namespace(pid: int, account: Account) -> None:
    """With its init everything in a pid namespace dies (pid_namespaces(7)); its end is waited for."""
    _send(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        account.count(os.wait4(pid, 0)[2])


def _send(pid: int, number: int) -> None:
    # What runs as somebody else now is not ours to end.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _is_for_command(info: signal.struct_siginfo, command: int) -> bool:
    if info.si_pid == command:
        return False
    if info.si_code != init.SI_KERNEL:
        return True
    # That its terminal is gone, the leader of a session alone is told.
    if info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid():
        return True
    # What else comes from a terminal went to its foreground group: the command has had it, if it is still in ours.
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(command) != os.getpgrp()
    return False


def _reap(command: int, reports: init.Reports, account: Account, clock: _Clock) -> tuple[int, Result | None]:
    """Everything that happened to children: who stands for the command now, and the result once that has ended."""
    result = None
    while (waited := reap(account, stopped=True)) and waited[0]:
        pid, status = waited
        # The start of an init is told before the process that started it ends: that is not the command's end.
        command, heard = _hear(command, reports, clock)
        if heard is not None:
            if pid != command:
                _end_namespace(command, account)
            return command, heard
        if pid != command:
            continue
        if os.WIFSTOPPED(status):
            _stop_too(command, clock)
        elif os.WIFEXITED(status):
            result = Result(os.WEXITSTATUS(status))
        else:
            result = Result(128 + os.WTERMSIG(status), os.WTERMSIG(status))
    return command, result


def _stop_too(command: int, clock: _Clock) -> None:
    """A shell sees its job, this process, stop with the command and continues both with one SIGCONT."""
    if clock.is_up:
        return  # nothing stops any more
    os.kill(os.getpid(), signal.SIGSTOP)
    # Continued because the time is up, the command could come to its end before it is asked for that.
    clock.strike()
    _send(command, signal.SIGCONT)


def end_leftovers(account: Account) -> None:
    """End every process below this one (it is a child subreaper): asked first, killed after a grace."""
    deadline = time.monotonic() + _GRACE
    asked: set[int] = set()
    while _any_left(account):
        if time.monotonic() < deadline:
            new = [pid for pid in processes.below(os.getpid()) if pid not in asked]
            asked.update(new)
            _ask(new)
        elif not _kill_below():
            return
        signal.sigtimedwait({signal.SIGCHLD}, _LOOK)


def _any_left(account: Account) -> bool:
    """Reaps what has ended; whether a child still lives."""
    while (waited := reap(account)) and waited[0]:
        pass
    return waited is not None


def _ask(pids: list[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGTERM)
        _send(pid, signal.SIGCONT)


def _kill_below() -> bool:
    """Kill everything below this process. False when nothing of it is ours to kill.

    Stopped first, until no new one appears: whoever is killed makes room for a child of one that is not yet.
    """
    stopped: set[int] = set()
    for _ in range(_SCANS):
        new = [pid for pid in processes.below(os.getpid()) if pid not in stopped]
        if not new:
            break
        stopped.update(new)
        for pid in new:
            _send(pid, signal.SIGSTOP)
    refused = 0
    for pid in stopped:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            refused += 1
    return refused < len(stopped) or not stopped


def end_like(result: Result) -> NoReturn:
    """Leave this process as the command left: the same exit code, or death by the same signal without a core.

    A command whose time was up leaves 124, however it took that.
    """
    if result.timed_out:
        os._exit(EXIT_TIMED_OUT)
    end_as(-result.signal or result.exit_code)


def end_as(returncode: int) -> NoReturn:
    """Leave with this exit code, or of signal N for -N, without a core."""
    if returncode < 0:
        import prctl

        # Of what is not dumpable no core is piped to core_pattern either, which asks for no limit: core(5).
        prctl.set_dumpable(0)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-returncode, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-returncode})
        os.kill(os.getpid(), -returncode)
    os._exit(returncode if returncode >= 0 else 128 - returncode)
