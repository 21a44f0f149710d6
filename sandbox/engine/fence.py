"""A fence of Landlock rules, and the private network (docs/plan.md, sections 12 and 13)."""

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from sandbox.engine import syscalls as sys
from sandbox.errors import StepError
from sandbox.level_steps import Allow, Landlock, Network
from sandbox.plan_types import Base

if TYPE_CHECKING:
    from sandbox.engine.steps import Child

# What a file can have of LANDLOCK_ACCESS_FS_*: execute, write, read, truncate, ioctl of a device.
_OF_FILES = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_DONE = b"ok\n"
# How long a private network may take.
_SECONDS = 60.0


def allow(child: "Child", step: Allow) -> None:
    """Kept by descriptor until the fence is built: what it means is settled now, with the command's rights."""
    if step.place.base == Base.PROCDIR:
        fd = child.open_place(step.place)
    else:
        try:
            fd = sys.openat2(sys.AT_FDCWD, step.place.path, os.O_PATH, resolve=sys.RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            if step.optional and error.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR):
                return
            raise
    child.allowed.append((fd, step.access))


def landlock(child: "Child", step: Landlock) -> None:
    """Built now, put up right before the filter: whoever is behind it can mount nothing."""
    child.fence = sys.landlock_ruleset(step.handled, step.scoped)
    for fd, access in child.allowed:
        rights = access & step.handled
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        if rights:
            sys.landlock_allow(child.fence, fd, rights)
        os.close(fd)


def network(child: "Child", step: Network) -> None:
    """Whoever holds the other end of the socket attaches this process's network namespace, and sets it up."""
    import socket

    with socket.socket(fileno=os.dup(child.fds[step.source])) as ours:
        ours.settimeout(_SECONDS)
        ours.sendall(b"%d\n" % os.getpid())
        try:
            answer = ours.recv(2048)
        except TimeoutError:
            raise StepError("the process that attaches the private network does not answer") from None
    if answer != _DONE:
        why = answer.decode("utf-8", "replace").strip()
        raise StepError(why or "the process that attaches the private network has died")


DO: dict[type[Any], Any] = {Allow: allow, Landlock: landlock, Network: network}
