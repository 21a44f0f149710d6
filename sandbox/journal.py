"""What `sandbox setuid install` changes on the system: written down before it is done, undone from what is written.

Everything is reached from the root directory, component by component and by descriptor; each directory on the way must
belong to root and be writable by nobody else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sandbox import fsops
from sandbox.errors import HostError, printable, reason, remedy

RECORD = b"setuid-install.json"
_FORMAT = 1
Say = Callable[[str], None]
Entry = dict[str, Any]


def open_system_dir(path: str) -> int:
    """The directory, no link on the way and nothing that anybody but root could swap. Raises HostError."""
    fd = _roots_alone(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "/")
    seen = ""
    for part in filter(None, path.split("/")):
        seen += f"/{part}"
        with fsops.closing(fd):
            try:
                inner = fsops.open_dir(fd, os.fsencode(part))
            except OSError as error:
                raise HostError(f"cannot open the directory {seen}: {reason(error)}", hint=remedy(error)) from None
        fd = _roots_alone(inner, seen)
    return fd


def _roots_alone(fd: int, path: str) -> int:
    """The same descriptor; closed, with a HostError, when somebody else than root may change the directory."""
    status = os.fstat(fd)
    if status.st_uid == 0 and not status.st_mode & 0o022:
        return fd
    os.close(fd)
    who = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
    raise HostError(f"{path} is not safe for a setuid program ({who})", hint=f"chown root {path}; chmod go-w {path}")


class Journal:
    """The record of one installation, in the open and locked directory `fd`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.entries: list[Entry] = []
        with contextlib.suppress(FileNotFoundError):
            self.entries = _parse(fsops.read_file(fd, RECORD))

    def find(self, what: str, **fields: Any) -> Entry | None:
        """The entry with these fields."""
        wanted = {"what": what, **fields}
        return next((entry for entry in self.entries if wanted.items() <= entry.items()), None)

    def note(self, what: str, **fields: Any) -> Entry:
        """An entry for what is about to be done; on disk when this returns."""
        if (entry := self.find(what, **fields)) is None:
            entry = {"what": what, **fields}
            self.entries.append(entry)
            self.save()
        return entry

    def forget(self, entry: Entry) -> None:
        """What the entry names is undone."""
        self.entries.remove(entry)
        self.save()

    def save(self) -> None:
        """Durable: it must survive the power cut that interrupts what it announces."""
        data = json.dumps({"format": _FORMAT, "entries": self.entries}, indent=1).encode() + b"\n"
        fsops.replace_file(self.fd, RECORD, data, mode=0o644, owner=(0, 0), durable=True)

    def directory(self, path: str, *, with_content: bool = False) -> int:
        """The directory, made 0755 if it is missing. `with_content`: what others put there goes when it goes."""
        parent, name = os.path.split(path)
        with fsops.closing(open_system_dir(parent)) as fd:
            if not fsops.exists(fd, name):
                self.note("directory", path=path, with_content=with_content)
                _make_dir(fd, name)
        return open_system_dir(path)

    def file(self, path: str, data: bytes, *, mode: int, gid: int = 0) -> bool:
        """Put the file there, root's. False when it was there like that. Raises HostError if it is somebody else's."""
        directory, name = os.path.split(path)
        with fsops.closing(self.directory(directory)) as fd, contextlib.ExitStack() as stack:
            old = _open_file(fd, name, stack)
            entry = self.find("file", path=path)
            if old is not None:
                status = os.fstat(old)
                found = (_content(old) == data, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
                if found == (True, mode, 0, gid):
                    return False
                if entry is None:
                    raise HostError(
                        f"{path} is there already, and not from sandbox setuid install",
                        hint="remove it, or the package that it belongs to",
                    )
            entry = self.note("file", path=path) if entry is None else entry
            digest = hashlib.sha256(data).hexdigest()
            if digest not in (digests := entry.setdefault("sha256", [])):
                digests.append(digest)
                self.save()
            fsops.replace_file(fd, os.fsencode(name), data, mode=mode, owner=(0, gid), durable=True)
            if old is not None:
                disarm(old)
        return True

    def undo_file(self, entry: Entry, *, say: Say) -> None:
        """Remove the file, if it still is what was put there."""
        directory, name = os.path.split(entry["path"])
        with contextlib.ExitStack() as stack:
            if not os.path.isdir(directory):
                return
            fd = stack.enter_context(fsops.closing(open_system_dir(directory)))
            _delete_drafts(fd, entry.get("sha256", ()))
            if (old := _open_file(fd, name, stack)) is None:
                return
            if hashlib.sha256(_content(old)).hexdigest() not in entry.get("sha256", ()):
                say(f"kept {entry['path']}: it was changed")
                return
            disarm(old)
            fsops.delete_file(fd, os.fsencode(name))
        say(f"removed {entry['path']}")

    def undo_directory(self, entry: Entry, *, say: Say) -> None:
        """Remove the directory, unless something that is not ours is in it."""
        parent, name = os.path.split(entry["path"])
        with contextlib.suppress(FileNotFoundError), fsops.closing(open_system_dir(parent)) as fd:
            if not fsops.exists(fd, name):
                return
            with fsops.closing(fsops.open_dir(fd, os.fsencode(name))) as inner:
                _delete_drafts(inner, None)
                for child in fsops.names(inner) if entry.get("with_content") else ():
                    fsops.remove_tree(inner, child)
            gone = fsops.remove_dir(fd, os.fsencode(name))
            say(f"removed {entry['path']}" if gone else f"kept {entry['path']}: it is not empty")


@contextlib.contextmanager
def open_journal(path: str, *, make: bool) -> Iterator[Journal | None]:
    """The journal in the directory `path`, locked; None when there is none and none shall be made."""
    parent, name = os.path.split(path)
    with fsops.closing(open_system_dir(parent)) as above:
        made = not fsops.exists(above, name)
        if made and not make:
            yield None
            return
        if made:
            # The one thing that is done before it is recorded: the record lies in it.
            _make_dir(above, name)
    with fsops.closing(open_system_dir(path)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink == 0:
            raise HostError(f"{path} was removed a moment ago", hint="try again")
        if not make and not fsops.exists(fd, os.fsdecode(RECORD)):
            yield None
            return
        journal = Journal(fd)
        if made:
            journal.note("directory", path=path, with_content=True)
        yield journal


def _delete_drafts(directory: int, digests: Sequence[str] | None) -> None:
    """Files that an installation was killed over before it gave them their names: in a directory of others those with
    these contents, in one of ours (None) all.
    """
    for name in fsops.names(directory):
        if not name.startswith(fsops.TEMPORARY):
            continue
        with contextlib.ExitStack() as stack:
            fd = _open_file(directory, os.fsdecode(name), stack)
            if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            if digests is None or hashlib.sha256(_content(fd)).hexdigest() in digests:
                disarm(fd)
                fsops.delete_file(directory, name)


def disarm(fd: int) -> None:
    """Take the setuid bit from a program that is replaced or removed: somebody may keep a hard link to it."""
    if os.fstat(fd).st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.fchmod(fd, 0)


def _parse(data: bytes) -> list[Entry]:
    try:
        found = json.loads(data)
        if found["format"] != _FORMAT:
            raise HostError(f"the record of the installation is of format {found['format']}, from another version")
        return list(found["entries"])
    except (ValueError, KeyError, TypeError):
        raise HostError(f"the record of the installation, {printable(RECORD)}, is damaged") from None


def _make_dir(parent: int, name: str) -> None:
    with fsops.closing(fsops.make_new_dir(parent, os.fsencode(name))) as fd:
        os.fchmod(fd, 0o755)
        os.fsync(fd)
    os.fsync(parent)


def _open_file(parent: int, name: str, stack: contextlib.ExitStack) -> int | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return None
    return stack.enter_context(fsops.closing(fd))


def _content(fd: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()
