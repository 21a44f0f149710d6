"""The Python engine: the readable reference. Executes a plan in this process and a forked child."""

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import prctl

if TYPE_CHECKING:
    from sandbox import cgroups
    from sandbox.engine.progress import Progress

from sandbox import fsops, records
from sandbox.engine import (
    Launch,
    Result,
    attendance,
    callers_terminal,
    changes,
    command,
    init,
    ranges,
    steps,
    supervisor,
)
from sandbox.engine.account import Account
from sandbox.engine.steps import Child
from sandbox.errors import CommandError, SandboxError, SourceError, StepError, note, printable, reason
from sandbox.home import Home
from sandbox.level_steps import Cgroup, Network, Timeout
from sandbox.plan import Plan, Scratch
from sandbox.plan_types import PlanFlag, Source, SourceKind
from sandbox.records import RunRecord

# How long taking down a private network may take.
_NETWORK_SECONDS = 10.0


def run(plan: Plan, launch: Launch, where: Home) -> Result:
    """Launch the command, supervise it, clean up. Raises SandboxError when it never started."""
    if (plan.uid, plan.gid) != (os.getuid(), os.getgid()):
        raise StepError(f"the plan is for uid {plan.uid}, this is {os.getuid()}", hint="compile it again")
    with contextlib.ExitStack() as stack:
        umask = os.umask(0)
        stack.callback(os.umask, umask)
        fds = {**_open_files(plan, launch.fds, stack), **launch.fds}
        parents = [plan.sources[step.source] for step in plan.steps if isinstance(step, Scratch)]
        # The cgroup comes last.
        cgroup = next((step for step in plan.steps if isinstance(step, Cgroup)), None)
        paths = [source.path for source in (*parents, *([plan.sources[cgroup.source]] if cgroup else ()))]
        record = records.new_record(where, launch.command, plan, paths)
        inherited = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        account = Account(plan, wanted=launch.report is not None)
        stack.callback(account.close)
        try:
            for source, path in zip(parents, record.scratch, strict=False):
                _make_scratch(source, os.path.basename(path))
            if cgroup is not None:
                account.cgroup = _make_cgroup(cgroup, plan.sources[cgroup.source], os.path.basename(record.scratch[-1]))
            with callers_terminal.as_it_was(plan):
                result = _run_child(plan, launch.replace(fds=fds), where, record, account, (inherited, umask))
        finally:
            _end_network(plan, fds)
            if plan.flags & PlanFlag.LEAVE_RUNNING:
                _leave_keeper(record)
            else:
                record.remove()
            # What arrived meanwhile was meant for the command, which is gone.
            while signal.sigtimedwait(signal.valid_signals(), 0):
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, inherited)
        if launch.report is not None:
            account.phase("Clean up")
            launch.report.finish(account)
        return result


def _end_network(plan: Plan, fds: dict[int, int]) -> None:
    """Whoever attached the run's network takes it down, and closes the other end of the socket as the last act."""
    for step in plan.steps:
        if isinstance(step, Network):
            import select
            import socket

            with socket.socket(fileno=os.dup(fds[step.source])) as ours, contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
                select.select([ours], [], [], _NETWORK_SECONDS)


def _leave_keeper(record: RunRecord) -> None:
    """A process that removes the procdir when the last one that still uses it has ended.

    Earlier would be a disaster: rmdir on the host detaches the mounts inside the other namespace.
    """
    if os.fork():
        record.close()
        return
    try:
        os.setsid()
        null = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.chdir("/")
        prctl.set_name("sandbox-keeper")
        records.wait_for_holders(record.id)
        record.remove()
    finally:
        os._exit(0)


def _open_files(plan: Plan, given: dict[int, int], stack: contextlib.ExitStack) -> dict[int, int]:
    """Descriptors of the file sources that were not handed over, checked against the plan."""
    fds = {}
    for index, source in enumerate(plan.sources):
        if index in given or source.kind == SourceKind.DIRECTORY:
            continue
        if source.kind == SourceKind.MEMORY:
            raise StepError(f"the descriptor of source {index} is missing")
        try:
            fd = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"cannot open {printable(source.path)}: {reason(error)}") from None
        fds[index] = stack.enter_context(fsops.closing(fd))
        status = os.fstat(fd)
        found = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if found != tuple(source)[2:]:
            raise SourceError(f"{printable(source.path)} has changed since the plan was compiled", hint="try again")
    return fds


def _make_scratch(parent: Source, name: bytes) -> None:
    try:
        with fsops.closing(os.open(parent.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            steps.check_identity(directory, parent.dev, parent.ino, parent.path)
            with fsops.closing(fsops.make_new_dir(directory, name)) as fd:
                for part in (b"procdir", b"overlay"):
                    os.close(fsops.make_new_dir(fd, part))
    except OSError as error:
        raise StepError(
            f"--scratch: cannot make a directory in {printable(parent.path)}: {reason(error)}",
            hint="name a directory that you may write to",
        ) from None


def _make_cgroup(step: Cgroup, parent: Source, name: bytes) -> "cgroups.Cgroup":
    from sandbox import cgroups

    try:
        with fsops.closing(os.open(parent.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            steps.check_identity(directory, parent.dev, parent.ino, parent.path)
            made = cgroups.make(directory, name)
            made.limit(memory=step.memory, swap=step.swap, pids=step.pids, cpu_us=step.cpu_us)
            return made
    except OSError as error:
        raise StepError(
            f"cannot make a cgroup in {printable(parent.path)}: {reason(error)}",
            hint="another process changes it; leave the limit out, or use --limits best-effort",
        ) from None


def _run_child(
    plan: Plan, launch: Launch, where: Home, record: RunRecord, account: Account, inherited: tuple[object, int]
) -> Result:
    prctl.set_child_subreaper(1)
    supervisor_pid = os.getpid()
    timeout = next((step for step in plan.steps if isinstance(step, Timeout)), None)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    status_reader, status_writer = os.pipe2(os.O_CLOEXEC)
    changed, changes_writer = (end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with fsops.closing(reader), fsops.closing(status_reader), fsops.closing(changed), contextlib.ExitStack() as stack:
        user_namespaces = stack.enter_context(ranges.namespaces(plan))
        progress = _progress(plan, launch, reader, account, stack)
        reports = init.Reports(status_reader)
        account.phase("Prepare the host side")
        pid = os.fork() if account.cgroup is None else account.cgroup.fork()
        if pid == 0:
            os.close(status_reader)
            child = Child(plan, launch, where, record, supervisor_pid, account)
            child.status, child.changes = status_writer, changes_writer
            child.user_namespaces = iter(user_namespaces)
            _become_command(child, writer, inherited)
        os.close(writer)
        os.close(status_writer)
        os.close(changes_writer)
        if progress is not None:
            os.close(account.ticks)
        result = supervisor.supervise(pid, timeout, reports, account, progress)
        account.ended(result)
        failure = told_failure(reader)
        if launch.attend >= 0:
            account.attended = attendance.wait(launch.attend, started=failure is None)
        # A time limit is for everything that the command started.
        if result.timed_out or not plan.flags & PlanFlag.LEAVE_RUNNING:
            supervisor.end_leftovers(account)
        account.read_peaks()
        if failure is not None:
            raise failure
        _tell_of_changes(changed, account)
        return result


def _progress(
    plan: Plan, launch: Launch, failure: int, account: Account, stack: contextlib.ExitStack
) -> "Progress | None":
    """Who tells how the launch goes on; the child has the other end in its account."""
    if launch.report is None or not launch.report.is_live:
        return None
    from sandbox.engine.progress import Progress

    ticks, account.ticks = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, ticks)
    return Progress(launch.report, ticks, failure, plan)


def _tell_of_changes(receiver: int, account: Account) -> None:
    account.discarded = changes.count(receiver)
    if account.discarded:
        note(changes.line(account.discarded))


def _become_command(child: Child, writer: int, inherited: tuple[object, int]) -> None:
    """Never returns: becomes the command, or reports through the pipe why it could not."""
    code = 125
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        command.restore_signals(inherited[0])
        try:
            child.execute()
            os.umask(inherited[1])
            failure = command.execute(child)
        except SandboxError as error:
            failure = error
        except Exception as error:  # a bug; still one line, never a second copy of the launcher
            failure = StepError(f"internal error while setting up: {type(error).__name__}: {error}")
        code = failure.exit_code
        tell_failure(writer, failure)
    finally:
        os._exit(code)


def told_failure(reader: int) -> CommandError | None:
    """Why the child could not become the command."""
    with contextlib.suppress(BlockingIOError):
        if data := os.read(reader, 65536):
            code, message, hint = (part.decode("utf-8", "surrogateescape") for part in data.split(b"\0"))
            return CommandError(message, exit_code=int(code), hint=hint)
    return None


def tell_failure(writer: int, failure: SandboxError) -> None:
    """The last words of a child that could not become the command."""
    texts = [text.encode(errors="surrogateescape") for text in (failure.message, failure.hint)]
    os.write(writer, b"\0".join([b"%d" % failure.exit_code, *texts]))
