"""Tables whose keys are options of `sandbox run`: what the keys are, and all that is wrong with a file of them."""

import argparse
import math
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from sandbox import toml_lines
from sandbox.errors import UsageError, printable
from sandbox.record import Record

# Options that are no keys, and why.
NOT_KEYS = {
    "job": "a job that names a job would have two meanings",
    "job-file": "a job file that names a job file would have two meanings",
    "args": "it is about one start, not about the job",
    "explain": "it is about one start, not about the job",
    "verbose": "it is about one start, not about the job",
    "no-config": "it is about one start, not about the job",
    "no-plan-cache": "it is about one start, not about the job",
}
# Suggestions take their time: a hostile file must not make it minutes.
_MOST_PROBLEMS = 100
_NUMBERS = ("N", "SIZE", "DURATION")


class Key(Record):
    """A key of a job: `kind` is flag, value or list; `pairs`: K=V values, which may be a table as well."""

    name: str
    kind: str
    numeric: bool
    pairs: bool
    choices: tuple[str, ...]
    help: str

    @property
    def type(self) -> str:
        """What a value of it must be, for a person."""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "list":
            items = "strings or numbers" if self.numeric else "strings"
            return f"a list of {items}" + (", or a table of strings" if self.pairs else "")
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "a string or a number" if self.numeric else "a string"


class Problem(Record):
    """What is wrong with a file, and where."""

    line: int
    message: str
    hint: str


class Opened(Record):
    """A job file as found. `directory` is an O_PATH descriptor of the directory to work in, -1: the caller's."""

    name: str
    data: bytes
    directory: int = -1
    above: bool = False


def keys(actions: Iterable[argparse.Action]) -> dict[str, Key]:
    """The keys that the options of `sandbox run` make."""
    found = {}
    for action in actions:
        name = max(action.option_strings, key=len).removeprefix("--")
        if name not in NOT_KEYS:
            kind = "flag" if action.nargs == 0 else "list" if isinstance(action.default, list) else "value"
            shape = str(action.metavar or "")
            found[name] = Key(
                name, kind, shape in _NUMBERS, "=" in shape, tuple(action.choices or ()), action.help or ""
            )
    return found


class OptionFile:
    """A file of tables whose keys are options, and all that is wrong with it. Raises UsageError for what is no TOML."""

    def __init__(self, opened: Opened, known: dict[str, Key], limits: Collection[str]) -> None:
        self.name = opened.name
        self.values, self._text = toml_lines.parse(opened.data, opened.name)
        self._known, self._limits = known, sorted(name.replace("_", "-") for name in limits)
        self._lines: dict[toml_lines.Path, int] = {}
        self.problems: list[Problem] = []

    def line(self, path: toml_lines.Path) -> int:
        """Where `path`, or what of it there is, stands in the file."""
        self._lines = self._lines or toml_lines.lines(self._text)
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def problem(self, path: toml_lines.Path, message: str, hint: str) -> None:
        if len(self.problems) == _MOST_PROBLEMS:
            raise UsageError(f"{self.name}: more than {_MOST_PROBLEMS} mistakes", hint="is it the right file?")
        where = f"job {path[1]}: " if len(path) > 1 and path[0] == "job" else ""
        self.problems.append(Problem(self.line(path), printable(where + message), printable(hint)))

    def refuse_problems(self) -> None:
        """Raises UsageError for the first one."""
        for problem in sorted(self.problems, key=lambda problem: problem.line):
            raise UsageError(f"{self.name}:{problem.line}: {problem.message}", hint=problem.hint)

    def paths(self, table: toml_lines.Path, name: str) -> list[toml_lines.Path]:
        """Where in a table an option stands."""
        entry = self.values
        for key in table:
            entry = entry[key]
        limits = entry.get("limits")
        inside = [(*table, "limits", name)] if isinstance(limits, dict) and name in limits else []
        keys = (name, "level") if name == "isolation" else (name,)
        return inside + [(*table, key) for key in keys if key in entry]

    def unknown(self, path: toml_lines.Path, known: Iterable[str], otherwise: str) -> None:
        key = path[-1]
        hint = NOT_KEYS.get(key) or nearest(key, known) or otherwise
        message = f"{key} is for the command line only" if key in NOT_KEYS else f"unknown key {key}"
        self.problem(path, message, hint)

    def options(self, path: toml_lines.Path, entry: dict[str, Any], *, own: Collection[str]) -> Iterator[str]:
        """The words that a table's keys stand for; `own` are keys that are no options."""
        if "level" in entry and "isolation" in entry:
            self.problem((*path, "level"), "level and isolation are the same", "leave one of them out")
        limits = entry.get("limits")
        for key, value in entry.items():
            option = self._known.get("isolation" if key == "level" else key)
            if key == "limits" and isinstance(value, dict):
                yield from self._limit_options((*path, key), value)
            elif isinstance(limits, dict) and key in self._limits and key in limits:
                self.problem((*path, key), f"{key} stands in limits as well", "leave one of them out")
            elif option is not None:
                yield from self._option((*path, key), option, value)
            elif key == "limits":
                self.problem(
                    (*path, key), f"limits must be a table, not {type_name(value)}", 'limits = { timeout = "20m" }'
                )
            elif key not in own:
                self.unknown((*path, key), [*self._known, *own], "docs/job-files.md lists the keys")

    def _limit_options(self, path: toml_lines.Path, table: dict[str, Any]) -> Iterator[str]:
        for key, value in table.items():
            if key in self._limits:
                yield from self._option((*path, key), self._known[key], value)
            else:
                self.unknown((*path, key), self._limits, f"limits are: {', '.join(self._limits)}")

    def _option(self, path: toml_lines.Path, key: Key, value: Any) -> Iterator[str]:
        if key.kind == "flag":
            # Also what is off is said: it may have been switched on before.
            yield f"--{key.name}" if self._flag(path, value) else f"--no-{key.name}"
            return
        if key.pairs and isinstance(value, dict):
            for name, text in value.items():
                yield f"--{key.name}={self._pair((*path, name), name, text)}"
            return
        if key.kind == "list" and not isinstance(value, list):
            self.problem(path, f"{path[-1]} must be {key.type}, not {type_name(value)}", f'{path[-1]} = ["..."]')
            return
        for item in value if key.kind == "list" else [value]:
            # As one word, so that no value can be taken for an option.
            yield f"--{key.name}={self._text_of(path, item, key.type, numeric=key.numeric)}"

    def _pair(self, path: toml_lines.Path, name: str, value: Any) -> str:
        if "=" in name:
            self.problem(path, f"{path[-2]}: {name} holds a =", 'write a list: ["K=V"]')
        return f"{self._text_of(path, name, '', numeric=False)}={self._text_of(path, value, 'a string', numeric=False)}"

    def _flag(self, path: toml_lines.Path, value: Any) -> bool:
        if not isinstance(value, bool):
            self.problem(path, f"{path[-1]} must be true or false, not {type_name(value)}", f"{path[-1]} = true")
        return value is True

    def _text_of(self, path: toml_lines.Path, value: Any, wanted: str, *, numeric: bool) -> str:
        """A value as it would be typed. The bytes are UTF-8, whatever the locale."""
        if numeric and (type(value) is int or (type(value) is float and math.isfinite(value))):
            if abs(value) >= 1 << 63:
                self.problem(path, f"{path[-1]}: the number is too large", "at most 9223372036854775807")
                return ""  # int's own limit of digits (CPython 3.11) ends a str() of more
            return str(value)
        if not isinstance(value, str):
            self.problem(
                path, f"{path[-1]} must be {wanted}, not {type_name(value)}", "docs/job-files.md lists the keys"
            )
            return ""
        if "\0" in value:
            self.problem(path, f"{path[-1]} holds a NUL character", "no word of a command can")
        return os.fsdecode(value.encode())


def nearest(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key[:100].lower().replace("_", "-"), list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


def type_name(value: Any) -> str:
    names = {
        bool: "true or false",
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    if isinstance(value, float) and not math.isfinite(value):
        return "inf or nan"
    return names.get(type(value), "a date or time")
