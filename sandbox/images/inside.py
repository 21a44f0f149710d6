"""Looking into an image without mounting it: squashfs-tools-ng reads it, in a process of its own.

Neither program follows a symlink: what is shown is in the image.
"""

import os
import re
import subprocess
from contextlib import AbstractContextManager
from typing import NamedTuple

from sandbox.errors import SourceError, printable
from sandbox.images import pipeline

_LINE = re.compile(rb"(\S{10}) +(\d+)/(\d+) +(\S+) (.*)", re.DOTALL)
# rdsquashfs -l rounds sizes (96k), -s does not, and takes one path.
_TYPE, _SIZE = re.compile(rb"^Inode type: (.*)$", re.MULTILINE), re.compile(rb"^File size: (\d+)$", re.MULTILINE)
_LOOP = """image=$1 options=$2; shift 2
for path; do for option in $options; do "$0" "$option" "$path" "$image" || exit; printf '\\0'; done; done"""
_AT_ONCE = 200


class Entry(NamedTuple):
    """One entry of a directory in an image; `size` is a file's, in bytes, `target` is a symlink's text."""

    mode: str
    uid: int
    gid: int
    size: int
    name: str
    target: str


def reader(
    fd: int, program: str, *options: str | bytes, out: int, said: int
) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    """squashfs-tools-ng's `program` at the image `fd`, restrained, and dead when we are."""
    from sandbox.images.worker import find_program

    argv = pipeline.restrained(find_program(program, "squashfs-tools-ng"))
    return pipeline.start([*argv, *options, f"/proc/self/fd/{fd}"], out=out, said=said, keep=(fd,))


def cat(fd: int, path: bytes, label: str, out: int) -> None:
    """The file's content to the descriptor `out`. Raises SourceError."""
    with pipeline.words() as said, reader(fd, "rdsquashfs", "-c", path, out=out, said=said) as child:
        if child.wait() != 0:
            raise _trouble(path, label, pipeline.text(said))


def listing(fd: int, path: bytes, label: str) -> list[Entry]:
    """The entries of a directory, or the one that is no directory. Raises SourceError."""
    path = path or b"/"
    lines, facts = _ask(fd, [b"-l", b"-s"], [path], label)
    found = [_entry(match) for match in map(_LINE.fullmatch, _whole_lines(lines)) if match]
    above = path + b"/" if _TYPE.findall(facts)[-1:] == [b"directory"] else os.path.dirname(path) + b"/"
    files = [entry for entry in found if entry.mode.startswith("-")]
    sizes: dict[str, int] = {}
    for at in range(0, len(files), _AT_ONCE):
        some = files[at : at + _AT_ONCE]
        told = _ask(fd, [b"-s"], [above + os.fsencode(entry.name) for entry in some], label)
        # A name may look like any line; what is told of the size stands behind it.
        sizes.update({entry.name: int(_SIZE.findall(one)[-1]) for entry, one in zip(some, told, strict=True)})
    return [entry._replace(size=sizes.get(entry.name, len(os.fsencode(entry.target)))) for entry in found]


def _ask(fd: int, options: list[bytes], paths: list[bytes], label: str) -> list[bytes]:
    """What rdsquashfs says of each path with each option. Raises SourceError."""
    from sandbox.images.worker import find_program

    argv = [*pipeline.restrained("/bin/sh"), "-c", _LOOP, find_program("rdsquashfs", "squashfs-tools-ng")]
    words: list[str | bytes] = [*argv, f"/proc/self/fd/{fd}", b" ".join(options), *paths]
    with pipeline.words() as said, pipeline.start(words, out=subprocess.PIPE, said=said, keep=(fd,)) as child:
        told, _ = child.communicate()
        if child.returncode != 0:
            raise _trouble(paths[0], label, pipeline.text(said))
    return told.split(b"\0")[:-1]


def _whole_lines(text: bytes) -> list[bytes]:
    """A name may hold line ends: what does not look like an entry belongs to the one before."""
    found: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if _LINE.fullmatch(line) or not found:
            found.append(line)
        else:
            found[-1] += b"\n" + line
    return found


def _entry(match: "re.Match[bytes]") -> Entry:
    mode, uid, gid, _, rest = match.groups()
    name, _, target = rest.partition(b" -> ") if mode.startswith(b"l") else (rest, b"", b"")
    texts = os.fsdecode(name), os.fsdecode(target)
    return Entry(mode.decode("ascii", "replace"), int(uid), int(gid), 0, *texts)


def _trouble(path: bytes, label: str, said: str) -> SourceError:
    shown = printable(path or b"/")
    for words, meaning in (
        ("no such file", "there is none"),
        ("not a directory", "a directory of this path is no directory (links are not followed)"),
        ("not a regular file", "it is no regular file (links are not followed)"),
        ("Invalid path", "a path inside an image has no '..'"),
    ):
        if words in said:
            return SourceError(f"cannot read {shown} in {label}: {meaning}")
    return SourceError(f"cannot read {shown} in {label}: {printable(said) or 'the image is damaged'}")
