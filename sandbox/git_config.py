"""What git's configuration files say, as far as it names files: git-config(1). Nothing of git's is started."""

import os
import re
import stat
from collections.abc import Iterator

from sandbox import fsops

# More than anybody has; a directory of the user's may hold anything.
_MOST_FILES, _LONGEST = 64, 1 << 20
_SECTION = re.compile(rb'\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\]|\\.)*)")?\s*\]')
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:=[ \t]*(.*))?")
_PART = re.compile(rb'"((?:[^"\\]|\\.)*)"?|\\(.)|([#;].*)|([^"\\#;]+)')
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"b": b"\b"}


def entries(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each `section.key`, in lower case and without a subsection, with its value."""
    section = b""
    for line in re.sub(rb"\\\r?\n", b"", text).splitlines():
        rest = line.strip()
        if found := _SECTION.match(rest):
            section, rest = found[1].split(b".")[0].lower(), rest[found.end() :].lstrip()
        if found := _KEY.match(rest):
            yield section + b"." + found[1].lower(), _value(found[2] or b"")


def _value(text: bytes) -> bytes:
    """Without quotes, escapes and a comment."""
    parts = []
    for quoted, escaped, comment, plain in _PART.findall(text):
        if comment:
            break
        parts.append(re.sub(rb"\\(.)", _unescaped, quoted) if quoted else _ESCAPED.get(escaped, escaped) + plain)
    return b"".join(parts).strip()


def _unescaped(found: "re.Match[bytes]") -> bytes:
    return _ESCAPED.get(found[1], found[1])


def read_all(files: list[bytes]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """The absolute paths of these files and of all that they include, there or not, and what stands in them.

    A condition of an `includeIf` is taken to hold.
    """
    found: list[bytes] = []
    said: list[tuple[bytes, bytes]] = []
    waiting = list(files)
    while waiting and len(found) < _MOST_FILES:
        file = waiting.pop(0)
        if file in found:
            continue
        found.append(file)
        for key, value in entries(_read(file)):
            said.append((key, value))
            if key in (b"include.path", b"includeif.path") and value:
                waiting.append(os.path.join(os.path.dirname(file), os.path.expanduser(value)))
    return found, said


def of_user() -> list[bytes]:
    """The files of the user and of the system."""
    config = os.environb.get(b"XDG_CONFIG_HOME") or os.path.expanduser(b"~/.config")
    return [b"/etc/gitconfig", config + b"/git/config", os.path.expanduser(b"~/.gitconfig")]


def _read(path: bytes) -> bytes:
    """Nothing where that is no file, or cannot be read: git reads nothing there either. No FIFO is waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    with fsops.closing(fd):
        return os.read(fd, _LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
