"""Job files: `sandbox.toml`, whose `[job.NAME]` tables are options of `sandbox run`.

The keys are the options' own names, taken from the table of options, and an entry becomes the words that a person
would type: there is one way in which a run is described, and one place where it is judged.
"""

import errno
import os
import re
import stat
from collections.abc import Collection
from typing import Any

from sandbox import fsops, sources, toml_lines
from sandbox.engine import syscalls as sys
from sandbox.errors import UsageError, printable, reason, remedy
from sandbox.option_file import Key, Opened, OptionFile, nearest, type_name
from sandbox.record import Record

NAME = "sandbox.toml"
OWN_KEYS = ("command", "level", "needs-network", "limits")
# argparse takes its time: a hostile file must not make it minutes.
_MOST_WORDS = 1000
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


class Job(Record):
    """`words` are options of `sandbox run`; `shell`: the command is a text for it, and arguments are "$1" and so on."""

    name: str
    line: int
    command: tuple[str, ...]
    shell: bool
    words: tuple[str, ...]
    needs_network: bool


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
                raise UsageError(f"cannot read {name}: {reason(error)}", hint=remedy(error)) from None
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
        if status.st_mode & stat.S_ISVTX and status is directory:
            continue  # Others may add files there, and touch none that is not theirs.
        if status.st_mode & stat.S_IWOTH:
            raise UsageError(f"{name} is not used: everybody may change it", hint=hint)
        if status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
            raise UsageError(f"{name} is not used: group {status.st_gid} may change {what}", hint=hint)


def _is_private(gid: int) -> bool:
    """Whether a group is nobody's but the caller's or root's.

    Where each user has a group of the same name, as on Debian and Fedora, what a user makes may be group-writable by
    umask (login.defs, USERGROUPS_ENAB). Who else has it as primary group cannot be asked, but the name tells.
    """
    if gid == 0 or os.getuid() == 0:
        return gid == 0
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (gid, group.gr_name) and not {*group.gr_mem} - {user.pw_name}


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
        raise UsageError(f"{option}: cannot open {shown}: {reason(error)}", hint=remedy(error)) from None
    except ValueError:
        raise UsageError(f"{option}: {shown} holds a NUL byte") from None
    with fsops.closing(fd):
        return Opened(shown, _read(fd, shown))


def _read(fd: int, name: str) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UsageError(f"{name} is not a regular file", hint="it must be a TOML file")
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read(toml_lines.MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {reason(error)}", hint=remedy(error)) from None


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
            raise UsageError(f"{self.name} has no job '{printable(name)}'", hint=hint)
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
            self.problem(path, f"must be a table, not {type_name(entry)}", "[job.NAME]")
            return
        needs_network = self._flag((*path, "needs-network"), entry.get("needs-network", False))
        if needs_network and entry.get("net") == "none":
            self.problem((*path, "needs-network"), "needs-network, but net is none", "leave one of them out")
        words = tuple(self.options(path, entry, own=OWN_KEYS))
        found = len(self.problems) > before
        command = () if found and "command" not in entry else self._command(path, entry)
        if len(words) > _MOST_WORDS:
            self.problem(path, f"more than {_MOST_WORDS} options", "is it the right file?")
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
