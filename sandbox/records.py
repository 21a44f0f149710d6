"""Records of runs, their procdirs, and what dead runs leave.

Liveness is the exclusive flock on a run record and nothing else. A record is linked to its name only when it is
locked, so whoever gets the lock of a linked record knows that its run is dead (docs/plan.md, section 4).
"""

import contextlib
import fcntl
import itertools
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, UsageError, printable, reason
from sandbox.home import NETWORK, Home, Say
from sandbox.level_steps import Label, Name
from sandbox.plan import Plan

_LEFTOVER_AGE = 3600.0
_END_SECONDS = 3.0
# How many records every launch looks at, and one launch of how many looks at all.
_SAMPLE, _EVERY = 8, 64
# The kernel bounds a command line, and a plan is smaller than that.
_MAX_RECORD = 8 << 20


def boot_id() -> str:
    """Random per boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class RunRecord:
    """The record and procdir of one run. Locked as long as it is open."""

    def __init__(self, home: Home, facts: dict[str, Any], scratch_parents: list[bytes], plan: bytes) -> None:
        self.plan = plan
        self.records_fd, self.procdirs_fd = home.records_fd, home.procdirs_fd
        self.id = os.urandom(16).hex()
        # Recorded before they are made, so that whoever cleans up after a crash finds them.
        self.scratch = [os.path.join(parent, f"sandbox-{self.id}".encode()) for parent in scratch_parents]
        self.facts = {"id": self.id, **facts, "scratch": [os.fsdecode(path) for path in self.scratch]}
        self.fd = -1
        self.name = self._claim()

    def _claim(self) -> bytes:
        with fsops.Draft(self.records_fd) as draft:
            try:
                fcntl.flock(draft.fd, fcntl.LOCK_EX)
            except OSError as error:
                what = f"cannot lock a run record in the sandbox home: {reason(error)}"
                raise HostError(what, hint="SANDBOX_HOME on a local file system has locks") from None
            import json

            with open(draft.fd, "wb", closefd=False) as file:
                file.write(json.dumps(self.facts).encode() + b"\n" + self.plan)
            self.size = os.fstat(draft.fd).st_size
            if called := self.facts.get("name"):
                return self._claim_called(draft, os.fsencode(called))
            suffix = 0
            while True:
                name = b"%d" % os.getpid() + (b".%d" % suffix if suffix else b"")
                suffix += 1
                if fsops.exists(self.procdirs_fd, name):
                    continue
                try:
                    draft.publish(name, durable=False)
                except FileExistsError:
                    continue
                try:
                    os.close(fsops.make_new_dir(self.procdirs_fd, name))
                except FileExistsError:
                    # Somebody's leftover appeared in between: another draft, another name.
                    fsops.delete_file(self.records_fd, name)
                    return self._claim()
                self.fd = draft.keep_open()
                return name

    def _claim_called(self, draft: fsops.Draft, name: bytes) -> bytes:
        """The name that the user chose, if no running sandbox has it. Raises UsageError."""
        try:
            draft.publish(name, durable=False)
        except FileExistsError:
            what = f"--name: a sandbox called {printable(name)} is running"
            raise UsageError(what, hint="another name, or sandbox kill") from None
        # Without a record, a procdir of that name is nobody's.
        fsops.remove_dir(self.procdirs_fd, name)
        os.close(fsops.make_new_dir(self.procdirs_fd, name))
        self.fd = draft.keep_open()
        return name

    def remove(self) -> None:
        """Remove scratch and procdir and then the record: what a dead run leaves must stay findable."""
        if os.fstat(self.fd).st_size != self.size:
            # Somebody joined: what holds the mounts beside what the run started.
            _end_orphans(self.id)
        for path in self.scratch:
            remove_scratch(path, self.id)
        fsops.remove_dir(self.procdirs_fd, self.name)
        fsops.delete_file(self.records_fd, self.name)
        self.close()

    def close(self) -> None:
        """Let go of the lock without removing anything; a fork of this process may still hold it."""
        os.close(self.fd)


def here() -> dict[str, Any]:
    """What a record says of the process that makes it."""
    return {
        "host": os.uname().nodename,
        "boot_id": boot_id(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "pid": os.getpid(),
        # As field 22 of /proc/PID/stat counts (proc(5)): hundredths of a second since boot.
        "start_time": time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10_000_000,
    }


def new_record(home: Home, command: tuple[bytes, ...], plan: Plan, scratch_parents: list[bytes]) -> RunRecord:
    """A locked record and an empty procdir for this process; the scratch directories have names, but are not made.

    Raises UsageError when a running sandbox has the name that the plan asks for, HostError for a home that takes none.
    """
    from sandbox.codec import encode

    encoded = encode(plan)
    names = [os.fsdecode(step.name) for step in plan.steps if isinstance(step, Name)]
    label = next((step for step in plan.steps if isinstance(step, Label)), Label(b"", ()))
    facts = {
        **here(),
        "command": [os.fsdecode(word) for word in command],
        "mode": plan.mode.name.lower(),
        "engine": "python",
        "name": names[0] if names else "",
        "level": os.fsdecode(label.level),
        "images": [os.fsdecode(image) for image in label.images],
        "plan": len(encoded),
    }
    try:
        return RunRecord(home, facts, scratch_parents, encoded)
    except OSError as error:
        what = f"cannot make a run record in {printable(home.run_path)}: {reason(error)}"
        hint = "free some space there, or set SANDBOX_HOME to a directory that can be written to"
        raise HostError(what, hint=hint) from None


# -- what the dead leave --------------------------------------------------------------------------------------


def clean_stale(home: Home, *, say: Say, thorough: bool = False) -> None:
    """Remove the records, procdirs and scratch directories of runs that are dead, and nothing of others.

    Each live run costs a failed lock, so where many run only some of them are looked at, and all once one of these was
    dead, or every so often; `thorough`: all at once. As the native engine does (setuid-helper/src/stale.rs).
    """
    if thorough or os.urandom(1)[0] % _EVERY == 0 or _clean_some(home, _SAMPLE, say):
        _clean_some(home, None, say)


def _clean_some(home: Home, most: int | None, say: Say) -> bool:
    """Look at so many records, and procdirs, at most; whether a run was dead."""
    found = False
    for name in itertools.islice(fsops.names(home.records_fd), most):
        if name.startswith(fsops.TEMPORARY):
            fsops.remove_abandoned(home.records_fd, name, before=time.time() - _LEFTOVER_AGE)
            continue
        with contextlib.suppress(OSError):
            if clean_one(home, name):
                say(f"cleaned up after the dead run {printable(name)}")
                found = True
    for name in itertools.islice(fsops.names(home.procdirs_fd), most):
        # A procdir is made after its record: without one it is nobody's.
        if not fsops.exists(home.records_fd, name):
            with contextlib.suppress(OSError):
                # What is no procdir stays, and is no reason to look at all each time.
                found |= remove_orphan(home, name)
    return found


def clean_one(home: Home, name: bytes) -> bool:
    """Remove what the run of this record left, if it is dead, and the record. Whether it was. Raises OSError."""
    with dead_record(home, name) as facts:
        if facts is not None:
            clean_after(home, name, facts)
        return facts is not None


def remove_orphan(home: Home, name: bytes) -> bool:
    """Remove a procdir without a record, as the owner of that record: else a run that takes the name just now dies.

    False where something else has the name of a procdir: that is an empty directory.
    """
    with fsops.Draft(home.records_fd) as draft:
        fcntl.flock(draft.fd, fcntl.LOCK_EX)
        draft.publish(name, durable=False)
        removed = fsops.remove_dir(home.procdirs_fd, name) or not fsops.exists(home.procdirs_fd, name)
        fsops.delete_file(home.records_fd, name)
        return removed


def clean_at(run_fd: int) -> None:
    """clean_stale for a process that has only the descriptor of the directory with procdirs/ and records/."""
    with (
        fsops.closing(fsops.make_dir(run_fd, b"procdirs")) as procdirs,
        fsops.closing(fsops.make_dir(run_fd, b"records")) as records,
    ):
        clean_stale(Home(b"", run_fd, b"", run_fd, procdirs, records), say=lambda _: None, thorough=True)


@contextlib.contextmanager
def dead_record(home: Home, name: bytes) -> Iterator[dict[str, Any] | None]:
    """The facts of a record whose run is dead, locked for the block; None for anybody alive or elsewhere."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with fsops.closing(os.open(name, flags, dir_fd=home.records_fd)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        linked = os.stat(name, dir_fd=home.records_fd, follow_symlinks=False)
        facts = parse_record(read_record(fd)[0])
        # A record that a power cut left empty names no host: on a local filesystem it can only be ours.
        local = not facts or facts.get("host") == os.uname().nodename
        here = facts.get("boot_id") == boot_id() or (local and sys.statfs_type(fd) not in NETWORK)
        yield facts if here and fsops.same_file(linked, os.fstat(fd)) else None


def read_record(fd: int) -> tuple[bytes, bytes]:
    """The two parts of an open record: a line of JSON, and the encoded plan with what was appended to it."""
    # In one read: a thousand of them are looked at by sandbox ps.
    line, _, plan = os.pread(fd, min(os.fstat(fd).st_size, 2 * _MAX_RECORD), 0).partition(b"\n")
    return line, plan


def parse_record(data: bytes) -> dict[str, Any]:
    """The facts of a record; none when it is damaged."""
    import json

    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def clean_after(home: Home, name: bytes, facts: dict[str, Any]) -> None:
    """Remove what a dead run left, and its record, by whoever holds that."""
    run_id = str(facts.get("id", ""))
    if facts.get("boot_id") == boot_id():
        _end_orphans(run_id)
    scratch = facts.get("scratch")
    for path in scratch if isinstance(scratch, list) else ():
        remove_scratch(os.fsencode(str(path)), run_id)
    if "copy" in facts:
        from sandbox import copies

        copies.remove(facts)
    fsops.remove_dir(home.procdirs_fd, name)
    fsops.delete_file(home.records_fd, name)


def remove_scratch(path: bytes, run_id: str) -> None:
    """Remove a private scratch directory of this run, or its cgroup, and only one: its name is the run's."""
    from sandbox import cgroups

    parent, name = os.path.split(path)
    if not run_id or name != b"sandbox-" + run_id.encode():
        return
    uid = os.getuid()
    with (
        contextlib.suppress(OSError),
        fsops.closing(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd,
    ):
        if cgroups.is_cgroup(fd):
            cgroups.remove(fd, name)
        else:
            fsops.remove_tree(fd, name, keep=lambda status: status.st_uid != uid)


def _end_orphans(run_id: str) -> None:
    """Kill them, and wait for their ends a while: their mounts go with them."""
    with contextlib.ExitStack() as stack:
        pidfds = _holders(run_id, stack)
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        end = time.monotonic() + _END_SECONDS
        for pidfd in pidfds:
            select.select([pidfd], [], [], max(end - time.monotonic(), 0))


def wait_for_holders(run_id: str) -> None:
    """Return when no process is left that lives in the namespaces of this run."""
    while True:
        with contextlib.ExitStack() as stack:
            if not (pidfds := _holders(run_id, stack)):
                return
            for pidfd in pidfds:
                select.select([pidfd], [], [])


def _holders(run_id: str, stack: contextlib.ExitStack) -> list[int]:
    """Processes, as open pidfds, that hold the namespaces of a run: its scratch, named after it, is in their mounts."""
    if len(run_id) != 32:
        return []
    markers = (f" sandbox:{run_id} ".encode(), f"/sandbox-{run_id}/procdir ".encode())
    own = os.stat("/proc/self/ns/mnt").st_ino
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), contextlib.ExitStack() as mine:
            pidfd = mine.enter_context(fsops.closing(os.pidfd_open(int(entry))))
            if os.stat(f"/proc/{entry}/ns/mnt").st_ino == own:
                continue
            with open(f"/proc/{entry}/mountinfo", "rb") as file:
                mounts = file.read()
            if any(marker in mounts for marker in markers):
                stack.push(mine.pop_all())
                found.append(pidfd)
    return found
