"""Run a command inside a sandbox that runs, with no more rights than what runs there (`sandbox exec`).

Two processes: the first enters the namespaces and makes the second there (a pid namespace takes in children only); the
caller stays outside and supervises. From before the first step inside until the exec both cannot be traced: what runs
in the sandbox has the same uid, and must not take them over while they have more rights than it. Nothing is imported
and no path is opened inside before every right is gone: what lies there is the sandbox's.
"""

import contextlib
import os
import resource
import signal
from typing import NoReturn

import prctl

from sandbox import fsops
from sandbox.engine import Result, command, init, supervisor
from sandbox.engine import syscalls as sys
from sandbox.engine.account import Account
from sandbox.engine.python import tell_failure, told_failure
from sandbox.errors import SandboxError, StepError, reason
from sandbox.joining import Target
from sandbox.plan import Plan

_LAST_CAPABILITY = 63


class _Ready:
    """What command.execute needs to know."""

    def __init__(self, target: Target, argv: tuple[bytes, ...], env: dict[bytes, bytes]) -> None:
        self.argv, self.env, self.filter = list(argv), env, target.filter
        self.executable: bytes | None = None
        self.fence = self.attend = -1
        self.audited = False


def run(plan: Plan, target: Target, argv: tuple[bytes, ...], env: dict[bytes, bytes]) -> Result:
    """Start it, supervise it, end what it leaves outside a pid namespace. Raises SandboxError when it never started."""
    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    account = Account(plan, wanted=False)
    prctl.set_child_subreaper(1)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    status_reader, status_writer = os.pipe2(os.O_CLOEXEC)
    with fsops.closing(reader), fsops.closing(status_reader):
        reports = init.Reports(status_reader)
        if (pid := os.fork() if target.cgroup is None else target.cgroup.fork()) == 0:
            os.close(status_reader)
            _enter(target, _Ready(target, argv, env), writer, status_writer, inherited)
        os.close(writer)
        os.close(status_writer)
        result = supervisor.supervise(pid, None, reports, account)
        supervisor.end_leftovers(account)
        if (failure := told_failure(reader)) is not None:
            raise failure
        return result


def _enter(target: Target, ready: _Ready, writer: int, status: int, inherited: object) -> NoReturn:
    """The first process: goes in, leaves the second one there, tells its number and ends."""
    try:
        prctl.set_dumpable(0)
        prctl.set_pdeathsig(signal.SIGKILL)
        command.restore_handlers()
        try:
            if target.cgroup is not None:
                target.cgroup.enter()
            waiting, going = os.pipe2(os.O_CLOEXEC)
            sys.setns(target.pidfd, target.namespaces)
            # The caller's child: this process is not to be waited for.
            if pid := sys.fork_sibling():
                init.tell_start(status, pid)
                os._exit(0)
            init.die_with_supervisor(status)
            # It must not end before its number was told, which is so when the first process has ended.
            os.close(going)
            os.read(waiting, 1)
            _confine(target, {writer, status})
            signal.pthread_sigmask(signal.SIG_SETMASK, inherited)  # type: ignore[arg-type]
            failure: SandboxError = command.execute(ready)
        except StepError as error:
            failure = error
        except OSError as error:
            failure = StepError(f"cannot join the sandbox: {reason(error)}", hint="its command may just have ended")
        tell_failure(writer, failure)
        os._exit(failure.exit_code)
    finally:
        os._exit(125)


def _confine(target: Target, kept: set[int]) -> None:
    """Nothing more than the target has, from here on. Whatever cannot be given up ends it (OSError)."""
    if target.own_session:
        os.setsid()
        sys.leave_session_keyring()
    os.fchdir(target.cwd)
    for first, last in _gaps(kept):
        os.closerange(first, last)
    os.umask(target.umask)
    if os.getpriority(os.PRIO_PROCESS, 0) < target.nice:
        os.setpriority(os.PRIO_PROCESS, 0, target.nice)
    for number, (soft, hard) in target.limits:
        highest = _lower(hard, resource.getrlimit(number)[1])
        resource.setrlimit(number, (_lower(soft, highest), highest))
    _drop(target)
    if target.no_new_privs:
        prctl.set_no_new_privs(1)
    # Every change of ids or capabilities clears it.
    prctl.set_pdeathsig(signal.SIGKILL)


def _drop(target: Target) -> None:
    for number in range(_LAST_CAPABILITY + 1):
        if not target.bounding >> number & 1:
            # A kernel that has no such capability says EINVAL; who may not drop one gains none, by no_new_privs.
            with contextlib.suppress(OSError, ValueError):
                prctl.capbset_drop(number)
    prctl.cap_inheritable.limit()
    if os.getuid() == 0 and not target.namespaces & sys.CLONE_NEWUSER:
        os.setgroups(target.groups)
        os.setresgid(*target.gids[:3])
        os.setresuid(*target.uids[:3])
    if not target.permitted:
        prctl.cap_effective.limit()
        prctl.cap_permitted.limit()


def _gaps(kept: set[int]) -> list[tuple[int, int]]:
    """Ranges of descriptors above 2 without these, as os.closerange takes them."""
    edges = [3, *(edge for fd in sorted(kept) for edge in (fd, fd + 1)), os.sysconf("SC_OPEN_MAX")]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _lower(one: int, other: int) -> int:
    if resource.RLIM_INFINITY in (one, other):
        return other if one == resource.RLIM_INFINITY else one
    return min(one, other)
