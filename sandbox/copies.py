"""Artefacts that are being copied out: each has a record beside those of runs for as long as its name is temporary.

A record of one is a run's in all that cleaning looks at, and so are its rules: whoever copies holds its lock. It says
where the copy is, and which file or directory that is once it is made; what is not that one stays. As the native engine
does (setuid-helper/src/copies.rs).
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from typing import Any

from sandbox import fsops, records
from sandbox.engine import syscalls as sys
from sandbox.home import Home

_NAME = re.compile(re.escape(fsops.TEMPORARY) + rb"[0-9a-f]{16}")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Claim:
    """A temporary name in the open directory `parent`, recorded before anything has it. Raises OSError."""

    def __init__(self, home: Home, parent: int, source: bytes) -> None:
        self.name = fsops.temporary_name()
        self._parent, self._records = parent, home.records_fd
        self._record = b"copy-" + self.name.removeprefix(fsops.TEMPORARY)
        where = os.readlink(b"/proc/self/fd/%d" % parent)
        self._place = [os.fsdecode(where), *_numbers(os.fstat(parent)), os.fsdecode(self.name)]
        self._facts = {"id": os.urandom(16).hex(), **records.here(), "command": ["--keep", os.fsdecode(source)]}
        with fsops.Draft(self._records) as draft:
            fcntl.flock(draft.fd, fcntl.LOCK_EX)
            with open(draft.fd, "wb", closefd=False) as file:
                file.write(self._line(*_numbers(None)))
            draft.publish(self._record, durable=False)
            self._fd = draft.keep_open()

    def _line(self, *made: str) -> bytes:
        return json.dumps({**self._facts, "copy": [*self._place, *made], "plan": 0}).encode() + b"\n"

    def made(self, status: os.stat_result) -> None:
        """What has the name now is this."""
        # As long as before: nobody sees a part of it.
        os.pwrite(self._fd, self._line(*_numbers(status)), 0)

    def close(self) -> None:
        """The record goes with the name; what is left under it is for who cleans up."""
        try:
            if not fsops.exists(self._parent, self.name):
                fsops.delete_file(self._records, self._record)
        finally:
            os.close(self._fd)


def _numbers(status: os.stat_result | None) -> tuple[str, str]:
    """Device and inode, always of one length; zeros for what is not made yet."""
    dev, ino = (0, 0) if status is None else (status.st_dev, status.st_ino)
    return f"{dev:020}", f"{ino:020}"


def path(facts: dict[str, Any]) -> bytes | None:
    """Where the copy is that a record is of; None for one of a run."""
    place = _place(facts)
    return None if place is None else os.path.join(place[0], place[3])


def _place(facts: dict[str, Any]) -> tuple[bytes, int, int, bytes, int, int] | None:
    match facts.get("copy"):
        case [str(where), str(dev), str(ino), str(name), str(made_dev), str(made_ino)]:
            with contextlib.suppress(ValueError):
                numbers = int(made_dev), int(made_ino)
                return os.fsencode(where), int(dev), int(ino), os.fsencode(name), *numbers
    return None


def remove(facts: dict[str, Any]) -> None:
    """Remove the copy that a dead one's record names, and nothing else that may have the name. Raises OSError."""
    if (place := _place(facts)) is None:
        return
    where, dev, ino, name, *made = place
    if not where.startswith(b"/") or not _NAME.fullmatch(name):
        return
    try:
        parent = sys.openat2(sys.AT_FDCWD, where, os.O_PATH | os.O_DIRECTORY, resolve=sys.RESOLVE_NO_LINKS)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    with fsops.closing(parent), contextlib.suppress(FileNotFoundError):
        above = os.fstat(parent)
        if (above.st_dev, above.st_ino) == (dev, ino):
            _remove_exactly(parent, name, tuple(made))


def _remove_exactly(parent: int, name: bytes, made: tuple[int, ...]) -> None:
    def is_other(status: os.stat_result) -> bool:
        return status.st_uid != os.getuid() or (status.st_dev, status.st_ino) != made

    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    # Killed before it could say which one it made: that is an empty one.
    is_unsaid = made == (0, 0) and status.st_uid == os.getuid()
    if stat.S_ISREG(status.st_mode):
        if is_unsaid and status.st_size == 0:
            made = status.st_dev, status.st_ino
        with fsops.closing(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)) as fd:
            if not is_other(os.fstat(fd)):
                fsops.delete_file(parent, name, expected=fd)
    elif stat.S_ISDIR(status.st_mode) and is_unsaid:
        fsops.remove_dir(parent, name)
    elif stat.S_ISDIR(status.st_mode) and not is_other(status):
        fsops.remove_tree(parent, name, keep=is_other)
