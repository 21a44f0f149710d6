"""What `@NAME` and `@sha256:PREFIX` mean, and changing it: tag, rollback, history, forget.

A name is one symlink, and reading it is one readlinkat. What it meant before stands in history/<name>, one generation
a line, newest first; the symlink alone says which of them is current. The history is written first: a crash in
between leaves a generation that never became current, and a name that still means what it meant.
"""

import contextlib
import os
import re
from typing import NamedTuple

from sandbox import fsops
from sandbox.errors import SandboxError, SourceError, UsageError, printable
from sandbox.images import store
from sandbox.images.store import IMAGE, Store

GENERATIONS = 3  # that are kept, the current one among them
_BY_DIGEST = b"sha256:"
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHORTEST_PREFIX = 4
_LONGEST_HISTORY = 4096
_ATTEMPTS = 3  # a name may be switched, and the old image evicted, between reading the one and opening the other


class Generation(NamedTuple):
    """One image that a name meant, since when (ISO 8601), and whether it does now."""

    digest: str
    since: str
    current: bool


class Found(NamedTuple):
    """An open image with its shared lock, the caller's to close; its digest; what a tree of it is called."""

    fd: int
    digest: bytes
    name: bytes


def is_reference(text: bytes) -> bool:
    """Whether a SRC means an image of the store. A file of such a name is ./@NAME."""
    return text.startswith(b"@")


def check_name(name: bytes) -> bytes:
    """The name itself, without @. Raises UsageError."""
    name = name.removeprefix(b"@")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{printable(name)}' cannot be the name of an image",
            hint="letters, digits, '_', '-' and '.', at most 128, the first a letter, a digit or '_'",
        )
    return name


def resolve(images: Store, reference: bytes) -> bytes:
    """The digest that NAME, @NAME, sha256:PREFIX or @sha256:PREFIX means. Raises UsageError, SourceError."""
    text = reference.removeprefix(b"@")
    if text.startswith(_BY_DIGEST):
        return _by_prefix(images, text[len(_BY_DIGEST) :].lower())
    digest = store.read_link(images.names, check_name(text))
    if digest is None:
        raise SourceError(f"there is no image @{printable(text)}", hint="see sandbox image ls")
    return digest


def _by_prefix(images: Store, prefix: bytes) -> bytes:
    if store.is_digest(prefix):
        return prefix
    shown = f"@sha256:{printable(prefix)}"
    if len(prefix) < _SHORTEST_PREFIX:
        raise UsageError(f"{shown} is too short", hint=f"at least {_SHORTEST_PREFIX} digits of the digest")
    fitting = [name for name in fsops.names(images.cache) if name.startswith(prefix) and name.endswith(IMAGE)]
    if len(fitting) > 1:
        raise UsageError(f"{shown} is ambiguous: {len(fitting)} images start so", hint="give more digits")
    if not fitting:
        raise SourceError(f"there is no image {shown}", hint="see sandbox image ls")
    return fitting[0].removesuffix(IMAGE)


def open_reference(images: Store, reference: bytes, *, count: bool = True) -> Found:
    """The image that the reference means. Raises SandboxError, with the way out when it is damaged or gone."""
    label = "@" + printable(reference.removeprefix(b"@"))
    for _ in range(_ATTEMPTS):
        digest = resolve(images, reference)
        try:
            fd = images.open_image(digest, label, count=count)
        except store.DamagedError as error:
            raise store.DamagedError(error.message, hint="build it again, or sandbox image rollback NAME") from None
        if fd is not None:
            name = reference.removeprefix(b"@")
            return Found(fd, digest, digest[:12] if name.startswith(_BY_DIGEST) else name)
    raise SourceError(f"there is no image {label}", hint="see sandbox image ls")


# -- changing ---------------------------------------------------------------------------------------------------


def tag(images: Store, name: bytes, digest: bytes) -> None:
    """Let the name mean the image, at once and durably. What is rolled back at the moment is given up."""
    name = check_name(name)
    with images.changing_names():
        if not fsops.exists(images.cache, digest + IMAGE):
            raise SourceError(f"cannot name sha256:{digest.decode()[:12]}: it was removed just now", hint="try again")
        current = store.read_link(images.names, name)
        if current == digest:
            return
        older = _lines(images, name)
        older = older[max(_position(older, current), 0) :] if current else []
        lines = [(digest, store.timestamp().encode()), *(line for line in older if line[0] != digest)][:GENERATIONS]
        text = b"".join(b"%s %s\n" % line for line in lines)
        fsops.replace_file(images.history, name, text, durable=True)
        images.link(images.names, name, digest)


def rollback(images: Store, name: bytes) -> bytes:
    """Let the name mean what it meant before; the digest. Raises SandboxError when there is nothing before."""
    name = check_name(name)
    with images.changing_names():
        current = _current(images, name)
        lines = _lines(images, name)
        older = [digest for digest, _ in lines[_position(lines, current) + 1 :] if _there(images, digest)]
        if not older:
            raise SandboxError(
                f"cannot roll back @{printable(name)}: no generation before this one is kept",
                hint="see sandbox image history",
            )
        images.link(images.names, name, older[0])
        return older[0]


def history(images: Store, name: bytes) -> list[Generation]:
    """The generations of a name, newest first. Raises SandboxError."""
    name = check_name(name)
    current = _current(images, name)
    lines = _lines(images, name)
    if all(digest != current for digest, _ in lines):
        lines.insert(0, (current, b""))
    return [Generation(digest.decode(), since.decode(), digest == current) for digest, since in lines]


def forget(images: Store, name: bytes) -> set[bytes]:
    """Remove the name and its history; the digests that it kept. Raises SandboxError."""
    name = check_name(name)
    with images.changing_names():
        kept = {_current(images, name)} | {digest for digest, _ in _lines(images, name)}
        fsops.delete_file(images.names, name)
        os.fsync(images.names)
        fsops.delete_file(images.history, name)
    return kept


def _current(images: Store, name: bytes) -> bytes:
    digest = store.read_link(images.names, name)
    if digest is None:
        raise SourceError(f"there is no image @{printable(name)}", hint="see sandbox image ls")
    return digest


def _there(images: Store, digest: bytes) -> bool:
    return fsops.exists(images.cache, digest + IMAGE)


def _position(lines: list[tuple[bytes, bytes]], digest: bytes) -> int:
    return next((at for at, line in enumerate(lines) if line[0] == digest), -1)


def _lines(images: Store, name: bytes) -> list[tuple[bytes, bytes]]:
    """Digest and time of each generation; damaged lines are none."""
    try:
        text = fsops.read_file(images.history, name, _LONGEST_HISTORY)
    except OSError:
        return []
    pairs = [line.partition(b" ") for line in text.split(b"\n")]
    return [(digest, since) for digest, _, since in pairs if store.is_digest(digest)]


def all_names(images: Store) -> dict[bytes, bytes]:
    """Every name and the digest that it means."""
    found = {}
    for name in images.listed(b"names"):
        if not name.startswith(fsops.TEMPORARY) and (digest := store.read_link(images.names, name)) is not None:
            found[name] = digest
    return found


def kept(images: Store, meant: dict[bytes, bytes] | None = None) -> set[bytes]:
    """The digests of all images that a name means or may be rolled back to: they are never evicted.

    `meant` spares whoever has read `all_names` the second time.
    """
    found: set[bytes] = set()
    for name, digest in (all_names(images) if meant is None else meant).items():
        found.add(digest)
        found.update(line[0] for line in _lines(images, name))
    return found


def remove_orphans(images: Store, there: set[bytes], *, before: float) -> int:
    """Histories without a name, keys without an image, and leftovers, not touched since `before`. Their number.

    `there` are the digests of all images.
    """
    removed = sum(fsops.remove_drafts(parent, before=before) for parent in (images.names, images.history, images.keys))
    names = set(fsops.names(images.names))
    for name in fsops.names(images.history):
        if name not in names:
            removed += fsops.remove_abandoned(images.history, name, before=before)
    for key in fsops.names(images.keys):
        with contextlib.suppress(SandboxError):
            if store.read_link(images.keys, key) not in there:
                removed += fsops.remove_abandoned(images.keys, key, before=before)
    return removed
