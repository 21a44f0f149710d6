"""What crashes leave on a host, found and undone: all of it from records, none of it by guessing what a name means.

A run that is dead is one whose record nobody holds locked; a half-built thing is a draft of the store that nobody
holds locked; a loop device is ours where the home's own lock file says which one shows which image.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from sandbox import copies, fsops, records
from sandbox.engine import syscalls as sys
from sandbox.errors import printable, reason
from sandbox.home import Home
from sandbox.record import Record

# A draft that is being made has its lock a moment later.
_YOUNGEST_DRAFT = 2.0
_LOOP_LOCK = b"loop-"


class Finding(Record):
    """Something that was left. `failure`: why it is still there, or nothing."""

    kind: str
    name: str
    failure: str = ""


def clean(where: Home, *, dry: bool) -> Iterator[Finding]:
    """Everything that is left in this home and because of it; undone as it is told of, unless `dry`."""
    yield from _runs(where, dry=dry)
    yield from _procdirs(where, dry=dry)
    yield from _drafts(where, dry=dry)
    yield from _loops(where, dry=dry)


def _runs(where: Home, *, dry: bool) -> Iterator[Finding]:
    """Dead runs: their processes, scratch directories, cgroups, procdirs, and last their records; unfinished copies."""
    for name in sorted(fsops.names(where.records_fd)):
        if name.startswith(fsops.TEMPORARY):
            continue
        kind, shown, failure = "run", printable(name), ""
        try:
            with records.dead_record(where, name) as facts:
                if facts is None:
                    continue
                words = facts.get("command")
                shown += " " + printable(" ".join(map(str, words)) if isinstance(words, list) else "damaged record")
                if (copy := copies.path(facts)) is not None:
                    kind, shown = "copy", printable(copy)
                if not dry:
                    records.clean_after(where, name, facts)
        except FileNotFoundError:
            # Somebody else cleaned it.
            continue
        except OSError as error:
            failure = reason(error)
        yield Finding(kind, shown.strip(), failure)


def _procdirs(where: Home, *, dry: bool) -> Iterator[Finding]:
    """A procdir is made after its record: without one it is nobody's."""
    for name in sorted(fsops.names(where.procdirs_fd)):
        if fsops.exists(where.records_fd, name):
            continue
        failure = ""
        try:
            if not dry and not records.remove_orphan(where, name):
                failure = "it is no empty directory, so no run made it"
        except FileExistsError:
            # A new run took the name just now.
            continue
        except OSError as error:
            failure = reason(error)
        yield Finding("procdir", printable(name), failure)


def _drafts(where: Home, *, dry: bool) -> Iterator[Finding]:
    """Half-built images and other files that never got their names."""
    before = time.time() - _YOUNGEST_DRAFT
    with contextlib.ExitStack() as stack:
        places = [(b"", where.fd), (b"records/", where.records_fd), (b"procdirs/", where.procdirs_fd)]
        for name in fsops.names(where.fd):
            # What is no directory, or somebody's link to one, is not the store's.
            if name not in (b"records", b"procdirs"):
                with contextlib.suppress(OSError):
                    places.append((name + b"/", stack.enter_context(fsops.closing(fsops.open_dir(where.fd, name)))))
        for path, fd in places:
            for name in sorted(name for name in fsops.names(fd) if name.startswith(fsops.TEMPORARY)):
                found = fsops.is_abandoned if dry else fsops.remove_abandoned
                if found(fd, name, before=before):
                    yield Finding("draft", printable(path + name))


def _loops(where: Home, *, dry: bool) -> Iterator[Finding]:
    """Loop devices that a lock file of the home names, that still show its image, and that nobody has mounted.

    Detaching one that somebody takes into use meanwhile only makes it go with its last user (loop(4)).
    """
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError), fsops.closing(fsops.open_dir(where.run_fd, b"locks")) as locks:
        for name in sorted(name for name in fsops.names(locks) if name.startswith(_LOOP_LOCK)):
            with contextlib.suppress(OSError, ValueError):
                dev, ino = map(int, name.removeprefix(_LOOP_LOCK).split(b"-"))
                device = b"/dev/loop%d" % int(fsops.read_file(locks, name, 32))
                with fsops.closing(os.open(device, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                    status = sys.loop_status(fd)
                    if (status.dev, status.ino) != (dev, ino) or _is_mounted(device):
                        continue
                    if not dry:
                        sys.loop_clear(fd)
                yield Finding("loop device", printable(device))


def _is_mounted(device: bytes) -> bool:
    """Whether any process sees it mounted."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/mountinfo", "rb") as file:
            if b" " + device + b" " in file.read():
                return True
    return False
