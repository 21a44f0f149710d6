"""Content digests of sources, remembered for unchanged files: `digests/<dev>-<ino>`.

A remembered digest holds while device, inode, size, mtime and ctime are the same. A file that changes twice within
one tick of the file system's clock keeps its times, so a digest is remembered only when both times had been still
for two seconds when hashing began (the trick of git's index, "racy git").
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from sandbox import fsops
from sandbox.errors import SourceError, reason, remedy

_CHUNK = 1 << 20
_SETTLED_NS = 2_000_000_000
_FORMAT = b"1"


# Gets how many bytes have been read so far.
Told = Callable[[int], None] | None


class Remembered(NamedTuple):
    """The source's content digest (hex), and the cache key that was last derived from it with `parameters`."""

    digest: bytes
    parameters: bytes
    key: bytes


def state_of(status: os.stat_result) -> bytes:
    """What must be the same for a memory to hold."""
    return b"%s %d %d %d" % (_FORMAT, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _name(status: os.stat_result, suffix: bytes) -> bytes:
    return b"%d-%d%s" % (status.st_dev, status.st_ino, suffix)


def recall(digests: int, status: os.stat_result, *, suffix: bytes = b"", state: bytes = b"") -> Remembered | None:
    """What is remembered of the file with this status, if it is unchanged."""
    try:
        lines = fsops.read_file(digests, _name(status, suffix), 4096).split(b"\n")
    except OSError:
        return None
    if len(lines) != 5 or lines[0] != (state or state_of(status)):
        return None
    return Remembered(lines[1], lines[2], lines[3])


def remember(
    digests: int, status: os.stat_result, known: Remembered, *, suffix: bytes = b"", state: bytes = b""
) -> None:
    """A memory that cannot be written is none: the next run hashes again."""
    data = b"\n".join((state or state_of(status), known.digest, known.parameters, known.key, b""))
    with contextlib.suppress(OSError):
        fsops.replace_file(digests, _name(status, suffix), data)


def is_settled(status: os.stat_result, now_ns: int) -> bool:
    """Whether the file's times are old enough for a change to show in them."""
    return max(status.st_mtime_ns, status.st_ctime_ns) + _SETTLED_NS <= now_ns


def of_file(fd: int, label: str, told: Told = None) -> tuple[bytes, os.stat_result, bool]:
    """The SHA-256 (hex) of the file, its status, and whether that may be remembered. Raises SourceError."""
    import hashlib

    began = time.time_ns()
    status = os.fstat(fd)
    digest, at = hashlib.sha256(), 0
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    try:
        while count := os.preadv(fd, [buffer], at):
            digest.update(view[:count])
            at += count
            if told is not None:
                told(at)
    except OSError as error:
        raise SourceError(f"cannot read {label}: {reason(error)}", hint=remedy(error)) from None
    if state_of(os.fstat(fd)) != state_of(status) or at != status.st_size:
        raise SourceError(f"cannot use {label}: it changes while it is read", hint="try again when it is complete")
    return digest.hexdigest().encode(), status, is_settled(status, began)


def listing_state(dir_fd: int) -> tuple[bytes, bool]:
    """A digest of every entry's identity, size and times below a directory, and whether all of them are settled."""
    import hashlib

    from sandbox.images.tree import walk

    began, newest = time.time_ns(), 0
    digest = hashlib.sha256(_FORMAT)
    for path, status, _, _ in walk(dir_fd):
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        fields = (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(b"%d %d %d %d %d %d %d " % (*fields, len(path)) + path)
    return digest.hexdigest().encode(), newest + _SETTLED_NS <= began


def of_tree(dir_fd: int) -> bytes:
    """The SHA-256 (hex) of a directory's canonical listing (names, types, modes, times, link texts) and contents."""
    import hashlib

    from sandbox.images.tree import TreeSource

    digest = hashlib.sha256(b"tree " + _FORMAT)
    source = TreeSource(dir_fd)
    for raw in source:
        content = hashlib.sha256()
        if raw.hardlink is None and raw.size:
            for offset, view in source.blocks(raw.name):
                content.update(b"%d " % offset)
                content.update(view)
        fields = (raw.filetype, raw.perm, raw.mtime_ns, raw.size or 0)
        texts = (raw.name, raw.symlink, raw.hardlink or b"", content.digest())
        digest.update(b"%d %d %d %d " % fields + b"".join(b"%d:" % len(text) + text for text in texts))
    return digest.hexdigest().encode()
