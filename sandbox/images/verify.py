"""Whether images are what they should be: the digest of all bytes, and every file in them read."""

import contextlib
import os
import subprocess
from typing import NamedTuple, Self

from sandbox.errors import ArchiveError, HostError, SandboxError, SourceError
from sandbox.images import catalog, digests, formats, inside, pipeline, progress, store
from sandbox.images.store import IMAGE, Store


class Verdict(NamedTuple):
    """`problem` is empty for an image that is well; `evicted` when it was damaged and no name kept it."""

    digest: str
    problem: str
    evicted: bool


def verify(images: Store, digest: bytes) -> Verdict | None:
    """Read the image, whole, twice: as bytes and as files. None when it is gone. Raises HostError."""
    fd = _open(images, digest)
    if fd is None:
        return None
    try:
        found, problem = check(fd, f"sha256:{digest.decode()[:12]}", expected=digest)
        if not problem:
            images.remember(fd, digest)
    finally:
        os.close(fd)
    # What is as it was published would be no better if it were made anew.
    evicted = found != digest and _evict(images, digest)
    return Verdict(digest.decode(), problem, evicted)


def _open(images: Store, digest: bytes) -> int | None:
    try:
        fd = os.open(digest + IMAGE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=images.cache)
    except FileNotFoundError:
        return None
    store.hold(fd, shared=True)
    return fd


def _evict(images: Store, digest: bytes) -> bool:
    """False when a name keeps it or a sandbox uses it."""
    with contextlib.suppress(SandboxError):
        catalog.remove(images, (digest + IMAGE).decode())
        return True
    return False


class Checked(NamedTuple):
    """The digest of an image's bytes, and what is wrong with it, or ""."""

    digest: bytes
    problem: str


def check(fd: int, label: str, *, expected: bytes = b"") -> Checked:
    """Look at all of a file: its bytes are hashed while another process reads the files in it. `expected` is the digest
    that it should have, if that is known.

    Raises HostError when this host cannot tell: that is not the image's fault.
    """
    bar = progress.on_terminal(f"verifying {label}", os.fstat(fd).st_size)
    try:
        if formats.detect(fd, label) is not formats.Kind.SQUASHFS:
            return Checked(b"", "it is no squashfs image")
        with _Reading(fd) as reading:
            found = digests.of_file(fd, label, bar.update if bar else None)[0]
            if expected and found != expected:
                return Checked(found, "its content is not what its digest says")
            return Checked(found, reading.result())
    except (ArchiveError, SourceError) as error:
        return Checked(b"", error.message)
    finally:
        if bar is not None:
            bar.close()


class _Reading:
    """sqfs2tar reads every block of every file, and checks what it can; nobody wants the tar."""

    def __init__(self, fd: int) -> None:
        self._stack = contextlib.ExitStack()
        self._said = self._stack.enter_context(pipeline.words())
        null = subprocess.DEVNULL
        self._child = self._stack.enter_context(inside.reader(fd, "sqfs2tar", "--no-xattr", out=null, said=self._said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def result(self) -> str:
        if (status := self._child.wait()) == 0:
            return ""
        if status < 0:
            raise HostError(f"cannot verify an image: sqfs2tar {pipeline.ended(status)}", hint="try again")
        return f"not all of it can be read: {pipeline.text(self._said) or 'sqfs2tar failed'}"
