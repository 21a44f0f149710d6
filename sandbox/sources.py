"""Sources become descriptors here, once, with the user's rights; from then on they are descriptors."""

import errno
import os
import stat
from collections.abc import Iterable

from sandbox.engine import syscalls as sys
from sandbox.errors import SourceError, UsageError, printable, reason, remedy
from sandbox.images.formats import Kind, detect
from sandbox.plan_types import Source, SourceKind
from sandbox.record import Record
from sandbox.spec import TreeKind, check_name

_ARCHIVE_SUFFIXES = (b".gz", b".bz2", b".xz", b".zst", b".Z", b".lz4", b".lzma")


class Opened(Record):
    """A tree whose source is open. `fd` is -1 for an empty tree; `format` is None for a directory.

    `above` are the layers stacked on it, the top one last.
    """

    kind: TreeKind
    name: bytes
    path: bytes
    fd: int
    status: os.stat_result | None
    format: Kind | None
    above: tuple["Opened", ...] = ()

    @property
    def label(self) -> str:
        """The source as a person would name it."""
        return printable(self.path or self.name)

    @property
    def layers(self) -> "tuple[Opened, ...]":
        """Itself and what is stacked on it, bottom first."""
        return (self, *self.above)

    @property
    def is_directory(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


def default_name(path: bytes) -> bytes:
    """NAME of a source without one: the file's stem, without .tar.gz and its like as a whole."""
    base = os.path.basename(path.rstrip(b"/"))
    stem, suffix = os.path.splitext(base)
    if suffix in _ARCHIVE_SUFFIXES and stem.endswith(b".tar"):
        stem = stem[: -len(b".tar")]
    return stem or base


def open_path(kind: TreeKind, name: bytes | None, path: bytes, *, option: str, is_stacked: bool = False) -> Opened:
    """Open a file or directory as a source; without a name it gets that of its stem.

    `is_stacked`: a layer above the first, so that nobody has typed the name before the path.
    """
    fd = _open(path, option=option, given_name=name, is_stacked=is_stacked)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            name = name if name is not None else _directory_name(path, option)
            return Opened(kind, check_name(name, option=option), path, fd, status, None)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{option}: {printable(path)} is neither a regular file nor a directory", hint="name one")  # noqa: TRY301
        name = check_name(name if name is not None else default_name(path), option=option)
        return Opened(kind, name, path, fd, status, detect(fd, printable(path)))
    except BaseException:
        os.close(fd)
        raise


def _directory_name(path: bytes, option: str) -> bytes:
    name = os.path.basename(os.path.normpath(absolute(path)))
    if not name:
        raise UsageError(f"{option}: {printable(path)} has no name of its own", hint=f"name it: {option} root:/")
    return name


def split(text: bytes, *, base: bytes = b"") -> tuple[bytes | None, bytes]:
    """NAME and path. A file whose own name holds a colon is taken whole, an image of the store (@...) as well."""
    if b":" not in text or text.startswith(b"@") or os.path.lexists(os.path.join(base, text)):
        return None, text
    name, _, path = text.partition(b":")
    if not name or not path:
        raise UsageError(f"'{printable(text)}': an empty name or source", hint="[NAME:]SRC")
    return name, path


def layers_of(path: bytes, *, base: bytes = b"") -> tuple[bytes, ...]:
    """The layers of a SRC, BASE[+LAYER...], bottom first. A file whose own name holds a plus is taken whole."""
    if b"+" not in path or os.path.lexists(os.path.join(base, path)):
        return (path,)
    parts = tuple(path.split(b"+"))
    return parts if all(parts) else (path,)


def _open(path: bytes, *, option: str, given_name: bytes | None, is_stacked: bool) -> int:
    try:
        # O_NONBLOCK: a FIFO must not hang the launcher; it means nothing for files and directories.
        return sys.openat2(sys.AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        is_missing = error.errno == errno.ENOENT
        if is_missing and given_name is not None and not is_stacked and os.path.exists(given_name):
            swapped = printable(path + b":" + given_name)
            raise UsageError(
                f"{option}: {printable(path)} does not exist, but {printable(given_name)} does",
                hint=f"the name comes first: {option} {swapped}",
            ) from None
        hint = {errno.EACCES: "check the permissions of the file and of the directories above it"}
        raise SourceError(
            f"{option}: cannot open {printable(path)}: {reason(error)}",
            hint=hint.get(error.errno or 0, remedy(error) if given_name else "[NAME:]SRC"),
        ) from None


def absolute(path: bytes) -> bytes:
    """The path from the root, links and `..` left for the kernel to resolve. Raises SourceError."""
    if path.startswith(b"/"):
        return path
    try:
        return os.path.join(os.getcwdb(), path)
    except FileNotFoundError:
        why = "the working directory was deleted"
        raise SourceError(f"cannot tell where {printable(path)} is: {why}", hint="give an absolute path") from None


def describe(path: bytes, status: os.stat_result) -> Source:
    """The Source of a plan for something that is open."""
    if stat.S_ISDIR(status.st_mode):
        return Source(SourceKind.DIRECTORY, absolute(path), status.st_dev, status.st_ino)
    times = (max(status.st_mtime_ns, 0), max(status.st_ctime_ns, 0))
    return Source(SourceKind.FILE, absolute(path), status.st_dev, status.st_ino, status.st_size, *times)


def refuse_repeated(opened: list[Opened]) -> None:
    """Two trees cannot have one name; raises UsageError with the way out."""
    seen: dict[bytes, Opened] = {}
    for item in opened:
        key = os.path.normpath(item.name)
        if key in seen:
            raise UsageError(
                f"two trees are named '{printable(item.name)}': {seen[key].label} and {item.label}",
                hint="give one of them another name: NAME:SRC",
            )
        seen[key] = item


def refuse_twice(layers: Iterable[tuple[str, tuple[int, int]]]) -> None:
    """An overlay takes nothing twice, under whatever names (ELOOP). Of each layer its label, and device and inode.

    Raises UsageError.
    """
    seen: dict[tuple[int, int], str] = {}
    for label, identity in layers:
        if (other := seen.get(identity)) is not None:
            what = f"{label} is" if other == label else f"{other} and {label} are the same, which is"
            raise UsageError(f"{what} in the stack twice", hint="name each layer once")
        seen[identity] = label
