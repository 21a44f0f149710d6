"""What a run may leave on the host. Nothing is the only right answer."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.users import processes_of

_OURS = re.compile(r"\.?(sandbox|sbx)[-_.]")
_OTHER_SESSION = re.compile(r"sbx-[a-z]+-")
# Nobody waits that long but for what never goes: a reaper is slow on an emulated or loaded machine.
_PATIENCE_S = 30.0


class Snapshot(NamedTuple):
    """Things on the host that outlive a process, each as a line that a person can read."""

    mounts: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]

    @classmethod
    def take(cls, area: Path, uid: int | None) -> Self:
        return cls(_mounts(), _loops(area), _processes(uid), _files(uid))

    def new_in(self, later: Self) -> list[str]:
        names = zip(self._fields, self, later, strict=True)
        return [f"{kind}: {line}" for kind, before, after in names for line in sorted(after - before)]


def appeared_since(before: Snapshot, area: Path, uid: int | None) -> list[str]:
    """What is there now and was not before. Autoclear and a finishing reaper are given a moment."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        new = before.new_in(Snapshot.take(area, uid))
        if not new or time.monotonic() > end:
            return new
        time.sleep(0.05)


def _mounts() -> frozenset[str]:
    # The first two fields are ids, which the kernel hands out anew.
    return frozenset(line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _loops(area: Path) -> frozenset[str]:
    """Attached loop devices of this session: below its area, or in memory and mounted nowhere.

    Of a memfd's device nobody can say whose it is. One that is mounted belongs to a live process, which is looked for
    by itself.
    """
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            text = backing.read_text().strip()
            if text.startswith(str(area)) or ("memfd" in text and not is_mounted(backing.parts[3])):
                found.add(f"{backing.parts[3]} {text}")
    return frozenset(found)


def is_mounted(device: str) -> bool:
    """Whether a live process has this block device mounted."""
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            if f" /dev/{device} " in mounts.read_text(errors="replace"):
                return True
    return False


def _processes(uid: int | None) -> frozenset[str]:
    """Children of this process (it is a subreaper, so orphans too), and all of the test account."""
    found = dict(processes_of(uid)) if uid else {}
    for task in Path("/proc/self/task").iterdir():
        children = ""
        with contextlib.suppress(OSError):  # a thread that ends
            children = (task / "children").read_text()
        for pid in children.split():
            with contextlib.suppress(OSError):
                if Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                    command = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(pid)] = command.decode(errors="replace").strip()
    return frozenset(f"{pid} {command}" for pid, command in found.items())


def _files(uid: int | None) -> frozenset[str]:
    found = set()
    for directory in ("/tmp", "/var/tmp", "/dev/shm", "/run"):
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                if _OTHER_SESSION.match(entry.name):
                    continue
                with contextlib.suppress(OSError):
                    if _OURS.match(entry.name) or (uid and entry.stat(follow_symlinks=False).st_uid == uid):
                        found.add(entry.path)
    return frozenset(found)


def reap_orphans() -> None:
    """Take the exit status of processes that were handed to us as their subreaper."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
