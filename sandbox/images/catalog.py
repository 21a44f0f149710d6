"""What is in the cache, and taking things out of it without harming who uses them."""

import contextlib
import errno
import fcntl
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sandbox import fsops
from sandbox.errors import SandboxError, UsageError, printable, reason, remedy
from sandbox.images import names, store
from sandbox.images.store import ABOUT, DIGEST_LENGTH, IMAGE, TREE, USES, Store

RECENT_SECONDS = 60  # whoever was handed an image or tree this recently may not have opened it yet
_SHORTEST_PREFIX = 4


class Used(NamedTuple):
    """An image or kept tree, by what its inodes say. Sizes are bytes on disk, times are seconds since 1970."""

    name: bytes
    size: int
    changed: float
    last_used: float
    uses: int


class CachedImage(NamedTuple):
    """An image or kept tree, and what its note says. Units as above."""

    name: str
    size: int
    source: str
    created: float
    last_used: float
    uses: int


class InUseError(SandboxError):
    """A sandbox is using, or about to use, what should go."""


def _is_entry(name: bytes) -> bool:
    stem, _, _ = name.partition(b".")
    return len(stem) == DIGEST_LENGTH and name.endswith((IMAGE, TREE))


def list_images(cache: int) -> list[CachedImage]:
    """Everything in the open directory `cache/`, most recently used first."""
    return [_describe(cache, entry) for entry in usage(cache)]


def _describe(cache: int, entry: Used) -> CachedImage:
    about = store.read_about(cache, entry.name.partition(b".")[0])
    created = seconds(about.created) or entry.changed
    return CachedImage(entry.name.decode(), entry.size, about.source, created, entry.last_used, entry.uses)


def usage(cache: int) -> list[Used]:
    """The same without the notes, which are a file to read each."""
    found = []
    for name in fsops.names(cache):
        if _is_entry(name):
            with contextlib.suppress(FileNotFoundError):
                found.append(_used(cache, name))
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def _used(cache: int, name: bytes) -> Used:
    status = os.stat(name, dir_fd=cache, follow_symlinks=False)
    key = name.partition(b".")[0]
    size = status.st_blocks * 512
    if name.endswith(TREE):
        size = store.read_about(cache, key).size or tree_size(cache, name)
    uses, last_used = 0, status.st_mtime if name.endswith(IMAGE) else status.st_ctime
    with contextlib.suppress(FileNotFoundError):
        used = os.stat(key + USES, dir_fd=cache, follow_symlinks=False)
        uses, last_used = used.st_size, used.st_mtime
    return Used(name, size, status.st_ctime, last_used, uses)


def seconds(timestamp: str) -> float:
    """Since 1970, of an ISO 8601 time; 0 for what is none."""
    import datetime as dt

    try:
        return dt.datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0


def tree_size(cache: int, name: bytes) -> int:
    """What a tree takes on the disk, in bytes."""
    from sandbox.images.tree import walk

    with contextlib.suppress(OSError, SandboxError), fsops.closing(fsops.open_dir(cache, name)) as root:
        return sum(status.st_blocks * 512 for _, status, _, _ in walk(root))
    return 0


def find(cache: int, wanted: str) -> str:
    """The entry's name from its name, key, or the start of one. Raises UsageError."""
    names = [name.decode() for name in fsops.names(cache) if _is_entry(name)]
    if wanted in names:
        return wanted
    fitting = [name for name in names if name.startswith(wanted)] if len(wanted) >= _SHORTEST_PREFIX else []
    if len(fitting) == 1:
        return fitting[0]
    problem = f"{len(fitting)} images start with" if fitting else "the cache has no"
    shown = repr(printable(wanted))
    raise UsageError(f"cannot remove {shown}: {problem} {shown}", hint="see sandbox cache ls")


def remove(images: Store, name: str) -> None:
    """Take the entry out, whole. Raises InUseError while it is built, used or named."""
    for failure in remove_all(images, [name]).values():
        if failure is not None:
            raise failure


def remove_all(images: Store, wanted: Sequence[str]) -> dict[str, SandboxError | None]:
    """The same of several, in one change of the names, and why some did not go."""
    outcome: dict[str, SandboxError | None] = {}
    doomed: list[bytes | None] = []
    with images.changing_names():
        kept = names.kept(images)
        for name in wanted:
            try:
                if os.fsencode(name).removesuffix(IMAGE) in kept:
                    hint = "sandbox image ls and history show by which; sandbox image rm NAME"
                    raise InUseError(f"cannot remove {name}: a name keeps it", hint=hint)
                doomed.append(detach(images, name))
                outcome[name] = None
            except SandboxError as error:
                outcome[name] = error
    # Nobody who names an image waits for the removal of large files.
    for one in doomed:
        dispose(images, one)
    return outcome


def detach(images: Store, name: str, *, before: float = math.inf) -> bytes | None:
    """Make the entry unfindable, in a block of `changing_names` in which it was seen to be nameless.

    What `dispose` then removes. Raises InUseError while it is built or used, or when it was used since `before`.
    """
    raw = os.fsencode(name)
    cache, key = images.cache, raw.partition(b".")[0]
    doomed = fsops.temporary_name()
    with _not_being_built(images.locks, key):
        try:
            with _unused(cache, raw):
                _check_idle(cache, key, before)
                fsops.move_new(cache, raw, cache, doomed)
                try:
                    # Again: who found it before the rename has counted the use by now, or will find nothing.
                    _check_idle(cache, key, before)
                except InUseError:
                    fsops.move_new(cache, doomed, cache, raw)
                    raise
        except FileNotFoundError:
            doomed = b""
        except OSError as error:
            raise SandboxError(f"cannot remove {name} from the cache: {reason(error)}", hint=remedy(error)) from None
        for suffix in (USES, ABOUT):
            fsops.delete_file(cache, key + suffix)
    return doomed or None


def dispose(images: Store, doomed: bytes | None) -> None:
    """Remove what was detached; what cannot go now is the reaper's."""
    if doomed is not None:
        with contextlib.suppress(OSError):
            fsops.remove_tree(images.cache, doomed)


@contextlib.contextmanager
def _not_being_built(locks: int, key: bytes) -> Iterator[None]:
    try:
        lock = fsops.open_lock(locks, b"build-" + key, make=False)
    except FileNotFoundError:
        yield
        return
    with fsops.closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"cannot remove {key.decode()}: it is being built") from None
        yield


@contextlib.contextmanager
def _unused(cache: int, name: bytes) -> Iterator[None]:
    """Runs hold a shared lock on their image or kept tree as long as they last."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=cache)
    with fsops.closing(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise InUseError(f"cannot remove {name.decode()}: a sandbox is using it") from None
        yield


def _check_idle(cache: int, key: bytes, before: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(key + USES, dir_fd=cache, follow_symlinks=False)
        if status.st_mtime > before:
            raise InUseError(f"cannot remove {key.decode()}: it was used a moment ago")


def remove_leftovers(images: Store, *, before: float) -> int:
    """Half-built things, notes without an image, locks that nobody holds; not touched since `before`. Their number."""
    cache, locks = images.cache, images.locks
    listed = fsops.names(cache)  # what comes while we are at it is not older than `before`
    there = {name.removesuffix(IMAGE) for name in listed if name.endswith(IMAGE)}
    removed = names.remove_orphans(images, there, before=before)
    present = {name.partition(b".")[0] for name in listed if _is_entry(name)}
    for directory in (cache, locks):
        removed += fsops.remove_drafts(directory, before=before)
    for name in listed:
        if name.endswith((USES, ABOUT)) and name.partition(b".")[0] not in present:
            removed += fsops.remove_abandoned(cache, name, before=before)
    for name in fsops.names(locks):
        # A loop device is found without its lock as well, by looking at all of them.
        if name.startswith((b"build-", b"loop-")):
            removed += fsops.remove_abandoned(locks, name, before=before)
    return removed
