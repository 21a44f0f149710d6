"""What there is to say about images: for `sandbox image ls` and `inspect`."""

import os
from typing import NamedTuple

from sandbox.errors import SourceError
from sandbox.images import names
from sandbox.images.store import IMAGE, Store


class Listed(NamedTuple):
    """An image. Sizes are bytes, `created` is ISO 8601, `files` counts inodes; `kept`: by a name or its history."""

    digest: str
    names: list[str]
    size: int
    created: str
    compression: str
    files: int
    source: str
    kept: bool


def images(where: Store) -> list[Listed]:
    """All of them: those with names first, by name, then the newest."""
    by_digest: dict[bytes, list[str]] = {}
    meant = names.all_names(where)
    for name, digest in meant.items():
        by_digest.setdefault(digest, []).append(name.decode())
    kept = names.kept(where, meant)
    digests = [name.removesuffix(IMAGE) for name in where.listed(b"cache") if name.endswith(IMAGE)]
    found = [one for digest in digests if (one := _listed(where, digest, by_digest.get(digest, []), kept))]
    found.sort(key=lambda image: image.created, reverse=True)
    return sorted(found, key=lambda image: (not image.names, image.names))


def image(where: Store, digest: bytes) -> Listed:
    """One of them. Raises SourceError when it is gone."""
    meant = names.all_names(where)
    called = [name.decode() for name, other in meant.items() if other == digest]
    found = _listed(where, digest, called, names.kept(where, meant))
    if found is None:
        raise SourceError(f"there is no image sha256:{digest.decode()[:12]}", hint="see sandbox image ls")
    return found


def _listed(where: Store, digest: bytes, called: list[str], kept: set[bytes]) -> Listed | None:
    try:
        size = os.stat(digest + IMAGE, dir_fd=where.cache, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None
    about = where.about(digest)
    facts = about.created, about.compression, about.files, about.source
    return Listed(digest.decode(), sorted(called), size, *facts, digest in kept)
