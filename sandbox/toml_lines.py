"""TOML of a stranger's: bounded before it is parsed, and with the line of every key.

tomllib tells no positions, and nor does tomlkit (its issue 55), so a small scanner finds where statements begin and
end; what they mean is tomllib's alone. The scanner is exact for all that tomllib accepts, and stops where it does not.
"""

import re
import tomllib
from typing import Any

from sandbox.errors import UsageError, printable

MAX_BYTES = 256 << 10
# More nesting ends in a RecursionError of tomllib, more dots in one key in seconds of work.
_MAX_DEPTH = 100
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[\]{}.\n\"']",
    re.DOTALL,
)
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
Path = tuple[str, ...]


def parse(data: bytes, name: str) -> tuple[dict[str, Any], str]:
    """The values and the text. `name` is the file's, for the one line of a UsageError."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: more than {MAX_BYTES >> 10} KiB", hint="is it the right file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}:{line}: not UTF-8", hint="TOML is UTF-8 text") from None
    statements(text, name)
    try:
        return tomllib.loads(text), text
    except ValueError as error:
        message = str(error).partition(";")[0]
        place = _PLACE.search(message)
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        what = printable(message[: place.start()] if place else message)
        raise UsageError(f"{name}:{line}: {what}", hint="the file must be TOML") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply", hint="is it the right file?") from None


def statements(text: str, name: str) -> list[tuple[int, str]]:
    """Every statement with the number of its first line. Raises UsageError for one that nests or dots too deeply."""
    found: list[tuple[int, str]] = []
    start, line, depth, dots = 0, 1, 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case ".":
                dots += 1
            case '"' | "'":
                break  # A string that does not end: tomllib says so.
            case "\n" if depth <= 0:
                found.append((line, text[start : token.end()]))
                line += text.count("\n", start, token.end())
                start, depth, dots = token.end(), 0, 0
        if max(depth, dots) > _MAX_DEPTH:
            raise UsageError(f"{name}:{line}: nested too deeply", hint="is it the right file?")
    return [*found, (line, text[start:])]


def lines(text: str) -> dict[Path, int]:
    """The line on which the statement begins that gives each key or table its (first) value."""
    found: dict[Path, int] = {}
    table: Path = ()
    for line, statement in statements(text, ""):
        values = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = ()
            _record(found, table, values, line)
            table = _only_path(values)
        else:
            _record(found, table, values, line)
    return found


def _record(found: dict[Path, int], above: Path, values: dict[str, Any], line: int) -> None:
    for key, value in values.items():
        found.setdefault((*above, key), line)
        if isinstance(value, dict):
            _record(found, (*above, key), value, line)


def _only_path(values: Any) -> Path:
    """The path that a header names: it alone makes a chain of tables with one key each."""
    path: Path = ()
    while values:
        if isinstance(values, list):
            values = values[0]
            continue
        ((key, values),) = values.items()
        path = (*path, key)
    return path
