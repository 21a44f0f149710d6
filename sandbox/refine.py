"""What refines a run at every level: binds, devices, hidden places, small tmpfs, links, files; in the order given.

A source is opened once, with the user's rights; the plan has its device and inode. What is mounted on is of the host
(compared in the same way), or below a mount of the run's own, where a missing mount point is made.
"""

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from sandbox import fsops, sources
from sandbox.engine import syscalls as sys
from sandbox.errors import SourceError, UsageError, printable, reason
from sandbox.level_steps import Bind, File, Hide, Node, Symlink, Text
from sandbox.plan import Attach, Mkdir
from sandbox.plan import Tmpfs as TmpfsStep
from sandbox.plan_types import Attr, Base, Place
from sandbox.record import Record
from sandbox.spec import Refinement, Spec, parse_size

if TYPE_CHECKING:
    from sandbox.builder import Builder
    from sandbox.isolation import Surroundings

_SAFE = Attr.NOSUID | Attr.NODEV
_BINDS = ("bind", "ro-bind", "bind-try")


class Change(Record):
    """One refinement, understood. `source` is what is bound, or what a link leads to; `text` what a file holds."""

    option: str
    dest: bytes
    source: bytes = b""
    size: int | None = None
    text: bytes = b""


class Opened(Record):
    """A change, with what is bound as it is now and where it goes: `target` is the place, `makes` whether a mount point
    of the run's own may be made there.
    """

    change: Change
    target: Place
    makes: bool
    source: Place | None = None
    is_directory: bool = False


def parse(refinement: Refinement) -> Change:
    """Raises UsageError."""
    option, text = refinement.option, refinement.text
    if option in _BINDS:
        source, dest = _source_and_dest(text)
        return Change(option, _dest(option, dest or os.path.normpath(sources.absolute(source))), source)
    if option == "device":
        return Change(option, _dest(option, text), text)
    if option == "tmpfs":
        dest, _, size = text.rpartition(b":")
        if dest and not size.startswith(b"/"):
            return Change(option, _dest(option, dest), size=parse_size(os.fsdecode(size), option="--tmpfs"))
        return Change(option, _dest(option, text))
    if option == "symlink":
        target, _, link = text.rpartition(b":")
        if not target:
            raise UsageError(f"--symlink: '{printable(text)}' has no target and no name", hint="TARGET:LINK")
        return Change(option, _dest(option, link), target)
    if option == "file":
        dest, equals, content = text.partition(b"=")
        if not equals or len(content) > 65536:
            raise UsageError(f"--file: {printable(dest[:200])}: no text, or more than 64 KiB", hint="DEST=TEXT")
        return Change(option, _dest(option, dest), text=content)
    return Change(option, _dest(option, text))


def _source_and_dest(text: bytes) -> tuple[bytes, bytes]:
    """A file whose own name holds a colon is taken whole."""
    source, colon, dest = text.rpartition(b":/")
    return (text, b"") if not colon or not source or os.path.lexists(text) else (source, b"/" + dest)


def _dest(option: str, path: bytes) -> bytes:
    if not path.startswith(b"/") or b".." in path.split(b"/") or not path.strip(b"/"):
        raise UsageError(
            f"--{option}: '{printable(path)}' must be an absolute path without '..', and not /",
            hint="the place inside the sandbox",
        )
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def opened(
    spec: Spec, where: "Surroundings | None", own: list[bytes], stack: contextlib.ExitStack
) -> tuple[Opened, ...]:
    """Everything looked at, in order. `own`: mount points of this run. Raises UsageError and SourceError."""
    found: list[Opened] = []
    bound: list[bytes] = []
    for refinement in spec.refinements:
        change = parse(refinement)
        source = None
        if change.option in (*_BINDS, "device"):
            source = _open_source(change, stack)
            if source is None:
                continue
        is_own = (where is not None and where.covers(change.dest)) or _is_below(change.dest, own)
        makes = is_own and not _is_below(change.dest, bound)
        inside = is_own or _is_below(change.dest, bound)
        target = Place(Base.ROOT, change.dest)
        if change.option == "symlink" and not makes:
            raise UsageError(
                f"--symlink: {printable(change.dest)} is on the host, where nothing is changed",
                hint="put it below a --tmpfs, or use --isolation strict",
            )
        kind = change.option == "tmpfs" or (source is not None and stat.S_ISDIR(source[1]))
        if not inside and change.option not in ("hide", "symlink", "device"):
            target = _host_target(change, is_directory=kind)
        (bound if change.option in _BINDS else own).append(change.dest)
        found.append(Opened(change, target, makes, source[0] if source else None, kind))
    return tuple(found)


def _is_below(path: bytes, tops: list[bytes]) -> bool:
    return any(path == top or path.startswith(top.rstrip(b"/") + b"/") for top in tops)


def _open_source(change: Change, stack: contextlib.ExitStack) -> tuple[Place, int] | None:
    """The source's place and its mode; None where there is none and none is needed."""
    device = change.option == "device"
    try:
        fd = sys.openat2(sys.AT_FDCWD, change.source, os.O_PATH, resolve=sys.RESOLVE_NO_SYMLINKS if device else 0)
    except OSError as error:
        source, colon, dest = change.source.rpartition(b":")
        if colon and change.option in _BINDS and os.path.lexists(source):
            _dest(change.option, dest)  # Relative, it was taken for a part of the source's name.
        if change.option == "bind-try" and isinstance(error, FileNotFoundError):
            return None
        hint = "name the node itself, not a link" if device else ""
        raise SourceError(
            f"--{change.option}: cannot open {printable(change.source)}: {reason(error)}", hint=hint
        ) from None
    stack.enter_context(fsops.closing(fd))
    status = os.fstat(fd)
    if device:
        _check_device(change, fd, status.st_mode)
    path = os.readlink(b"/proc/self/fd/%d" % fd)
    return Place(Base.ROOT, path, status.st_dev, status.st_ino), status.st_mode


def _check_device(change: Change, fd: int, mode: int) -> None:
    """The node works in the sandbox as it does for the user outside, and no better."""
    shown = printable(change.source)
    if not change.dest.startswith(b"/dev/") or not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"--device: {shown} is not a device node below /dev", hint="for all else there is --bind")
    if os.fstatvfs(fd).f_flag & os.ST_NODEV:
        raise SourceError(f"--device: {shown}: no device can be opened there (mounted nodev)", hint="name one in /dev")
    if not os.access(b"/proc/self/fd/%d" % fd, os.R_OK):
        raise SourceError(f"--device: {shown}: Permission denied", hint="join the group that the node belongs to")


def _host_target(change: Change, *, is_directory: bool) -> Place:
    try:
        fd = os.open(change.dest, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"--{change.option}: cannot mount on {printable(change.dest)}: {reason(error)}",
            hint="name what exists, or what is below a --tmpfs; --isolation strict makes any",
        ) from None
    with fsops.closing(fd):
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode) != is_directory:
            kinds = "a directory on the file" if is_directory else "a file on the directory"
            raise UsageError(
                f"--{change.option}: cannot mount {kinds} {printable(change.dest)}",
                hint="name a place of the same kind",
            )
        return Place(Base.ROOT, os.readlink(b"/proc/self/fd/%d" % fd), status.st_dev, status.st_ino)


class Refiner:
    """Adds the steps to a builder's: sources are cloned before anything of the host is covered."""

    def __init__(self, builder: "Builder", changes: tuple[Opened, ...]) -> None:
        self.builder, self.changes = builder, changes
        self.slots: dict[int, int] = {}

    def clone(self) -> None:
        for number, item in enumerate(self.changes):
            if item.source is not None:
                self.slots[number] = slot = self.builder.slot()
                self.builder.steps.append(Bind(slot, item.source))

    def apply(self, *, private_dev: bool) -> list[bytes]:
        """In the order given; returns where something else is then."""
        for number, item in enumerate(self.changes):
            change, add = item.change, self.builder.steps.append
            match change.option:
                case "hide":
                    add(Hide(change.dest))
                case "symlink":
                    add(Symlink(item.target, change.source))
                case "device":
                    if private_dev:
                        add(Node(self.slots[number], change.dest.removeprefix(b"/dev/")))
                case "tmpfs":
                    size = change.size or self.builder.tmpfs_size
                    add(TmpfsStep(slot := self.builder.slot(), size, 0, 0o755))
                    self.attach(item, slot, _SAFE, is_directory=True)
                case "file":
                    add(Text(slot := self.builder.slot(), 0o444, change.text))
                    self.attach(item, slot, _SAFE | Attr.READ_ONLY, is_directory=False)
                case _:
                    attrs = _SAFE | (Attr.READ_ONLY if change.option == "ro-bind" else Attr(0))
                    self.attach(item, self.slots[number], attrs, is_directory=item.is_directory)

        return [item.change.dest for item in self.changes]

    def attach(self, item: Opened, slot: int, attrs: Attr, *, is_directory: bool) -> None:
        if item.makes:
            self.builder.steps.append(Mkdir(item.target, 0o755) if is_directory else File(item.target, 0o644, b""))
        self.builder.steps.append(Attach(slot, item.target, attrs))
        self.builder.shown.append(item.target)
