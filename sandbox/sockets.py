"""Path sockets of the host that a command can still connect to, and FIFOs that it can write to and read empty:
read-only mounts do not stop that.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

from sandbox.level_steps import Bind, Dev, Hide, NewRoot, Proc
from sandbox.plan import Attach, Plan, Tree
from sandbox.plan_types import Base

_LISTED = "/proc/net/unix"
# Where services have FIFOs, beside /run, which no job has: in these, and in their directories.
_OF_SERVICES = (b"/etc", b"/opt", b"/srv", b"/var/cache", b"/var/lib", b"/var/spool")
# What a report and a person can use of them.
_MOST = 256


def bound() -> list[bytes]:
    """Path sockets of this network namespace that have a name now, absolute and without links."""
    found: dict[bytes, None] = {}
    try:
        with open(_LISTED, "rb") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return []
    for line in lines:
        # Num RefCount Protocol Flags Type St Inode Path: the path may hold spaces (proc_net(5)).
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7].startswith(b"/"):
            path = os.path.realpath(fields[7])
            if _is_socket(path):
                found[path] = None
    return sorted(found)


def _is_socket(path: bytes) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def fifos() -> list[bytes]:
    """FIFOs that a process has open, as far as its descriptors may be seen, and those where services have them.

    The kernel has no list of them. This takes longer than a launch, so no launch does it.
    """
    return sorted({*_open_fifos(), *_fifos_in(_OF_SERVICES, levels=2)})


def _open_fifos() -> Iterator[bytes]:
    for process in os.listdir(b"/proc"):
        if process.isdigit():
            with contextlib.suppress(OSError):
                for fd in os.scandir(b"/proc/%b/fd" % process):
                    path = os.readlink(fd.path)
                    # It is another one's path where that process has other mounts, or the FIFO is gone.
                    if path.startswith(b"/") and _is_fifo(path) and os.path.samefile(path, fd.path):
                        yield path


def _fifos_in(tops: Iterable[bytes], levels: int) -> Iterator[bytes]:
    for top in tops if levels else ():
        with contextlib.suppress(OSError):
            for entry in os.scandir(top):
                if entry.is_dir(follow_symlinks=False):
                    yield from _fifos_in((entry.path,), levels - 1)
                elif not entry.is_file(follow_symlinks=False) and _is_fifo(entry.path):
                    yield entry.path


def _is_fifo(path: bytes) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    return False


def reachable(plan: Plan, paths: list[bytes]) -> list[bytes]:
    """Where those of the host's sockets or FIFOs show in the run, permissions aside. Not through an overlay, which has
    no sockets, and FIFOs of its own.

    A mount hides what is beneath it; a clone of a directory of the host shows what is in it at another place.
    """
    shown = set() if any(isinstance(step, NewRoot) for step in plan.steps) else set(paths)
    clones: dict[int, bytes] = {}
    for step in plan.steps:
        match step:
            case Tree(slot, source):
                clones[slot] = plan.sources[source].path
            case Bind(slot, place):
                clones[slot] = place.path
            case Hide(path):
                shown = _without(shown, path)
            case Dev():
                shown = _without(shown, b"/dev")
            case Proc():
                shown = _without(shown, b"/proc")
            case Attach(slot, place) if place.base == Base.ROOT:
                shown = _without(shown, place.path)
                if slot in clones:
                    below = [path for path in paths if _is_below(path, clones[slot])]
                    shown |= {_moved(path, clones[slot], place.path) for path in below}
    return sorted(shown)[:_MOST]


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _without(paths: set[bytes], top: bytes) -> set[bytes]:
    return {path for path in paths if not _is_below(path, top)}


def _moved(path: bytes, origin: bytes, to: bytes) -> bytes:
    return to.rstrip(b"/") + path[len(origin.rstrip(b"/")) :]
