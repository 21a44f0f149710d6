"""`sandbox image build`: any source becomes an image of the store, and a name may come to mean it."""

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

from sandbox import fsops, sources, units
from sandbox.errors import DamagedError, SandboxError, reason, remedy
from sandbox.images import cache, formats, names, store, verify
from sandbox.images.formats import Kind
from sandbox.spec import TreeKind

COMPRESSIONS = {"fast": cache.FAST, "small": cache.SMALL}


class Built(NamedTuple):
    """The image's digest, and whether it was there already."""

    digest: str
    hit: bool


def build(
    home_fd: int,
    source: bytes,
    *,
    name: bytes | None,
    compress: str | None,
    max_unpacked: int,
    say: Callable[[str], None],
) -> Built:
    """The image of a path or a reference. Raises SandboxError.

    A squashfs, also one inside an ELF or a text, is kept byte for byte unless `compress` asks for packing it anew.
    """
    name = None if name is None else names.check_name(name)
    with cache.Cache(home_fd, say=say) as images, contextlib.ExitStack() as stack:
        if names.is_reference(source) and compress is None:
            found = names.open_reference(images, source)
            stack.callback(os.close, found.fd)
            built = Built(found.digest.decode(), hit=True)
        else:
            built = _converted(images, source, compress, max_unpacked, stack)
        if name is not None:
            names.tag(images, name, built.digest.encode())
        return built


def _converted(
    images: cache.Cache, source: bytes, compress: str | None, max_unpacked: int, stack: contextlib.ExitStack
) -> Built:
    """The image, whose descriptor keeps the reaper away until `stack` closes it."""
    fd, kind, label = _opened(images, source, max_unpacked, stack)
    if kind is Kind.SQUASHFS and compress is None:
        digest = keep(images, fd, label)
        return Built(digest.decode(), hit=False)
    compression = COMPRESSIONS[compress or "fast"]
    uid, gid = os.getuid(), os.getgid()
    if kind is None:
        made = images.directory_image(
            fd, label=label, max_unpacked=max_unpacked, uid=uid, gid=gid, compression=compression
        )
    else:
        made = images.image(fd, kind, label=label, max_unpacked=max_unpacked, uid=uid, gid=gid, compression=compression)
    stack.callback(os.close, made.fd)
    return Built(made.name.removesuffix(store.IMAGE).decode(), made.hit)


def _opened(
    images: cache.Cache, source: bytes, max_unpacked: int, stack: contextlib.ExitStack
) -> tuple[int, Kind | None, str]:
    if names.is_reference(source):
        found = names.open_reference(images, source)
        stack.callback(os.close, found.fd)
        return found.fd, Kind.SQUASHFS, os.fsdecode(source)
    tree = sources.open_path(TreeKind.STATIC, b"image", source, option="image build")
    stack.callback(os.close, tree.fd)
    fd, kind = tree.fd, tree.format
    if kind in (Kind.ELF, Kind.TEXT):
        fd, kind = formats.unwrap(fd, kind, tree.label, max_unpacked)
        stack.callback(os.close, fd)
    return fd, kind, tree.label


def keep(images: store.Store, fd: int, label: str) -> bytes:
    """Take a squashfs into the store as it is, once all of it could be read; its digest. Raises SandboxError."""
    size = os.fstat(fd).st_size
    try:
        with fsops.Draft(images.cache) as draft:
            store.hold(draft.fd, shared=False)
            if fsops.copy_file(fd, draft.fd) != size:
                raise SandboxError(f"cannot keep {label}: it changes while it is read", hint="try again")
            digest, problem = verify.check(draft.fd, label)
            if problem:
                raise DamagedError(f"cannot keep {label}: {problem}")
            return images.publish(draft, label, digest=digest)
    except OSError as error:
        if error.errno not in store.NO_SPACE:
            raise SandboxError(f"cannot keep {label}: {reason(error)}", hint=remedy(error)) from None
        needs = f"it needs {units.size(size)}; {store.room(images.cache, error)}"
        raise SandboxError(f"cannot keep {label}: {needs}", hint=store.ROOM_HINT) from None
