"""--workspace rw: what the host executes without being asked stays as it is, and does not come to be.

That is git's hooks and configuration, settings of editors, and .envrc. A name that is not there cannot be covered, so
an empty stand-in is made for the run, and removed behind it: whoever uses one holds a shared lock on it.
For jobs of root's it is set-id programs as well.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator

from sandbox import fsops
from sandbox.codec import MAX_PATH
from sandbox.engine import syscalls as sys
from sandbox.errors import UsageError, printable, reason, remedy, warn
from sandbox.level_steps import Protect
from sandbox.plan_types import Attr, Base, Place

_SAFE = Attr.NOSUID | Attr.NODEV
_LOCKED = _SAFE | Attr.READ_ONLY
_SETTINGS = (b".vscode", b".vs", b".idea", b".zed", b".fleet", b".devcontainer", b".devcontainer.json", b".envrc")
# gitrepository-layout(5): what names programs, and where git looks for repositories with such names of their own.
_GIT_DIRECTORIES = (b"hooks", b"modules", b"worktrees")
_GIT_FILES = (b"config", b"config.worktree")
# An empty one would be an error to git: it is looked for behind the run.
_GIT_NEVER = b"commondir"
_HOOKS_PATH = re.compile(rb"(?im)^\s*(?:\[core\])?\s*hookspath\s*=\s*([^#;\n]*[^#;\s])")
# What no directory of anybody's has: the time of a stand-in.
_STAND_IN_NS = 0
_SET_ID, _EXECUTE = stat.S_ISUID | stat.S_ISGID, 0o111
# Each is a mount, and each directory on the way an open descriptor.
_MOST_PROGRAMS, _DEEPEST = 200, 256
_BELOW = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_XDEV | sys.RESOLVE_NO_SYMLINKS


def protect(workspace: int, path: bytes, stack: contextlib.ExitStack) -> tuple[Protect, ...]:
    """Steps for the open directory `workspace`, attached at `path`; what has to be undone goes to `stack`.

    Raises UsageError for a symlink, which can be replaced whatever is mounted.
    """
    steps = [_cover(workspace, name, path, stack) for name in _SETTINGS]
    git = _cover(workspace, b".git", path, stack)
    if git is not None and stat.S_ISDIR(os.stat(b".git", dir_fd=workspace, follow_symlinks=False).st_mode):
        fd = stack.enter_context(fsops.closing(fsops.open_dir(workspace, b".git")))
        if fsops.names(fd):
            # A mount of its own: a directory with mounts in it can be renamed, a mount cannot.
            git = git.replace(attrs=_SAFE)
            inside = path.rstrip(b"/") + b"/.git"
            steps += [git, *(_cover(fd, name, inside, stack) for name in _GIT_DIRECTORIES)]
            steps += [_cover(fd, name, inside, stack, empty_file=True) for name in _GIT_FILES]
            steps += [step for where in _hooks(fd, path) for step in _cover_all(workspace, where, path, stack)]
            stack.callback(_look_behind, fd, inside, fsops.exists(fd, _GIT_NEVER))
            git = None
    return tuple(step for step in (*steps, git) if step is not None)


def _hooks(git: int, path: bytes) -> list[list[bytes]]:
    """Where in the workspace core.hooksPath has the hooks, as components; git-config(1). What it includes is not read.

    A hidden directory is taken whole: what husky has there runs what lies beside it.
    """
    found = []
    for name in _GIT_FILES:
        try:
            text = fsops.read_file(git, name)
        except OSError:
            continue
        for value in _HOOKS_PATH.findall(text):
            where = os.path.normpath(os.path.join(path, value.strip(b'"')))
            parts = os.path.relpath(where, path).split(b"/")
            if parts[0] not in (b"..", b".") and value[:1] not in (b"~", b"%"):
                whole = parts[0].startswith(b".") and parts[0] != b".git"
                found.append(parts[:1] if whole else parts)
    return found


def _cover_all(parent: int, parts: list[bytes], path: bytes, stack: contextlib.ExitStack) -> Iterator[Protect | None]:
    """Cover what has this path, or the first directory on the way that is not there; others become mounts of their own,
    or they could be renamed.
    """
    for at, name in enumerate(parts, 1):
        was_there = fsops.exists(parent, name)
        step = _cover(parent, name, path, stack)
        if step is None or at == len(parts) or not was_there:
            yield step
            return
        yield step.replace(attrs=_SAFE)
        parent = stack.enter_context(fsops.closing(fsops.open_dir(parent, name)))
        path = path.rstrip(b"/") + b"/" + name


def protect_programs(workspace: int, path: bytes) -> tuple[Protect, ...]:
    """Steps that keep the set-id programs in root's workspace as they are: to the job all there is its own.

    For a write(2) the kernel takes the bit away, but not for a change through a mapping. Raises UsageError.
    """
    steps: list[Protect] = []
    for name, status in _programs(workspace, b"", _DEEPEST):
        full = path.rstrip(b"/") + b"/" + name
        if len(steps) == _MOST_PROGRAMS or len(full) > MAX_PATH:
            raise UsageError(
                f"--workspace rw: too many set-id programs to protect, or too deep: {printable(full)}",
                hint="chmod ug-s what a job may change, or --workspace overlay",
            )
        steps.append(Protect(Place(Base.ROOT, full, status.st_dev, status.st_ino), _LOCKED))
    return tuple(steps)


def _programs(directory: int, path: bytes, depth: int) -> Iterator[tuple[bytes, os.stat_result]]:
    """Files below that give rights to whoever executes them. No link is followed, no mount crossed."""
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        name = os.fsencode(entry.name)
        try:
            if entry.is_dir(follow_symlinks=False):
                fd = sys.openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
                with fsops.closing(fd):
                    if depth == 0:
                        raise UsageError(
                            f"--workspace rw: nested deeper than {_DEEPEST} directories: {printable(path)[:60]}...",
                            hint="set-id programs are looked for in all of it: remove it, or --workspace overlay",
                        )
                    yield from _programs(fd, path + name + b"/", depth - 1)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_mode & _SET_ID or (status.st_mode & _EXECUTE and _has_capabilities(directory, name)):
                    yield path + name, status
        except OSError as error:
            # Gone meanwhile, or something else, or a mount: what is there is not the job's own.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise UsageError(
                    f"--workspace rw: cannot look at {printable(path + name)}: {reason(error)}", hint=remedy(error)
                ) from None


def _has_capabilities(directory: int, name: bytes) -> bool:
    try:
        os.getxattr(b"/proc/self/fd/%d/%b" % (directory, name), b"security.capability", follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _cover(
    parent: int, name: bytes, path: bytes, stack: contextlib.ExitStack, *, empty_file: bool = False
) -> Protect | None:
    full = path.rstrip(b"/") + b"/" + name
    try:
        fd = _hold(parent, name, stack, empty_file=empty_file)
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
    return Protect(Place(Base.ROOT, full, status.st_dev, status.st_ino), _LOCKED)


def _hold(parent: int, name: bytes, stack: contextlib.ExitStack, *, empty_file: bool) -> int:
    """What has that name, made where nothing has, open and locked as long as `stack`. ELOOP for a symlink."""
    while True:
        if not fsops.exists(parent, name):
            with contextlib.suppress(FileExistsError):
                made = fsops.new_file(parent, name, 0o644) if empty_file else fsops.make_new_dir(parent, name, 0o755)
                with fsops.closing(made):
                    fsops.set_mode_and_time(made, 0o644 if empty_file else 0o755, _STAND_IN_NS)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            continue
        try:
            # Waits for who is about to remove it.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if fsops.exists(parent, name) and fsops.same_file(os.stat(name, dir_fd=parent), os.fstat(fd)):
                stack.callback(_let_go, parent, name, fd)
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _let_go(parent: int, name: bytes, fd: int) -> None:
    """A stand-in goes with the last run that needs it; one that a killed run left is no different."""
    with fsops.closing(fd), contextlib.suppress(OSError):
        status = os.fstat(fd)
        if status.st_mtime_ns != _STAND_IN_NS:
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(status.st_mode):
            fsops.remove_dir(parent, name)  # only an empty one goes
        elif status.st_size == 0:
            fsops.delete_file(parent, name, expected=fd)


def _look_behind(git: int, path: bytes, was_there: bool) -> None:
    if not was_there and fsops.exists(git, _GIT_NEVER):
        fsops.delete_file(git, _GIT_NEVER)
        warn(f"removed {printable(path)}/commondir: git would have taken hooks and configuration from elsewhere")
