"""The sandboxes that run now: found by their locked records, named, looked at, ended.

A record says what is known; the lock on it says that the run lives. The pid in a record is the word of who wrote it:
where the looker has more rights than the writer (root), only a process that the kernel shows to hold the lock counts.
"""

import contextlib
import fcntl
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sandbox import ending, fsops, processes, records
from sandbox.errors import HostError, UsageError, printable
from sandbox.home import Home
from sandbox.plan import Plan
from sandbox.processes import Process
from sandbox.record import Record

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHORTEST_ID = 3
_KEEPER = "sandbox-keeper"
# Kinds of file systems that a user or another host serves.
_SERVED = (b"fuse", b"nfs", b"cifs", b"smb", b"9p", b"ceph", b"afs")
# How long a supervisor whose command was killed has to clean up.
_CLEAN_SECONDS = 10.0
_UNKNOWN: Mapping[int, Process] = {}


class Running(Record):
    """A live run. `record` is its name; `pid` the supervisor's, 0 when that is gone or not to be seen from here.

    `uid` owns the record; `plan` are the encoded plan and what was appended to it.
    """

    record: bytes
    home: bytes
    uid: int
    pid: int
    facts: dict[str, Any]
    plan: bytes

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return str(self.facts.get("id", ""))

    @property
    def called(self) -> str:
        """What --name said, or nothing."""
        return str(self.facts.get("name") or "")

    @property
    def shown(self) -> str:
        """The name, or the start of the id, for a person."""
        return printable(self.called or self.id[:12])

    def words(self, fact: str) -> list[str]:
        """A list of strings of the record."""
        value = self.facts.get(fact)
        return [str(word) for word in value] if isinstance(value, list) else []

    def decoded(self) -> Plan:
        """The plan. Raises SandboxError when the record has none, or a damaged one."""
        from sandbox.codec import decode

        length = self.facts.get("plan")
        if not isinstance(length, int) or not length:
            raise HostError(f"the record of {self.shown} holds no plan", hint="it was started by an older sandbox")
        return decode(self.plan[:length])


class Usage(Record):
    """What a run uses now: `tasks` are processes and threads, `cpu` seconds since its start, `memory` bytes resident.

    `age` is in seconds. None: not to be seen from here.
    """

    tasks: int | None
    cpu: float | None
    memory: int | None
    age: float | None


def mine(where: Home, everybody: Mapping[int, Process] = _UNKNOWN) -> list[Running]:
    """The live runs of this home, oldest first. Processes of `everybody` are not looked at again."""
    found, here = [], _here()

    def supervisor(facts: dict[str, Any]) -> int:
        return _believed(facts, here, everybody)

    for name in fsops.names(where.records_fd):
        if not name.startswith(fsops.TEMPORARY):
            with contextlib.suppress(OSError), fsops.closing(os.open(name, _READ, dir_fd=where.records_fd)) as fd:
                if _is_locked(fd) and (run := _read(fd, name, where.run_path, supervisor)) is not None:
                    found.append(run)
    return sorted(found, key=_started)


def everyones(where: Home, everybody: dict[int, Process]) -> list[Running]:
    """For root: the same of every user, whatever home they have; found by the locks that processes hold."""
    found = {run.id: run for run in mine(where, everybody)}
    here = _here()
    for pid in _holders_of_locks(everybody) - {run.pid for run in found.values()}:
        for run in _held_by(pid, here):
            found.setdefault(run.id, run)
    return sorted(found.values(), key=_started)


def _started(run: Running) -> tuple[int, bytes]:
    start = run.facts.get("start_time")
    return (start if isinstance(start, int) else 0, run.record)


def _is_locked(fd: int) -> bool:
    """Whether somebody lives in this record. A shared lock is let go at once, and disturbs no one who is alive."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _read(fd: int, name: bytes, where: bytes, supervisor: Callable[[dict[str, Any]], int]) -> Running | None:
    """The run of a record; `supervisor` tells from its facts which pid is to be believed."""
    line, plan = records.read_record(fd)
    facts = records.parse_record(line)
    # An artefact that is being copied out has a record as well (copies.py).
    is_run = facts.get("id") and "copy" not in facts
    return Running(name, where, os.fstat(fd).st_uid, supervisor(facts), facts, plan) if is_run else None


def _here() -> tuple[str, int]:
    """This boot, and this pid namespace: what the pids in a record are numbers of."""
    return records.boot_id(), os.stat("/proc/self/ns/pid").st_ino


def _believed(facts: dict[str, Any], here: tuple[str, int], everybody: Mapping[int, Process] = _UNKNOWN) -> int:
    """The supervisor's pid as a record of one's own says, if that process is the one that was meant; else 0."""
    pid = facts.get("pid")
    with contextlib.suppress(OSError):
        same = (facts.get("boot_id"), facts.get("pid_namespace")) == here
        if same and isinstance(pid, int) and _started_before(pid, facts, everybody):
            return pid
    return 0


def _started_before(pid: int, facts: dict[str, Any], everybody: Mapping[int, Process] = _UNKNOWN) -> bool:
    """Whether the process is older than the record: one that got the number later is not."""
    made = facts.get("start_time")
    start = everybody[pid].start if pid in everybody else processes.start_of(pid)
    return isinstance(made, int) and start <= made


def _holders_of_locks(everybody: dict[int, Process]) -> set[int]:
    """Pids of those that hold an exclusive flock (proc_locks(5)), and of keepers: theirs was taken by a dead one."""
    with open("/proc/locks", "rb") as file:
        lines = [line.split() for line in file]
    found = {int(words[4]) for words in lines if words[1:4:2] == [b"FLOCK", b"WRITE"] and int(words[4]) > 0}
    return found | {pid for pid, process in everybody.items() if process.name == _KEEPER}


def _held_by(pid: int, here: tuple[str, int]) -> Iterator[Running]:
    """Records that this process has open and locked. Its owner cannot say so of another's process: the kernel does.

    Nothing of a file system that a user serves (FUSE) is touched: it could keep root waiting for ever.
    """

    def supervisor(facts: dict[str, Any]) -> int:
        return _believed(facts, here) if facts.get("pid") == pid else 0

    with contextlib.suppress(OSError, ValueError):
        owner = os.stat(f"/proc/{pid}").st_uid
        for entry in os.listdir(f"/proc/{pid}/fd"):
            directory, name = os.path.split(os.fsencode(os.readlink(f"/proc/{pid}/fd/{entry}")))
            if os.path.basename(directory) != b"records" or not _is_local_and_locked(pid, entry):
                continue
            with fsops.closing(os.open(f"/proc/{pid}/fd/{entry}", _READ & ~os.O_NOFOLLOW)) as fd:
                status = os.fstat(fd)
                is_file = stat.S_ISREG(status.st_mode)
                run = _read(fd, name, os.path.dirname(directory), supervisor) if is_file else None
                # A process that cannot be traced shows as root's.
                if run is not None and status.st_nlink and owner in (0, status.st_uid):
                    yield run


def _is_local_and_locked(pid: int, fd: str) -> bool:
    """What the kernel says of an open file without asking its file system: proc_pid_fdinfo(5)."""
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
        lines = [line.split() for line in file]
    mount = next((words[1] for words in lines if words[0] == b"mnt_id:"), b"")
    if not any(words[0] == b"lock:" and words[2:5:2] == [b"FLOCK", b"WRITE"] for words in lines):
        return False
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        kinds = [fields[fields.index(b"-") + 1] for line in file if (fields := line.split())[0] == mount]
    return bool(kinds) and not kinds[0].startswith(_SERVED)


def mark_joined(where: Home, run: Running) -> None:
    """Tell the supervisor, through the record's length, that others may hold the mounts of the run when it ends."""
    try:
        fsops.append(where.records_fd, run.record, b"\n")
    except OSError:
        raise HostError(f"{run.shown} has ended", hint="sandbox ps lists what runs") from None


def find(runs: list[Running], text: str) -> Running:
    """The run of this name, or whose id starts so. Raises UsageError."""
    found = [run for run in runs if text and run.called == text]
    if not found and len(text) >= _SHORTEST_ID:
        found = [run for run in runs if run.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(run.id[:12] for run in found)
        raise UsageError(f"{len(found)} running sandboxes match '{printable(text)}': {which}", hint="give one of these")
    raise UsageError(f"no running sandbox is called '{printable(text)}'", hint="sandbox ps lists them")


def usage(runs: list[Running], everybody: dict[int, Process]) -> dict[str, Usage]:
    """What each run uses, by its id: the processes below its supervisor."""
    children = processes.by_parent((process.pid, process.parent) for process in everybody.values())
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    boot = records.boot_id()
    return {run.id: _used(run, everybody, children, now, boot) for run in runs}


def _used(run: Running, everybody: dict[int, Process], children: dict[int, list[int]], now: float, boot: str) -> Usage:
    start = run.facts.get("start_time")
    same_boot = run.facts.get("boot_id") == boot
    age = max(now - start / processes.TICKS, 0.0) if isinstance(start, int) and same_boot else None
    if run.pid not in everybody:
        return Usage(None, None, None, age)
    members = [everybody[pid] for pid in processes.below(run.pid, children)]
    return Usage(
        sum(process.threads for process in members),
        sum(process.cpu for process in members),
        sum(process.memory for process in members),
        age,
    )


# -- ending -----------------------------------------------------------------------------------------------------


def open_supervisor(run: Running) -> int:
    """A pidfd of the supervisor, which is the one that the record means. Raises HostError."""
    try:
        if not run.pid:
            raise ProcessLookupError
        fd = os.pidfd_open(run.pid)
        # Looked at after it was opened: a number that was given out again stands for a later start.
        if _started_before(run.pid, run.facts):
            return fd
        os.close(fd)
        raise ProcessLookupError
    except OSError:
        raise HostError(
            f"the supervisor of {run.shown} is not here",
            hint="what it left running ends by itself; another host's or container's is ended there",
        ) from None


def kill(run: Running, *, kill_after: float) -> str:
    """End a run: SIGTERM for its command through the supervisor, which cleans up; SIGKILL `kill_after` seconds later.

    The word for how it ended. Raises HostError when it does not end, or may not be ended by this user.
    """
    with fsops.closing(open_supervisor(run)) as supervisor:

        def ended(seconds: float) -> bool:
            return _ended(supervisor, seconds)

        def kill_all() -> None:
            # It is the one still: what has not ended keeps its number.
            if not ended(0):
                ending.kill_below(run.pid)

        try:
            how = ending.end(supervisor, kill_all, ended, grace=kill_after, patience=_CLEAN_SECONDS)
        except PermissionError:
            raise HostError(
                f"you may not end {run.shown}: it is uid {run.uid}'s", hint="as root, or as that user"
            ) from None
        except ProcessLookupError:
            return "was ending"
        if how:
            return how
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        if not ended(_CLEAN_SECONDS):
            raise HostError(f"{run.shown} does not end, not even of SIGKILL", hint="a file system that hangs holds it")
        return "killed, with its supervisor: sandbox cleanup removes what it left"


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
