"""Both ends of a pid namespace: its init, and what the supervisor hears from it.

An init can neither stop nor die of a signal in a way that its parent sees, so it reports through a pipe.
"""

import contextlib
import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import prctl

from sandbox.engine import Result
from sandbox.engine import syscalls as sys
from sandbox.level_steps import Terminal

if TYPE_CHECKING:
    from sandbox.engine.steps import Child
    from sandbox.level_steps import Init
    from sandbox.plan import Plan

FORWARDED = {
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
SI_KERNEL = 0x80
_MESSAGE = struct.Struct("=II")
_STARTED, _STOPPED, _EXITED, _KILLED = range(1, 5)


class Reports:
    """The supervisor's end. Data in it is announced by SIGIO."""

    def __init__(self, reader: int) -> None:
        self.reader = reader
        fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(reader, fcntl.F_GETFL)
        fcntl.fcntl(reader, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)

    def read(self) -> Iterator[tuple[int, int]]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, _MESSAGE.size):
                yield _MESSAGE.unpack(data)


def heard(kind: int, value: int) -> Result | None:
    """The end of the command, if that is what a report says."""
    if kind == _EXITED:
        return Result(value)
    return Result(128 + value, value) if kind == _KILLED else None


def is_start(kind: int) -> bool:
    """Whether the value is the pid of the init, which from now on stands for the command."""
    return kind == _STARTED


def is_stop(kind: int) -> bool:
    return kind == _STOPPED


def enter(child: "Child", step: "Init") -> None:
    """Go on in a new pid namespace, and a session of its own: kill(0) must not reach the launcher's process group."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if pid := sys.fork_init():
        tell_start(child.status, pid)
        os._exit(0)
    die_with_supervisor(child.status)
    if not step.as_pid_1 and (command := os.fork()):
        _be_init(child, command)
    os.setsid()
    sys.leave_session_keyring()
    # Processes outside have no number in here (pid_namespaces(7)).
    child.parent = 0 if step.as_pid_1 else 1
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def forwarded(plan: "Plan") -> set[signal.Signals]:
    """What is passed on. The size of a terminal of its own changes a moment later, and the kernel tells."""
    has_terminal = any(isinstance(step, Terminal) for step in plan.steps)
    return FORWARDED - {signal.SIGWINCH} if has_terminal else FORWARDED


def tell_start(status: int, pid: int) -> None:
    """From now on this process stands for the command."""
    os.write(status, _MESSAGE.pack(_STARTED, pid))


def die_with_supervisor(status: int) -> None:
    """SIGKILL when the parent dies, or at once if it did: nobody reads what is told any more."""
    prctl.set_pdeathsig(signal.SIGKILL)
    poll = select.poll()
    poll.register(status, 0)
    if poll.poll(0):  # POLLERR: nobody reads any more
        os._exit(125)


def _be_init(child: "Child", command: int) -> NoReturn:
    """Reap and forward. Has no more rights than the command, and cannot be traced by it."""
    try:
        # At once, and again: the command is never to find an init with its own rights and this unset, and a change of
        # ids sets it to fs.suid_dumpable.
        prctl.set_dumpable(0)
        os.chdir("/")
        if child.owner != (child.plan.uid, child.plan.gid):
            become(*child.owner)
            prctl.set_dumpable(0)
        drop_capabilities()
        prctl.set_no_new_privs(1)
        die_with_supervisor(child.status)
        os.closerange(3, child.status)
        os.closerange(child.status + 1, 65536)
        _serve(child.status, command, forwarded(child.plan))
    finally:
        os._exit(125)


def _serve(status: int, command: int, passed_on: set[signal.Signals]) -> None:
    while True:
        info = signal.sigwaitinfo(signal.valid_signals())
        if info.si_signo == signal.SIGCHLD:
            _reap(status, command)
        elif info.si_signo in passed_on and info.si_pid == 0:
            # What the terminal sends is for the whole group; its stop would be ignored, as no shell is in that session.
            number = signal.SIGSTOP if info.si_signo == signal.SIGTSTP else info.si_signo
            group = info.si_code == SI_KERNEL or number in (signal.SIGSTOP, signal.SIGCONT)
            with contextlib.suppress(ProcessLookupError):
                os.kill(-command if group else command, number)


def _reap(status: int, command: int) -> None:
    options = os.WEXITED | os.WSTOPPED | os.WNOHANG
    with contextlib.suppress(ChildProcessError):
        while (event := os.waitid(os.P_ALL, 0, options)) is not None:
            if event.si_pid != command:
                continue
            if event.si_code == os.CLD_STOPPED:
                kind = _STOPPED
            else:
                kind = _EXITED if event.si_code == os.CLD_EXITED else _KILLED
            os.write(status, _MESSAGE.pack(kind, event.si_status))
            # After the end it waits for the supervisor to end it, and all that is left with it.


def become(uid: int, gid: int) -> None:
    """Without supplementary groups, and with nothing in the bounding set while that can be changed."""
    _drop_bounding_set()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """From every set. The bounding set needs CAP_SETPCAP; without it no_new_privs has to do."""
    _drop_bounding_set()
    for kind in (prctl.cap_inheritable, prctl.cap_effective, prctl.cap_permitted):
        kind.limit()


def _drop_bounding_set() -> None:
    with contextlib.suppress(PermissionError):
        prctl.capbset.limit()
