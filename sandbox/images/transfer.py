"""An image as one file: the squashfs as it is, and behind it what is known of it.

    squashfs | JSON | length of the JSON (8 bytes, little-endian) | "SBXIMG1\\n"

A kernel or any other squashfs tool takes the file as the image, since a superblock says where the image ends. What is
imported is anybody's: the digest is computed, not believed, all of it is read, and no word of it becomes a path.
"""

import json
import os
import stat
import struct
from typing import Any

from sandbox import fsops
from sandbox.errors import SandboxError, SourceError, printable, reason, remedy
from sandbox.images import digests, formats, progress, store, verify
from sandbox.images.store import About, Store
from sandbox.units import size

_MAGIC = b"SBXIMG1\n"
_TAIL = struct.Struct("<Q8s")
_LONGEST = 1 << 16
_TEXT = 4096


def export(images: Store, fd: int, digest: bytes, target: bytes) -> int:
    """Write the image and its note to a new file; the file's size. Raises SandboxError."""
    about = images.about(digest)._replace(digest=digest.decode())
    note = json.dumps(about._asdict()).encode()
    parent, name = os.path.split(target)
    shown = printable(target)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with fsops.closing(os.open(parent or b".", flags)) as directory, fsops.Draft(directory, 0o666) as draft:
            size = fsops.copy_file(fd, draft.fd)
            # What leaves the store is what it should be, whatever the disk did to it.
            if _digest(draft.fd, shown) != digest:
                raise store.DamagedError(f"cannot export {shown}: the image is damaged", hint="sandbox image verify")
            os.pwrite(draft.fd, note + _TAIL.pack(len(note), _MAGIC), size)
            draft.publish(name)
            return os.fstat(draft.fd).st_size
    except FileExistsError:
        raise SandboxError(f"cannot export to {shown}: it exists", hint="remove it, or give another name") from None
    except OSError as error:
        raise SandboxError(f"cannot export to {shown}: {_why(error, fd, parent or b'.')}") from None


def _why(error: OSError, fd: int, directory: bytes) -> str:
    if error.errno not in store.NO_SPACE:
        return reason(error)
    status = os.statvfs(directory)
    needed, free = os.fstat(fd).st_size, status.f_bavail * status.f_frsize
    return f"no space left there: it needs {size(needed)}, {size(free)} are free"


def _digest(fd: int, shown: str) -> bytes:
    bar = progress.on_terminal(f"checking {os.path.basename(shown)[:40]}", os.fstat(fd).st_size)
    try:
        return digests.of_file(fd, shown, bar.update if bar else None)[0]
    finally:
        if bar is not None:
            bar.close()


def take(images: Store, source: bytes) -> bytes:
    """Import the file; the image's digest. A squashfs without a note will do as well. Raises SandboxError."""
    shown = printable(source)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with fsops.closing(os.open(source, flags)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceError(f"cannot import {shown}: it is not a regular file", hint="name an image")
            return _take(images, fd, shown)
    except OSError as error:
        if error.errno in store.NO_SPACE:
            raise SandboxError(
                f"cannot import {shown}: {store.room(images.cache, error)}", hint=store.ROOM_HINT
            ) from None
        raise SourceError(f"cannot import {shown}: {reason(error)}", hint=remedy(error)) from None


def _take(images: Store, fd: int, shown: str) -> bytes:
    """The copy is what is judged: the file may change at any moment."""
    with fsops.Draft(images.cache) as draft:
        store.hold(draft.fd, shared=False)
        size = fsops.copy_file(fd, draft.fd)
        about, length = _note(draft.fd, size, shown)
        os.ftruncate(draft.fd, length)
        if formats.detect(draft.fd, shown) is not formats.Kind.SQUASHFS:
            raise SourceError(
                f"cannot import {shown}: it is no squashfs image", hint="sandbox image build takes archives"
            )
        digest, problem = verify.check(draft.fd, shown, expected=about.digest.encode())
        if problem:
            raise SourceError(f"cannot import {shown}: {problem}", hint="get it again")
        return images.publish(draft, about.source or shown, digest=digest, created=about.created)


def _note(fd: int, size: int, shown: str) -> tuple[About, int]:
    """What stands behind the image, as far as it makes sense, and where the image ends."""
    length, magic = _TAIL.unpack(os.pread(fd, _TAIL.size, max(size - _TAIL.size, 0)).rjust(_TAIL.size, b"\0"))
    if magic != _MAGIC:
        return About(), size
    end = size - _TAIL.size - length
    if length > _LONGEST or end < 0:
        raise SourceError(f"cannot import {shown}: the note behind the image is damaged")
    try:
        known: dict[str, Any] = json.loads(os.pread(fd, length, end))
        texts = {name: printable(str(known[name]))[:_TEXT] for name in ("source", "created", "digest")}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SourceError(f"cannot import {shown}: the note behind the image is damaged") from None
    if not store.is_digest(texts["digest"].encode()):
        raise SourceError(f"cannot import {shown}: the note behind the image holds no digest")
    return About(source=texts["source"], created=texts["created"], digest=texts["digest"]), end
