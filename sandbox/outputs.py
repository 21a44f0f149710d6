"""The files that a run writes: each has a place of its own, or what is written later destroys what was there first."""

import contextlib
import os
from collections.abc import Iterator

from sandbox.errors import UsageError, printable
from sandbox.spec import Keep, Spec

# What a log was before it was started anew is called this behind its name.
OLD_LOG = b".1"


def place_of(keep: Keep) -> tuple[bytes, bytes]:
    """The directory that an artefact goes to, and the name that it gets there."""
    parent, name = os.path.split(keep.target)
    return parent, name or os.path.basename(keep.source.rstrip(b"/"))


def is_descriptor(text: bytes) -> bool:
    """Whether what an option takes beside names is one: - or fd:N."""
    return text == b"-" or text.startswith(b"fd:")


def refuse_shared(spec: Spec, cwd: bytes = b"", junit: bytes | None = None) -> None:
    """Before any is opened. Raises UsageError for two of one name in one directory, however that is spelled.

    Artefacts are relative to `cwd` (default: this process's). Who opens a file says what is wrong with its directory.
    """
    _refuse_passed_on(spec)
    taken: dict[tuple[int, int, bytes], str] = {}
    for option, parent, name in _places(spec, cwd, junit):
        with contextlib.suppress(OSError, ValueError):
            directory = os.stat(parent or b".")
            place = directory.st_dev, directory.st_ino, name
            if place in taken:
                text = f"{taken[place]} and {option} name one and the same file, {printable(name)}"
                raise UsageError(text, hint="give each a file of its own")
            taken[place] = option


def _refuse_passed_on(spec: Spec) -> None:
    """What sandbox itself writes to is closed for the command, which would miss it."""
    taken = {"--status-fd": b"" if spec.status_fd is None else b"fd:%d" % spec.status_fd}
    taken |= {"--report": spec.report or b"", "--trace": spec.trace or b""}
    passed = {b"fd:%d" % number for number in spec.pass_fds}
    for option, target in taken.items():
        if target in passed:
            what = f"{option} and --pass-fd name the same descriptor"
            raise UsageError(what, hint="give each a descriptor of its own")


def _places(spec: Spec, cwd: bytes, junit: bytes | None) -> Iterator[tuple[str, bytes, bytes]]:
    """Option, directory and name of each."""
    for keep in spec.keeps:
        parent, name = place_of(keep)
        yield "--keep", os.path.join(cwd, parent), name
    if spec.log is not None:
        parent, name = os.path.split(spec.log)
        yield "--log", parent, name
        yield "--log", parent, name + OLD_LOG
    for option, text in (("--trace", spec.trace), ("--report", spec.report), ("--junit", junit)):
        if text is not None and not is_descriptor(text):
            yield option, *os.path.split(text)
