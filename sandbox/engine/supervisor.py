"""The process that stays behind: waits, forwards signals, ends what is left, cleans up (docs/plan.md, section 5)."""

import contextlib
import os
import resource
import signal
import time
from typing import NoReturn

from sandbox.engine import Result

_SI_KERNEL = 0x80
_FORWARDED = {
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGCONT,
}
_GRACE = 0.5


def supervise(command: int) -> Result:
    """Wait for the command, with all signals blocked by the caller, and pass signals on. Reaps orphans as well."""
    while True:
        info = signal.sigwaitinfo(signal.valid_signals())
        if info.si_signo == signal.SIGCHLD:
            if (result := _reap(command)) is not None:
                return result
        elif info.si_signo in _FORWARDED and _is_for_command(info, command):
            with contextlib.suppress(ProcessLookupError):
                os.kill(command, info.si_signo)


def _is_for_command(info: signal.struct_siginfo, command: int) -> bool:
    if info.si_pid == command:
        return False
    if info.si_code != _SI_KERNEL:
        return True
    # A terminal's signal went to its whole foreground group: the command has had it, if it is still in ours.
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(command) != os.getpgrp()
    return False


def _reap(command: int) -> Result | None:
    """Everything that happened to children; the result once the command itself has ended."""
    options = os.WEXITED | os.WSTOPPED | os.WNOHANG
    result = None
    with contextlib.suppress(ChildProcessError):
        while (event := os.waitid(os.P_ALL, 0, options)) is not None:
            if event.si_pid != command:
                continue
            if event.si_code == os.CLD_STOPPED:
                _stop_too(command)
            elif event.si_code == os.CLD_EXITED:
                result = Result(event.si_status)
            elif event.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                result = Result(128 + event.si_status, event.si_status)
    return result


def _stop_too(command: int) -> None:
    """A shell sees its job, this process, stop with the command and continues both with one SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)
    with contextlib.suppress(ProcessLookupError):
        os.kill(command, signal.SIGCONT)


def end_leftovers() -> None:
    """End every process below this one (it is a child subreaper): asked first, killed after a grace."""
    deadline = time.monotonic() + _GRACE
    asked: set[int] = set()
    while children := _children():
        kill = time.monotonic() > deadline
        for pid in children:
            if kill or pid not in asked:
                asked.add(pid)
                for number in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGCONT):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _children() -> list[int]:
    """Direct children that are not yet reaped (proc(5), /proc/PID/task/TID/children), cheaply none at first."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return [int(pid) for pid in file.read().split()]
        except FileNotFoundError:
            return _children_by_scan()
    return []


def _children_by_scan() -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(entry))
    return found


def end_like(result: Result) -> NoReturn:
    """Leave this process as the command left: the same exit code, or death by the same signal without a core."""
    if result.signal:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(result.signal, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {result.signal})
        os.kill(os.getpid(), result.signal)
    os._exit(result.exit_code)
