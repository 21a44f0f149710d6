"""Path sockets of the host that a command can still connect to: read-only mounts do not stop that."""

import os
import stat

from sandbox.level_steps import Bind, Dev, Hide, NewRoot, Proc
from sandbox.plan import Attach, Plan, Tree
from sandbox.plan_types import Base

_LISTED = "/proc/net/unix"
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


def reachable(plan: Plan, paths: list[bytes]) -> list[bytes]:
    """Where those of the host's sockets show in the run, permissions aside. Not through an overlay, which has none.

    A mount hides what is beneath it; a clone of a directory of the host shows its sockets at another place.
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
