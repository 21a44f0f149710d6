"""`sandbox image diff`: what one image, or stack of images, shows otherwise than another; without mounting either."""

import contextlib
import os
from typing import NamedTuple

from sandbox.errors import printable
from sandbox.images import convert, names
from sandbox.images.store import Store
from sandbox.sources import layers_of


class Change(NamedTuple):
    """One path that differs: `change` is added, removed or changed; `what` of it: type, mode, content, target."""

    change: str
    path: str
    what: list[str]


class _Seen(NamedTuple):
    type: str
    mode: str
    content: str
    target: str


def images(where: Store, one: bytes, other: bytes, *, max_unpacked: int) -> list[Change]:
    """The differences, by path. Either is a reference, or several joined by plus signs. Raises SandboxError."""
    before, after = (_listing(where, reference, max_unpacked) for reference in (one, other))
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        what = [name for name in _Seen._fields if old and new and getattr(old, name) != getattr(new, name)]
        change = "added" if old is None else "removed" if new is None else "changed"
        found.append(Change(change, printable(path or b"."), what))
    return found


def _listing(where: Store, reference: bytes, max_unpacked: int) -> dict[bytes, _Seen]:
    with contextlib.ExitStack() as stack:
        fds = []
        for layer in layers_of(reference):
            fds.append(names.open_reference(where, layer).fd)
            stack.callback(os.close, fds[-1])
        words = convert.list_layers(fds, label="@" + printable(reference.removeprefix(b"@")), max_unpacked=max_unpacked)
    found = {}
    for facts, path, target in zip(words[::3], words[1::3], words[2::3], strict=True):
        kind, mode, content = facts.decode().split(" ")
        # What mode a link has means nothing.
        found[path] = _Seen(kind, "" if kind == "symlink" else mode, content, printable(target))
    return found
