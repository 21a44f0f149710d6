"""Who joins a running sandbox looks here at what to join: its command, as the kernel describes it.

What is written in a record is the user's own word, so it decides nothing that the kernel would not let this user do:
the processes are opened by pidfd, their namespaces entered with setns(2), and everything else is taken from them.
"""

import contextlib
import os
import resource
import select
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox import cgroups

from sandbox import fsops, processes, running
from sandbox.errors import HostError, SandboxError, UsageError, reason
from sandbox.level_steps import Cgroup, Init, Landlock, Seccomp
from sandbox.plan import NoNewPrivs, Plan, Unshare
from sandbox.plan_types import Mode
from sandbox.record import Record
from sandbox.running import Running

_KINDS = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_NEWPID, _NEWUSER = _KINDS["pid"], _KINDS["user"]
_PATIENCE = 10.0
_ANOTHER = "start another run with the same options"
_SETUID = "the kernel lets nobody but root join mounts that the setuid helper made"


class NotYetError(SandboxError):
    """The command has not started yet."""


class Target(Record):
    """The command of a running sandbox, open as `pidfd`, and all that whoever joins it must be held to.

    `namespaces` are CLONE_NEW* flags of those that are not ours; `cwd` is open; `permitted` and
    `bounding` are masks of capabilities.
    """

    pidfd: int
    namespaces: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    permitted: int
    bounding: int
    no_new_privs: bool
    filter: tuple[int, ...]
    umask: int
    limits: tuple[tuple[int, tuple[int, int]], ...]
    nice: int
    env: dict[bytes, bytes]
    cwd: int
    cgroup: "cgroups.Cgroup | None"
    own_session: bool


@contextlib.contextmanager
def opened(run: Running) -> Iterator[Target]:
    """What there is to join. Raises SandboxError, in one line that says why it cannot be."""
    plan = run.decoded()
    _refuse(run, plan)
    end = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                with contextlib.ExitStack() as trial:
                    found = _look(run, plan, trial)
                    stack.push(trial.pop_all())
                break
            except NotYetError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            except PermissionError as error:
                raise HostError(
                    f"you may not join {run.shown}: {reason(error)}",
                    hint="a program that may not be read or traced runs in it",
                ) from None
            except (OSError, ValueError, KeyError):
                raise HostError(f"the command of {run.shown} has ended", hint="sandbox ps lists what runs") from None
        yield found


def _refuse(run: Running, plan: Plan) -> None:
    """What cannot be joined with no more rights than it has is not joined."""
    if plan.mode is Mode.SETUID:
        raise UsageError(f"cannot join {run.shown}, of mode setuid: {_SETUID}", hint="start it with --mode userns")
    if any(isinstance(step, Landlock) for step in plan.steps):
        why = "the kernel lets nobody join its fence (Landlock)"
        raise UsageError(f"cannot join {run.shown}: {why}", hint="use --isolation job, without --allow-read or -write")
    if plan.uid != os.getuid() or plan.gid != os.getgid():
        raise UsageError(f"cannot join {run.shown}: it is uid {plan.uid}'s, gid {plan.gid}", hint="become that user")


def _look(run: Running, plan: Plan, stack: contextlib.ExitStack) -> Target:
    with fsops.closing(running.open_supervisor(run)):
        pid = _command(run, plan)
        pidfd = stack.enter_context(fsops.closing(os.pidfd_open(pid)))
        status = _status(pid)
        namespaces = _namespaces(pid)
        _check_started(run, plan, pid, status, namespaces)
        cwd = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.enter_context(fsops.closing(cwd))
        if os.readlink(f"/proc/{pid}/root") != "/":
            raise UsageError(f"cannot join {run.shown}: its command has changed its root directory", hint=_ANOTHER)
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = [word.partition(b"=") for word in file.read().split(b"\0") if b"=" in word]
        no_new_privs = status["NoNewPrivs"] == "1" or plan.mode is not Mode.ROOT
        found = Target(
            pidfd,
            namespaces,
            _numbers(status["Uid"]),
            _numbers(status["Gid"]),
            _numbers(status["Groups"]),
            permitted := int(status["CapPrm"], 16),
            # Where nothing can come of it, it is as the command's; else what the command has.
            int(status["CapBnd"], 16) & (-1 if no_new_privs and not permitted else permitted),
            no_new_privs,
            _filter(run, plan, status),
            int(status["Umask"], 8),
            _limits(pid),
            os.getpriority(os.PRIO_PROCESS, pid),
            {name: value for name, _, value in words if name},
            cwd,
            _cgroup(run, plan, stack),
            any(isinstance(step, Init) for step in plan.steps),
        )
        _refuse_groups(run, found)
        # All that was read by number was of this process: its number could not be given out again while it lived.
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            raise ProcessLookupError
        return found


def _command(run: Running, plan: Plan) -> int:
    """The command's pid, as seen from here. Raises NotYetError.

    In a pid namespace it is number 2, after its init, or 1; elsewhere the first that the supervisor started.
    """
    init = next((step for step in plan.steps if isinstance(step, Init)), None)
    children = [(int(fields[19]), pid, int(fields[1])) for pid, fields, _ in processes.parents()]
    own = sorted(child for child in children if child[2] == run.pid)
    if init is None:
        if own:
            return own[0][1]
        raise NotYetError(f"{run.shown} has not started its command yet", hint="try again")
    depth = len(_status(run.pid)["NSpid"].split())
    wanted = [1] if init.as_pid_1 else [1, 2]
    found = run.pid
    for number in wanted:
        candidates = [pid for _, pid, parent in children if parent == found]
        inside = [pid for pid in candidates if _inner(pid, depth) == number]
        if len(inside) != 1:
            raise NotYetError(f"{run.shown} has not started its command yet", hint="try again")
        found = inside[0]
    return found


def _inner(pid: int, depth: int) -> int:
    """The number of a process one pid namespace further in than `depth`; 0 if it is elsewhere."""
    with contextlib.suppress(OSError, KeyError):
        numbers = _status(pid)["NSpid"].split()
        return int(numbers[-1]) if len(numbers) == depth + 1 else 0
    return 0


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _limits(pid: int) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Soft and hard limits: /proc/PID/limits, whose lines are in the order of their numbers (proc_pid_limits(5)).

    Not prlimit(2), which wants CAP_SYS_RESOURCE to look at another uid's.
    """
    with open(f"/proc/{pid}/limits") as file:
        rows = [line[26:].split()[:2] for line in file.readlines()[1:]]
    return tuple((number, (_limit(soft), _limit(hard))) for number, (soft, hard) in enumerate(rows))


def _limit(text: str) -> int:
    return resource.RLIM_INFINITY if text == "unlimited" else int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _namespaces(pid: int) -> int:
    """Those of the process that are not ours; the kernel shows them to who may trace it (ptrace(2))."""
    flags = 0
    for name, flag in _KINDS.items():
        theirs, ours = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        flags |= 0 if fsops.same_file(theirs, ours) else flag
    return flags


def _check_started(run: Running, plan: Plan, pid: int, status: dict[str, str], namespaces: int) -> None:
    """Whether it is the command by now: in its namespaces, without the rights that it lets go of, and executed."""
    wanted = next((step.flags for step in plan.steps if isinstance(step, Unshare)), 0)
    wanted |= _NEWPID if any(isinstance(step, Init) for step in plan.steps) else 0
    confined = any(isinstance(step, NoNewPrivs) for step in plan.steps)
    words = []
    for one in (run.pid, pid):
        with open(f"/proc/{one}/cmdline", "rb") as file:
            words.append(file.read())
    started = namespaces & wanted == wanted and words[0] != words[1]
    if not started or (confined and status["NoNewPrivs"] != "1"):
        raise NotYetError(f"{run.shown} has not started its command yet", hint="try again")


def _filter(run: Running, plan: Plan, status: dict[str, str]) -> tuple[int, ...]:
    """The filter of the plan, if it is all that holds the command."""
    words = next((step.filter for step in plan.steps if isinstance(step, Seccomp)), ())
    ours = int(_status(os.getpid()).get("Seccomp_filters", "0"))
    theirs = int(status.get("Seccomp_filters", "1" if status["Seccomp"] == "2" else "0"))
    if status["Seccomp"] == "1" or theirs > ours + bool(words):
        raise UsageError(
            f"cannot join {run.shown}: its command has put itself behind a filter that nobody else knows", hint=_ANOTHER
        )
    return words


def _refuse_groups(run: Running, target: Target) -> None:
    """Who is in more groups than the command would gain by joining. Only root can leave a group or change its ids, and
    in a user namespace not even root, which would stay root there.
    """
    if os.getuid() == 0 and not target.namespaces & _NEWUSER:
        return
    mine, theirs = (os.getresuid(), os.getresgid()), (target.uids[:3], target.gids[:3])
    if mine != theirs or set(os.getgroups()) - {*target.groups, target.gids[0]}:
        raise UsageError(
            f"cannot join {run.shown}: its command has ids or groups that are not yours",
            hint="leave the groups",
        )


def _cgroup(run: Running, plan: Plan, stack: contextlib.ExitStack) -> "cgroups.Cgroup | None":
    """The run's own cgroup, to be entered; None when it has none. Raises HostError."""
    if not any(isinstance(step, Cgroup) for step in plan.steps):
        return None
    from sandbox import cgroups

    try:
        own = cgroups.Cgroup(os.open(run.words("scratch")[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        stack.callback(own.close)
        return own
    except (OSError, IndexError):
        raise HostError(
            f"cannot join {run.shown}: its cgroup cannot be entered", hint="it may just have ended: sandbox ps"
        ) from None
