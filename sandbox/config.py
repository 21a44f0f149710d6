"""config.toml: a site's and a user's defaults for the options of `sandbox run`, by the keys of job files.

Only the command line reads it: who uses the Python API says what is wanted, and the setuid helper has its own policy.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from sandbox import home
from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.option_file import Key, Opened, OptionFile

SITE = b"/etc/sandbox/config.toml"
TABLE = "run"


class Place(Record):
    """Where such a file may be, and whose defaults these are: `site` or `user`."""

    origin: str
    path: bytes


class Setting(Record):
    """An option that a file sets, as the word of a command line, and where in the file it stands."""

    name: str
    word: str
    line: int
    path: tuple[str, ...]


def places(environ: Mapping[bytes, bytes]) -> list[Place]:
    """The site's, then the user's, whose word counts more: $XDG_CONFIG_HOME, else ~/.config, as basedir-spec says."""
    base = environ.get(b"XDG_CONFIG_HOME") or b""
    if not base.startswith(b"/"):
        own = home.of_user(environ, say=lambda _: None)
        base = os.path.join(own, b".config") if own else b""
    return [Place("site", SITE), *([Place("user", os.path.join(base, b"sandbox", b"config.toml"))] if base else [])]


def found(environ: Mapping[bytes, bytes]) -> "Iterator[tuple[Place, Opened]]":
    """Those that are there. Raises UsageError for one that others could have written."""
    for place in places(environ):
        if os.path.lexists(place.path):
            from sandbox import jobfile

            yield place, jobfile.open_trusted(place.path, hint="correct that, or --no-config")


def read(opened: "Opened", known: "dict[str, Key]", limits: Collection[str]) -> "tuple[OptionFile, list[Setting]]":
    """What a file sets. Raises UsageError for its first mistake."""
    from sandbox.option_file import OptionFile

    file = OptionFile(opened, known, limits)
    for key in file.values:
        if key != TABLE:
            file.unknown((key,), [TABLE], "defaults stand in a table [run]")
    table = file.values.get(TABLE, {})
    if not isinstance(table, dict):
        file.problem((TABLE,), f"{TABLE} must be a table", f"[{TABLE}]")
        table = {}
    words = list(file.options((TABLE,), table, own=("level", "limits")))
    file.refuse_problems()
    return file, [_setting(file, word, known) for word in words]


def _setting(file: "OptionFile", word: str, known: "dict[str, Key]") -> Setting:
    name = word.removeprefix("--").partition("=")[0]
    if name not in known:
        name = name.removeprefix("no-")
    path = (file.paths((TABLE,), name) or [(TABLE,)])[0]
    return Setting(name, word, file.line(path), path)
