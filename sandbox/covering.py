"""Names in a directory of the host's that a run can neither change nor make: covered by themselves, read-only.

A name that is not there cannot be covered, so an empty stand-in is made for the run, and removed behind it: whoever
uses one holds a shared lock on it.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from sandbox import fsops
from sandbox.errors import UsageError, printable, reason, remedy
from sandbox.level_steps import Protect
from sandbox.plan_types import Attr, Base, Place

SAFE = Attr.NOSUID | Attr.NODEV
LOCKED = SAFE | Attr.READ_ONLY
# What no file or directory of anybody's has: the time of a stand-in.
_STAND_IN_NS = 0


def cover(
    parent: int, name: bytes, path: bytes, stack: contextlib.ExitStack, *, text: bytes | None = None
) -> Protect | None:
    """The step for what has this name in the open directory `parent`, which is at `path`; what has to be undone goes to
    `stack`. A stand-in is a directory, or a file that holds `text`.

    Raises UsageError for a symlink, which can be replaced whatever is mounted.
    """
    full = path.rstrip(b"/") + b"/" + name
    try:
        fd = _hold(parent, name, stack, text)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(
                f"--workspace rw: {printable(full)} is a symbolic link, which the job could replace",
                hint="--workspace-unprotected allows that",
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None  # who launches cannot make it, nor can the job
        raise UsageError(
            f"--workspace rw: cannot protect {printable(full)}: {reason(error)}", hint=remedy(error)
        ) from None
    status = os.fstat(fd)
    return Protect(Place(Base.ROOT, full, status.st_dev, status.st_ino), LOCKED)


def cover_all(
    parent: int, parts: list[bytes], path: bytes, stack: contextlib.ExitStack, *, text: bytes | None = None
) -> Iterator[Protect | None]:
    """Cover what has this path, or the first directory on the way that is not there; others become mounts of their own,
    or they could be renamed.
    """
    for at, name in enumerate(parts, 1):
        is_last, was_there = at == len(parts), fsops.exists(parent, name)
        step = cover(parent, name, path, stack, text=text if is_last else None)
        if step is None or is_last or not was_there:
            yield step
            return
        yield step.replace(attrs=SAFE)
        parent = stack.enter_context(fsops.closing(fsops.open_dir(parent, name)))
        path = path.rstrip(b"/") + b"/" + name


def _hold(parent: int, name: bytes, stack: contextlib.ExitStack, text: bytes | None) -> int:
    """What has that name, made where nothing has, open and locked as long as `stack`. ELOOP for a symlink."""
    while True:
        if not fsops.exists(parent, name):
            with contextlib.suppress(FileExistsError):
                _make(parent, name, text)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            continue
        try:
            # Waits for who is about to remove it.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if fsops.exists(parent, name) and fsops.same_file(os.stat(name, dir_fd=parent), os.fstat(fd)):
                stack.callback(_let_go, parent, name, fd, text or b"")
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _make(parent: int, name: bytes, text: bytes | None) -> None:
    made = fsops.make_new_dir(parent, name, 0o755) if text is None else fsops.new_file(parent, name, 0o644)
    with fsops.closing(made):
        if text:
            fsops.fill(made, text, (os.geteuid(), os.getegid()))
        fsops.set_mode_and_time(made, 0o755 if text is None else 0o644, _STAND_IN_NS)


def _let_go(parent: int, name: bytes, fd: int, text: bytes) -> None:
    """A stand-in goes with the last run that needs it; one that a killed run left is no different."""
    with fsops.closing(fd), contextlib.suppress(OSError):
        status = os.fstat(fd)
        if status.st_mtime_ns != _STAND_IN_NS:
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            fsops.remove_dir(parent, name)  # only an empty one goes
        elif status.st_size in (0, len(text)):
            fsops.delete_file(parent, name, expected=fd)
