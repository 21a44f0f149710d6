"""How many files of the workspace the command changed, counted when nothing of it is alive (docs/plan.md, section 15).

The child hands its supervisor the directory that the changes are in: an overlay's upper, or a copy.
"""

import array
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from sandbox import fsops
from sandbox.level_steps import CountChanges
from sandbox.plan import Overlay

if TYPE_CHECKING:
    from sandbox.engine.steps import Child

# The job made what is walked here: its end must not take long, nor many descriptors.
MOST, _DEEPEST = 100_000, 64
# The clock of a filesystem ticks this often at least, in seconds (CONFIG_HZ=100).
_TICK = 0.01
_SINCE = struct.Struct("<q")


def hand_over(child: "Child", step: CountChanges) -> None:
    """All in an upper is changed; in a copy, what is younger than the copy."""
    for overlay in child.plan.steps:
        if isinstance(overlay, Overlay) and overlay.slot == step.slot:
            directory = fsops.open_path(child.mounts[overlay.upper], b"%d/upper" % overlay.slot)
            since = 0
            break
    else:
        directory = fsops.open_path(child.mounts[step.slot], b".")
        since = time.time_ns()
        time.sleep(_TICK)
    with fsops.closing(directory), socket.socket(fileno=os.dup(child.changes)) as end:
        end.sendmsg([_SINCE.pack(since)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [directory]))])


def count(receiver: int) -> int | None:
    """Of the directory that was handed over; None where none was. At most MOST."""
    with socket.socket(fileno=os.dup(receiver)) as end:
        try:
            data, fds, _flags, _address = socket.recv_fds(end, _SINCE.size, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
    if not fds:
        return None
    with fsops.closing(fds[0]):
        return _count(fds[0], _SINCE.unpack(data)[0], MOST, _DEEPEST)


def _count(directory: int, since: int, left: int, deeper: int) -> int:
    found = 0
    try:
        names = fsops.names(directory)
    except OSError:
        return 0  # what may not be read is not counted
    for name in names:
        if found >= left:
            break
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            found += status.st_ctime_ns > since
        elif deeper:
            with fsops.closing(fsops.open_path(directory, name)) as below:
                found += _count(below, since, left - found, deeper - 1)
    return found


def line(found: int) -> str:
    """For a person."""
    number = f"{'at least ' if found >= MOST else ''}{found} changed file{'s' * (found != 1)}"
    return f"{number} of the working directory {'were' if found != 1 else 'was'} discarded (--keep, --workspace rw)"
