"""What goes: a name only while it means what was looked at, a tree without leaving it."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from sandbox.engine import syscalls as sys
from sandbox.fsops.handles import (
    DIRECTORY,
    TEMPORARY,
    closing,
    names,
    new_dir,
    open_dir,
    open_lock,
    same_file,
    temporary_name,
)
from sandbox.fsops.publishing import move_new

_MAX_DEPTH = 64  # descriptors are few (RLIMIT_NOFILE), a tree may be as deep as somebody likes
_ONE_MOUNT = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_XDEV


def delete_file(parent: int, name: bytes, *, expected: int | None = None) -> bool:
    """Remove a name if it still means the open file `expected`. False when it is gone or means another.

    A descriptor, and not a status: as long as it is open, no other file can get the inode's number. Linux has no
    unlink by descriptor: the name is moved into a private directory first, looked at there, and put back should it
    turn out to be somebody else's.
    """
    try:
        if expected is None:
            os.unlink(name, dir_fd=parent)
            return True
        return _delete_exactly(parent, name, os.fstat(expected))
    except FileNotFoundError:
        return False


def _delete_exactly(parent: int, name: bytes, expected: os.stat_result) -> bool:
    if not same_file(os.stat(name, dir_fd=parent, follow_symlinks=False), expected):
        return False
    with _quarantine(parent) as private:
        move_new(parent, name, private, name)
        try:
            if same_file(os.stat(name, dir_fd=private, follow_symlinks=False), expected):
                os.unlink(name, dir_fd=private)
                return True
        except OSError:
            move_new(private, name, parent, name)
            raise
        # Should the name be taken again, what we hold was replaced by somebody else: it stays where it is, and the
        # caller hears of it (EEXIST).
        move_new(private, name, parent, name)
        return False


@contextlib.contextmanager
def _quarantine(parent: int) -> Iterator[int]:
    """A directory of our own on the same filesystem, which nobody else may write to; gone after the block.

    One per deletion, and of a random name: one that lies there could be somebody else's. What a crash leaves in it is
    the reaper's, as everything TEMPORARY.
    """
    own_name = temporary_name()
    new_dir(parent, own_name, 0o700)
    try:
        with closing(open_dir(parent, own_name)) as fd:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise OSError(errno.EPERM, "somebody put another directory in the place of ours", own_name)
            yield fd
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(own_name, dir_fd=parent)


def remove_dir(parent: int, name: bytes) -> bool:
    """rmdir; False when it is not there or not empty."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EBUSY):
            return False
        raise
    return True


def remove_tree(parent: int, name: bytes, *, keep: Callable[[os.stat_result], bool] = lambda _: False) -> None:
    """Remove a tree by descriptor, depth first: no symlink is followed, no mount is crossed, a bind mount neither.

    `keep` may refuse the tree after its root was opened. Raises OSError, and leaves the rest, on what cannot go
    (EXDEV: a mount is in the way).
    """
    try:
        handle = _handle(parent, name)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        delete_file(parent, name)
        return
    with closing(handle):
        status = os.fstat(handle)
        if keep(status):
            return
        with closing(_open_unlocked(handle)) as root:
            _empty(root)
        # What has the name now may be another directory; even an empty one is not ours to take.
        with contextlib.suppress(FileNotFoundError):
            if same_file(os.stat(name, dir_fd=parent, follow_symlinks=False), status):
                os.rmdir(name, dir_fd=parent)


def _handle(parent: int, name: bytes) -> int:
    return sys.openat2(parent, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_ONE_MOUNT)


def _empty(root: int) -> None:
    """Remove everything in `root`. An explicit stack: a tree may be deeper than Python's own."""
    while rest := names(root):
        stack = [(os.dup(root), b"", iter(rest))]
        try:
            while stack:
                _step(stack, root)
        finally:
            for fd, _, _ in stack:
                os.close(fd)


def _step(stack: list[tuple[int, bytes, Iterator[bytes]]], root: int) -> None:
    """One entry of the innermost directory; or, when none is left, that directory itself."""
    fd, own_name, rest = stack[-1]
    child = next(rest, None)
    # Names that vanish in between, somebody else removed.
    with contextlib.suppress(FileNotFoundError):
        if child is None:
            stack.pop()
            os.close(fd)
            if stack:
                os.rmdir(own_name, dir_fd=stack[-1][0])
        elif not _is_dir(fd, child):
            os.unlink(child, dir_fd=fd)
        else:
            with closing(_handle(fd, child)) as handle:
                entered = _open_unlocked(handle)
            if len(stack) <= _MAX_DEPTH:
                stack.append((entered, child, iter(names(entered))))
                return
            os.close(entered)
            # Too deep: it goes to the top, and is found there by the next pass.
            move_new(fd, child, root, temporary_name())


def _is_dir(parent: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _open_unlocked(handle: int) -> int:
    """Open a directory of ours for emptying, whatever its mode says (overlay's `work` is 0000)."""
    if os.fstat(handle).st_mode & 0o700 != 0o700:
        os.chmod(b"/proc/self/fd/%d" % handle, 0o700)
    return os.open(b".", DIRECTORY, dir_fd=handle)


def remove_abandoned(parent: int, name: bytes, *, before: float) -> bool:
    """Remove what nobody touched since `before` (seconds since 1970) and nobody holds a lock on. Whether it went.

    Builders lock what they write to.
    """
    try:
        with _abandoned(parent, name, before) as (is_abandoned, is_plain):
            if not is_abandoned:
                return False
            if not is_plain:
                return delete_file(parent, name)
            remove_tree(parent, name)
        return True
    except OSError:
        return False


def is_abandoned(parent: int, name: bytes, *, before: float) -> bool:
    """Whether remove_abandoned would remove it now."""
    try:
        with _abandoned(parent, name, before) as (found, _):
            return found
    except OSError:
        return False


@contextlib.contextmanager
def _abandoned(parent: int, name: bytes, before: float) -> Iterator[tuple[bool, bool]]:
    """Whether it is so, and whether it is a file or directory, locked for the block."""
    import fcntl

    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    if max(status.st_mtime, status.st_ctime) >= before or not is_plain:
        yield max(status.st_mtime, status.st_ctime) < before, is_plain
        return
    opened = open_dir if stat.S_ISDIR(status.st_mode) else _open_existing_lock
    with closing(opened(parent, name)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield same_file(os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(fd)), True


def _open_existing_lock(parent: int, name: bytes) -> int:
    return open_lock(parent, name, make=False)


def remove_drafts(parent: int, *, before: float) -> int:
    """Remove the TEMPORARY leftovers of crashes, by the rules of remove_abandoned. Their number."""
    leftovers = (name for name in names(parent) if name.startswith(TEMPORARY))
    return sum(remove_abandoned(parent, name, before=before) for name in leftovers)
