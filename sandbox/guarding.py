"""--workspace rw: what the host executes without being asked stays as it is, and does not come to be.

That is git's hooks and configuration, settings of editors, and .envrc; for jobs of root's set-id programs as well.
"""

import contextlib
import errno
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator

from sandbox import fsops, git_config
from sandbox.codec import MAX_PATH
from sandbox.covering import LOCKED, SAFE, cover, cover_all
from sandbox.engine import syscalls as sys
from sandbox.errors import UsageError, printable, reason, remedy, warn
from sandbox.level_steps import Protect
from sandbox.plan_types import Base, Place

_SETTINGS = (
    *(b".vscode", b".vs", b".idea", b".zed", b".fleet", b".helix", b".devcontainer", b".devcontainer.json", b".envrc"),
    *(b".cursor", b".claude", b".mcp.json"),
)
# gitrepository-layout(5): what names programs, and where git looks for repositories with such names of their own.
_GIT_DIRECTORIES = (b"hooks", b"modules", b"worktrees")
_GIT_FILES = (b"config", b"config.worktree")
# Where git takes all of these from instead. A stand-in says: from here.
_GIT_ELSEWHERE = b"commondir"
# What makes any directory a repository.
_GIT_SIGNS = (b"HEAD", b"objects", b"refs")
# Keys that say what git runs, of git-config(1): as a rule while it looks for changes.
_RUNS = re.compile(
    rb"core\.(fsmonitor|sshcommand|gitproxy|askpass|editor|pager)|(filter|diff|merge)\.(clean|smudge|process|external|"
    rb"command|textconv|driver)|gpg\.program|credential\.helper"
)
_LONGEST_INDEX = 64 << 20
_SET_ID, _EXECUTE = stat.S_ISUID | stat.S_ISGID, 0o111
# Each is a mount, and each directory on the way an open descriptor.
_MOST_PROGRAMS, _DEEPEST = 200, 256
_BELOW = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_XDEV | sys.RESOLVE_NO_SYMLINKS


def protect(workspace: int, path: bytes, stack: contextlib.ExitStack) -> tuple[Protect, ...]:
    """Steps for the open directory `workspace`, attached at `path`; what has to be undone goes to `stack`.

    Raises UsageError for a symlink, which can be replaced whatever is mounted.
    """
    steps = [cover(workspace, name, path, stack) for name in _SETTINGS]
    repositories = list(_repositories(workspace, path))
    for parts in repositories:
        steps += _protect_repository(workspace, parts, path, stack)
    if [b".git"] not in repositories:
        steps.append(cover(workspace, b".git", path, stack))
    if [] not in repositories:
        # A directory here stops git where the job makes a repository of the workspace itself.
        steps.append(cover(workspace, _GIT_ELSEWHERE, path, stack))
        stack.callback(_look_behind, workspace, path)
    files = [os.path.join(path, *parts, name) for parts in repositories for name in _GIT_FILES]
    steps += _protect_what_git_names(workspace, path, files, stack)
    return tuple(step for step in steps if step is not None)


def _repositories(workspace: int, path: bytes) -> Iterator[list[bytes]]:
    """Directories of the workspace that git takes for its own there, as components below it."""
    with contextlib.suppress(OSError):
        if _is_directory(workspace, b".git"):
            with fsops.closing(fsops.open_dir(workspace, b".git")) as fd:
                if fsops.names(fd):
                    yield [b".git"]
        else:
            kind, _, where = fsops.read_file(workspace, b".git").partition(b": ")
            if kind == b"gitdir" and (parts := _below(os.path.join(path, where.rstrip(b"\r\n")), path)):
                yield parts
    if _is_repository(workspace) and not _is_directory(workspace, _GIT_ELSEWHERE):
        yield []


def _is_repository(directory: int) -> bool:
    return all(fsops.exists(directory, name) for name in _GIT_SIGNS) and not _is_directory(directory, b"HEAD")


def _is_directory(parent: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _below(path: bytes, top: bytes) -> list[bytes] | None:
    """Components of an absolute path from `top`, as git would get there; None where that is elsewhere."""
    parts = os.path.relpath(os.path.normpath(path), top).split(b"/")
    return None if parts[0] == b".." else [part for part in parts if part != b"."]


def _protect_repository(
    workspace: int, parts: list[bytes], path: bytes, stack: contextlib.ExitStack
) -> Iterator[Protect | None]:
    """It is a mount of its own: a directory with mounts in it can be renamed, a mount cannot."""
    fd, inside, is_there = workspace, os.path.join(path, *parts), True
    if parts:
        try:
            fd = stack.enter_context(fsops.closing(fsops.open_path(workspace, b"/".join(parts))))
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.EACCES):
                raise
            is_there = False
        for step in cover_all(workspace, parts, path, stack):
            yield step.replace(attrs=SAFE) if step is not None and is_there else step
    if is_there:
        stack.callback(_tell_submodules, fd, inside, _index(fd))
        yield from (cover(fd, name, inside, stack) for name in _GIT_DIRECTORIES)
        yield from (cover(fd, name, inside, stack, text=b"") for name in _GIT_FILES)
        yield cover(fd, _GIT_ELSEWHERE, inside, stack, text=b".\n")


def _protect_what_git_names(
    workspace: int, path: bytes, files: list[bytes], stack: contextlib.ExitStack
) -> Iterator[Protect | None]:
    """What the configuration includes, and the hooks and programs of the workspace that it names."""
    all_files, said = git_config.read_all([*files, *git_config.of_user()])
    for file in all_files:
        if file not in files and (parts := _below(file, path)):
            yield from cover_all(workspace, parts, path, stack, text=b"")
    for parts in _hooks(said, path):
        yield from cover_all(workspace, parts, path, stack)
    for parts in _programs_named(workspace, said, path):
        yield from cover_all(workspace, parts, path, stack)


def _hooks(said: Iterable[tuple[bytes, bytes]], path: bytes) -> Iterator[list[bytes]]:
    """Where in the workspace core.hooksPath has the hooks, as components.

    A hidden directory is taken whole: what husky has there runs what lies beside it.
    """
    for value in {value for key, value in said if key == b"core.hookspath" and value.lstrip(b"%") == value != b""}:
        if parts := _below(os.path.join(path, os.path.expanduser(value)), path):
            whole = parts[0].startswith(b".") and parts[0] != b".git"
            yield parts[:1] if whole else parts


def _programs_named(workspace: int, said: Iterable[tuple[bytes, bytes]], path: bytes) -> Iterator[list[bytes]]:
    """Files of the workspace that are words of a command of git's configuration."""
    for value in {value for key, value in said if _RUNS.fullmatch(key)}:
        try:
            words = shlex.split(os.fsdecode(value).lstrip("!"))
        except ValueError:
            continue
        for word in map(os.fsencode, words):
            parts = _below(os.path.join(path, os.path.expanduser(word)), path)
            with contextlib.suppress(OSError, ValueError):
                if parts and stat.S_ISREG(os.stat(b"/".join(parts), dir_fd=workspace, follow_symlinks=False).st_mode):
                    yield parts


def _index(repository: int) -> bytes:
    try:
        return fsops.read_file(repository, b"index", _LONGEST_INDEX)
    except OSError:
        return b""


def _tell_submodules(repository: int, path: bytes, before: bytes) -> None:
    """Whoever asks for the status of a repository has its submodules asked, by their own configuration."""
    if (after := _index(repository)) == before:
        return
    from sandbox.git_index import submodules

    sizes = {value for key, value in git_config.read_all([path + b"/config"])[1] if key == b"extensions.objectformat"}
    size = 32 if b"sha256" in sizes else 20
    if added := sorted(submodules(after, size) - submodules(before, size)):
        names = ", ".join(map(printable, added[:3])) + (f" and {len(added) - 3} more" if len(added) > 3 else "")
        warn(f"the job made submodules: {names}; git status would look into them, and run what they configure")


def _look_behind(workspace: int, path: bytes) -> None:
    if not _is_repository(workspace):
        return
    head = printable(path.rstrip(b"/") + b"/HEAD")
    try:
        fsops.delete_file(workspace, b"HEAD")
        warn(f"removed {head}: with it the working directory was a repository, with hooks of the job's")
    except OSError as error:
        warn(f"cannot remove {head}, which makes a repository with hooks of the job's: {reason(error)}")


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
        steps.append(Protect(Place(Base.ROOT, full, status.st_dev, status.st_ino), LOCKED))
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
