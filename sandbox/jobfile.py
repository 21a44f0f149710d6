"""Job files: `sandbox.toml`, whose `[job.NAME]` tables are options of `sandbox run`.

The keys are the options' own names, taken from the table of options, and an entry becomes the words that a person
would type: there is one way in which a run is described, and one place where it is judged.
"""

import argparse
import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from sandbox import fsops, sources, toml_lines
from sandbox.engine import syscalls as sys
from sandbox.errors import UsageError, printable, reason
from sandbox.record import Record

NAME = "sandbox.toml"
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
OWN_KEYS = ("command", "level", "needs-network", "limits")
# Suggestions and argparse take their time: a hostile file must not make it minutes.
_MOST_PROBLEMS = 100
_MOST_WORDS = 1000
_NUMBERS = ("N", "SIZE", "DURATION")
# Where a value other than a tree's [NAME:]SRC names a path of the host, by the option's metavar: the group `path`.
PLACES = {
    "SRC": r"(?P<path>.+)",
    "SRC[:DEST]": r"(?P<path>[^:]+)(?::.*)?",
    "SRC[=DEST]": r"[^=]+=(?P<path>.+)",
    "FILE": r"(?P<path>.+)",
    "PATH": r"(?P<path>.+)",
    "FILE|none": r"(?!(?:none|default)$)(?P<path>.+)",
    "FILE|-|fd:N": r"(?!-$|fd:)(?P<path>.+)",
    "tmpfs|DIR": r"(?!tmpfs$)(?P<path>.+)",
    "IMAGE|DIR": r"(?!@)(?P<path>.+)",
}


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


class Job(Record):
    """`words` are options of `sandbox run`; `shell`: the command is a text for it, and arguments are "$1" and so on."""

    name: str
    line: int
    command: tuple[str, ...]
    shell: bool
    words: tuple[str, ...]
    needs_network: bool


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


# -- finding and reading ---------------------------------------------------------------------------------------


def find() -> Opened:
    """The nearest sandbox.toml, here or above. Raises UsageError, also for one that others could have put there."""
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = NAME
    while True:
        try:
            fd = sys.openat2(directory, NAME.encode(), _READ, resolve=sys.RESOLVE_NO_SYMLINKS)
            break
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(f"{name} is a symbolic link", hint=_NAME_IT.format(name)) from None
            if error.errno != errno.ENOENT:
                raise UsageError(f"cannot read {name}: {reason(error)}") from None
        directory, name = _parent(directory), f"../{name}"
    with fsops.closing(fd):
        _check_trust(name, os.fstat(fd), os.fstat(directory), _NAME_IT.format(name))
        return Opened(name, _read(fd, name), directory, name != NAME)


_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # A FIFO must not hang us.


def _parent(directory: int) -> int:
    try:
        parent = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        at_the_top = os.path.samestat(os.fstat(parent), os.fstat(directory))
    except OSError:
        at_the_top = True
    if at_the_top:
        raise UsageError(f"there is no {NAME} here or in a directory above", hint="name one: --job-file FILE")
    os.close(directory)
    return parent


def _check_trust(name: str, file: os.stat_result, directory: os.stat_result, hint: str) -> None:
    """Whoever could put a file here would choose what the caller runs."""
    for what, status in (("it", file), ("its directory", directory)):
        if status.st_uid not in (os.getuid(), 0):
            raise UsageError(f"{name} is not used: {what} belongs to uid {status.st_uid}", hint=hint)
    if file.st_mode & stat.S_IWOTH or (directory.st_mode & (stat.S_IWOTH | stat.S_ISVTX)) == stat.S_IWOTH:
        raise UsageError(f"{name} is not used: everybody may change it", hint=hint)


_NAME_IT = "look at it, then name it: --job-file {}"


def open_trusted(path: bytes, *, hint: str) -> Opened:
    """A file that nobody named now: the caller's or root's own, under this very name. Raises UsageError."""
    shown = printable(path)
    try:
        with fsops.closing(sys.openat2(sys.AT_FDCWD, path, _READ)) as fd:
            _check_trust(shown, os.fstat(fd), os.stat(os.path.dirname(path)), hint)
            return Opened(shown, _read(fd, shown))
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {reason(error)}", hint=hint) from None


def open_named(name: str, option: str = "--job-file") -> Opened:
    """The file that the caller chose, whoever owns it. Raises UsageError."""
    shown = printable(name)
    try:
        fd = sys.openat2(sys.AT_FDCWD, os.fsencode(name), _READ)
    except OSError as error:
        raise UsageError(f"{option}: cannot open {shown}: {reason(error)}") from None
    except ValueError:
        raise UsageError(f"{option}: {shown} holds a NUL byte") from None
    with fsops.closing(fd):
        return Opened(shown, _read(fd, shown))


def _read(fd: int, name: str) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UsageError(f"{name} is not a regular file")
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read(toml_lines.MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {reason(error)}") from None


def place(metavar: str, base: str, text: str) -> str:
    """An option's value with the path in it, if there is one, taken relative to `base`."""
    if metavar == "[NAME:]SRC":
        return _place_source(base, text)
    match = re.fullmatch(PLACES[metavar], text, re.DOTALL)
    if not match or not match["path"]:
        return text
    start, end = match.span("path")
    return text[:start] + os.path.join(base, match["path"]) + text[end:]


def _place_source(base: str, text: str) -> str:
    above = os.fsencode(base)
    try:
        name, path = sources.split(os.fsencode(text), base=above)
    except UsageError:  # It is refused where all sources are.
        return text
    layers = (
        layer if layer.startswith(b"@") else os.path.join(above, layer) for layer in sources.layers_of(path, base=above)
    )
    return os.fsdecode((b"" if name is None else name + b":") + b"+".join(layers))


# -- meaning ---------------------------------------------------------------------------------------------------


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
            raise UsageError(f"{self.name}: more than {_MOST_PROBLEMS} mistakes", hint="is that a job file?")
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
                    (*path, key), f"limits must be a table, not {_type(value)}", 'limits = { timeout = "20m" }'
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
            self.problem(path, f"{path[-1]} must be {key.type}, not {_type(value)}", f'{path[-1]} = ["..."]')
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
            self.problem(path, f"{path[-1]} must be true or false, not {_type(value)}", f"{path[-1]} = true")
        return value is True

    def _text_of(self, path: toml_lines.Path, value: Any, wanted: str, *, numeric: bool) -> str:
        """A value as it would be typed. The bytes are UTF-8, whatever the locale."""
        if numeric and type(value) in (int, float) and abs(value) < 1 << 63:
            return str(value)
        if not isinstance(value, str):
            self.problem(path, f"{path[-1]} must be {wanted}, not {_type(value)}", "docs/job-files.md lists the keys")
            return ""
        if "\0" in value:
            self.problem(path, f"{path[-1]} holds a NUL character", "no word of a command can")
        return os.fsdecode(value.encode())


class JobFile(OptionFile):
    """A file's jobs."""

    def __init__(self, opened: Opened, known: dict[str, Key], limits: Collection[str]) -> None:
        super().__init__(opened, known, limits)
        self.jobs: dict[str, Job] = {}
        for key in self.values:
            if key != "job":
                self.unknown((key,), ["job"], "a job file has tables [job.NAME] and nothing else")
        jobs = self.values.get("job", {})
        if not isinstance(jobs, dict):
            self.problem(("job",), "job must be a table for each job", "[job.NAME]")
            return
        for name, entry in jobs.items():
            self._job(name, entry)

    def job(self, name: str) -> Job:
        """Raises UsageError for a file with mistakes, and for a name that it does not have."""
        self.refuse_problems()
        if name not in self.jobs:
            hint = printable(nearest(name, self.jobs)) or f"there are: {', '.join(map(printable, self.jobs)) or 'none'}"
            raise UsageError(f"{self.name} has no job {printable(name)!r}", hint=hint)
        return self.jobs[name]

    def blame(self, job: Job, error: UsageError) -> None:
        """Note what the options of a job are refused for, at the line of the first one that the message names."""
        text = error.message.removeprefix("sandbox run: argument ")
        named = re.findall(r"(?<![\w-])--([a-z0-9][a-z0-9-]*)", text)
        paths = [path for name in named for path in self.paths(("job", job.name), name)]
        self.problem(paths[0] if paths else ("job", job.name), text, error.hint)

    def _job(self, name: str, entry: Any) -> None:
        path = ("job", name)
        before = len(self.problems)
        if not isinstance(entry, dict):
            self.problem(path, f"must be a table, not {_type(entry)}", "[job.NAME]")
            return
        needs_network = self._flag((*path, "needs-network"), entry.get("needs-network", False))
        if needs_network and entry.get("net") == "none":
            self.problem((*path, "needs-network"), "needs-network, but net is none", "leave one of them out")
        words = tuple(self.options(path, entry, own=OWN_KEYS))
        found = len(self.problems) > before
        command = () if found and "command" not in entry else self._command(path, entry)
        if len(words) > _MOST_WORDS:
            self.problem(path, f"more than {_MOST_WORDS} options", "is that a job file?")
        if len(self.problems) == before:
            self.jobs[name] = Job(
                name, self.line(path), command, isinstance(entry.get("command"), str), words, needs_network
            )

    def _command(self, path: toml_lines.Path, entry: dict[str, Any]) -> tuple[str, ...]:
        value, here = entry.get("command"), (*path, "command")
        if isinstance(value, str) and "run" not in entry:
            return ("sh", "-c", self._text_of(here, value, "", numeric=False), "sh")
        if value is None and "run" in entry:
            return ()
        if not isinstance(value, list) or (not value and "run" not in entry):
            why = "has no command" if value is None else "command must be a list of strings, or a string for the shell"
            why = "command must be a list of strings beside run" if "run" in entry else why
            self.problem(here, why, 'command = ["make", "test"]')
            return ()
        return tuple(self._text_of(here, word, "a list of strings", numeric=False) for word in value)


def nearest(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key[:100].lower().replace("_", "-"), list(known), 1)
    return f"did you mean {close[0]}?" if close else ""


def _type(value: Any) -> str:
    names = {
        bool: "true or false",
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")
