"""Mount points of storage that may be offline: what must be mounted, and what protects the place while it is not.

A guard is a read-only bind of the empty directory onto itself, or the immutable flag on it. Each is written to an
index in the home before it is set, and undone as the index says, by descriptor, and only while nothing covers it.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from sandbox import fsops, records
from sandbox.engine import syscalls as sys
from sandbox.errors import HostError, UsageError, printable, reason, remedy
from sandbox.home import Home
from sandbox.record import Record

INDEX, _DAMAGED = b"guards.json", b"guards.damaged"
_FORMAT = 1
_ATTRS = sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
KINDS = ("bind", "immutable")


class Guard(Record):
    """An entry of the index. `dev` and `ino` are of the directory; `boot_id` and `mount` of a bind's mount."""

    path: bytes
    kind: str
    dev: int
    ino: int
    boot_id: str
    mount: int = 0
    is_set: bool = False


class Mount(Record):
    """A line of mountinfo: proc_pid_mountinfo(5)."""

    device: bytes
    root: bytes
    point: bytes


# -- what is mounted ----------------------------------------------------------------------------------------------


def require_mounted(path: bytes) -> None:
    """Raises UsageError when no storage is mounted exactly there; a guard is none."""
    shown = printable(path)
    hint = "mount it; nothing was started, so nothing landed beneath it"
    try:
        fd = _open(path)
    except OSError as error:
        raise UsageError(f"--require-mount: {shown}: {reason(error)}", hint=hint) from None
    with fsops.closing(fd):
        if _mounted_there(fd) is None or _shows_itself(fd):
            raise UsageError(f"--require-mount: nothing is mounted on {shown}", hint=hint)


def _open(path: bytes) -> int:
    return sys.openat2(sys.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, resolve=sys.RESOLVE_NO_MAGICLINKS)


def _mount_of(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))


def _above(fd: int) -> int:
    return os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)


def _mounted_there(fd: int) -> int | None:
    """The id of the mount whose root the directory is; the way up from there leaves it (but from / itself)."""
    with fsops.closing(_above(fd)) as parent:
        one = _mount_of(fd)
        same = fsops.same_file(os.fstat(fd), os.fstat(parent))
        return one if one != _mount_of(parent) or same else None


def _shows_itself(fd: int) -> bool:
    """Whether the mount there shows nothing but the directory that it covers."""
    with fsops.closing(_above(fd)) as parent:
        mounts = _mounts()
        one, above = mounts[_mount_of(fd)], mounts[_mount_of(parent)]
        beneath = os.path.join(above.root, os.path.relpath(one.point, above.point))
        return one.device == above.device and one.point != b"/" and one.root == beneath


def _mounts() -> dict[int, Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        rows = [line.split(b" ") for line in file]
    return {int(row[0]): Mount(row[2], _plain(row[3]), _plain(row[4])) for row in rows}


def _plain(text: bytes) -> bytes:
    return re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), text)


# -- the index ----------------------------------------------------------------------------------------------------


class Index:
    """The guards that were set, or are about to be; open and locked."""

    def __init__(self, where: Home) -> None:
        self.fd = where.fd
        self.guards: list[Guard] = []
        # Why what was written cannot be read, or nothing.
        self.trouble = ""
        try:
            found = json.loads(fsops.read_file(self.fd, INDEX, 1 << 24))
            self.guards = [_decoded(entry) for entry in found["guards"] if found["format"] == _FORMAT]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.trouble = f"the index of guards, {printable(INDEX)} in the sandbox home, is damaged"

    def find(self, path: bytes) -> Guard | None:
        return next((guard for guard in self.guards if guard.path == path), None)

    def put(self, guard: Guard) -> None:
        """In place of what was known of that path; on the disk when this returns."""
        self.guards = [*(other for other in self.guards if other.path != guard.path), guard]
        self.save()

    def forget(self, guard: Guard) -> None:
        self.guards.remove(guard)
        self.save()

    def save(self) -> None:
        if self.trouble:
            # What a person may still want to read is not overwritten.
            with contextlib.suppress(OSError):
                data = fsops.read_file(self.fd, INDEX, 1 << 24)
                fsops.replace_file(self.fd, _DAMAGED, data, durable=True)
            self.trouble = ""
        facts = [{**dict(zip(g.fields, g, strict=True)), "path": os.fsdecode(g.path)} for g in self.guards]
        data = json.dumps({"format": _FORMAT, "guards": facts}, indent=1).encode() + b"\n"
        fsops.replace_file(self.fd, INDEX, data, durable=True)


def _decoded(entry: dict[str, Any]) -> Guard:
    guard = Guard(**{**entry, "path": os.fsencode(entry["path"])})
    numbers = (guard.dev, guard.ino, guard.mount)
    if not guard.path.startswith(b"/") or guard.kind not in KINDS or not all(isinstance(n, int) for n in numbers):
        raise ValueError("not a guard")
    return guard


@contextlib.contextmanager
def opened(where: Home) -> Iterator[Index]:
    """The index, locked for the block."""
    with (
        fsops.closing(fsops.make_dir(where.fd, b"locks")) as locks,
        fsops.closing(fsops.open_lock(locks, b"guards")) as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Index(where)


# -- setting and clearing -----------------------------------------------------------------------------------------


def add(index: Index, path: bytes, kind: str | None, *, dry: bool) -> str:
    """Protect an empty mount point; a word for what was done. Raises UsageError, HostError.

    `kind` None: a bind, and the flag where that cannot be.
    """
    fd = _open_or_explain(path)
    with fsops.closing(fd):
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        known = index.find(real)
        mounted = _mounted_there(fd)
        if known is not None and _stands(known, fd, mounted):
            return "is guarded already"
        if mounted is not None:
            if real == b"/" or not _shows_itself(fd):
                raise UsageError(f"something is mounted on {printable(path)}", hint="guard it when that is not so")
            return "is covered by itself already"
        with fsops.closing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as directory:
            if os.listdir(directory):
                raise UsageError(f"{printable(path)} is not empty", hint="empty it: what is there would be hidden")
            if fsops.is_immutable(directory):
                return "is immutable already, and not by us"
            return "would be guarded" if dry else _set(index, real, kind, fd, directory)


def _set(index: Index, real: bytes, kind: str | None, fd: int, directory: int) -> str:
    status = os.fstat(fd)
    failure: OSError | None = None
    for one in KINDS if kind is None else (kind,):
        guard = Guard(real, one, status.st_dev, status.st_ino, records.boot_id())
        index.put(guard)
        try:
            if one == "bind":
                with fsops.closing(sys.clone_mount(fd, recursive=False)) as clone:
                    sys.mount_setattr(clone, set_attrs=_ATTRS, propagation=sys.MS_PRIVATE)
                    number = _mount_of(clone)
                    sys.move_mount(clone, fd)
                    _recheck(fd, real, functools.partial(sys.unmount, clone))
                guard = guard.replace(mount=number)
            else:
                fsops.set_immutable(directory, immutable=True)
                _recheck(fd, real, functools.partial(fsops.set_immutable, directory, immutable=False))
        except OSError as error:
            index.forget(guard)
            failure = error
            continue
        index.put(guard.replace(is_set=True))
        return f"guarded ({one})"
    assert failure is not None
    raise HostError(
        f"cannot guard {printable(real)}: {reason(failure)}",
        hint="needs root, and for the flag a file system that has it (ext4, xfs, btrfs)",
    )


def _recheck(fd: int, real: bytes, undo: Callable[[], None]) -> None:
    """Whether the guarded directory has the path of the index still: nobody can rename it now. Raises OSError."""
    # A rename that had begun before holds the directory above until it is done; reading that waits for it.
    above = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    with fsops.closing(above), os.scandir(above) as entries:
        next(entries, None)
    if os.readlink(b"/proc/self/fd/%d" % fd) != real:
        undo()
        raise OSError(errno.ESTALE, "was moved", real)


def _stands(guard: Guard, fd: int, mounted: int | None) -> bool:
    """Whether the guard is in force, and nothing covers it: `fd` is what the path means now."""
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (guard.dev, guard.ino):
        return False
    if guard.kind == "bind":
        return mounted is not None and guard.boot_id == records.boot_id() and _is_its_mount(guard, fd, mounted)
    with fsops.closing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as directory:
        return mounted is None and fsops.is_immutable(directory)


def _is_its_mount(guard: Guard, fd: int, mounted: int) -> bool:
    """By its number, or where a crash came before that was known, by what it shows."""
    return _shows_itself(fd) and guard.mount in (0, mounted)


def clear(index: Index, path: bytes, *, dry: bool) -> tuple[bool, str]:
    """Undo what the index says of a path: whether nothing of it is left, and a word for it. Raises UsageError.

    What is covered by a mount, or was replaced, is kept for later.
    """
    fd = _open_or_explain(path)
    with fsops.closing(fd):
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        guard = index.find(real)
        if guard is None:
            return True, "is not in the index: nothing to clear"
        mounted = _mounted_there(fd)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (guard.dev, guard.ino):
            covered = mounted is not None
            return False, "is covered by a mount: kept" if covered else "is another directory now: kept"
        gone = guard.kind == "bind" and (mounted is None or guard.boot_id != records.boot_id())
        if not gone and mounted is not None and not (guard.kind == "bind" and _is_its_mount(guard, fd, mounted)):
            return False, "is covered by a mount: kept"
        if dry:
            return True, "would be cleared"
        try:
            if not gone:
                _undo(guard, fd)
        except OSError as error:
            return False, f"cannot be cleared: {reason(error)}"
        index.forget(guard)
        return True, "is gone since a restart: forgotten" if gone else f"cleared ({guard.kind})"


def _undo(guard: Guard, fd: int) -> None:
    """By descriptor: whatever the path means by now, it is this mount or this directory that is changed."""
    if guard.kind == "bind":
        sys.unmount(fd)
        return
    with fsops.closing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as directory:
        again = os.fstat(directory)
        if (again.st_dev, again.st_ino) != (guard.dev, guard.ino):
            raise OSError(errno.ESTALE, "replaced", guard.path)
        fsops.set_immutable(directory, immutable=False)


def state(guard: Guard) -> str:
    """How a guard stands now, for a person."""
    try:
        fd = _open(guard.path)
    except OSError as error:
        return f"cannot be looked at: {reason(error)}"
    with fsops.closing(fd):
        mounted = _mounted_there(fd)
        if _stands(guard, fd, mounted):
            return "in force"
        if mounted is not None and not _shows_itself(fd):
            return "covered by a mount"
        return "lost: add it again, or clear it"


def _open_or_explain(path: bytes) -> int:
    try:
        return _open(path)
    except OSError as error:
        raise UsageError(f"cannot open the directory {printable(path)}: {reason(error)}", hint=remedy(error)) from None
