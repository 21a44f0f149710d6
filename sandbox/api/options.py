"""The options of a sandbox as keyword arguments: the words of `sandbox run`, with `_` for `-`.

Nothing here knows what an option means. The keys are those of the command line's own table, a value becomes the word
that a person would type, and the command line makes the Spec of it: an option that is new there can be given here.
The TypedDicts are for type checkers and editors; tests/unit/test_api_options.py holds them against that table.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from sandbox import option_file
from sandbox.errors import UsageError, printable
from sandbox.spec import Spec

Text = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Texts = Text | Sequence[Text]
Number = Text | int | float


class CommonOptions(TypedDict, total=False):
    """What can be given wherever a sandbox is made. docs/python.md says what each is, as does `sandbox run --help`."""

    static: Texts
    dynamic: Texts
    dynamic_empty: Texts
    save: Texts
    save_full: Texts
    cache: bool
    run: Text
    mode: Literal["auto", "root", "setuid", "userns", "landlock"]
    engine: Literal["auto", "python", "native"]
    env_file: Texts
    unset_env: Texts
    chdir: Text
    mkdir: bool
    scratch: Text
    tmpfs_size: Number
    max_unpacked: Number
    symlinks: Texts
    leave_running: bool
    isolation: Literal["none", "job", "strict"]
    bind: Texts
    ro_bind: Texts
    bind_try: Texts
    device: Texts
    hide: Texts
    tmpfs: Texts
    symlink: Texts
    file: Mapping[str, str] | Texts
    root: Text
    root_ro: bool
    as_root: bool
    net: Literal["none", "host", "private"]
    allow_read: Texts
    allow_write: Texts
    workspace: Text
    workspace_unprotected: bool
    keep: Texts
    tty: bool
    pass_env: Texts
    pass_fd: int | Sequence[int]
    user: Number
    hostname: Text
    seccomp: Text
    allow_syscall: Texts
    audit: bool
    as_pid_1: bool
    kill_after: Number
    cpu_time: Number
    nofile: Number
    fsize: Number
    memory: Number
    pids: Number
    cpus: Number
    limits: Literal["enforce", "best-effort"]
    nice: Number
    report: Text
    trace: Text
    status_fd: int
    log: Text
    log_size: Number
    log_format: Literal["text", "json"]
    allow_new_privs: bool
    name: Text
    require_mount: Texts


class Options(CommonOptions, total=False):
    """The same with two names that mean something else in `run()`: variables to set, and `--timeout`."""

    env: Mapping[str, str] | Texts
    timeout: Number


def make_spec(options: Mapping[str, Any]) -> Spec:
    """The spec of these options, without a command. Raises UsageError."""
    from sandbox.cli import run

    parser, actions = run.make_parser()
    return run.make_spec(parser.parse_args(words(options, actions)), ())


def words(options: Mapping[str, Any], actions: Sequence[argparse.Action]) -> list[str]:
    """What one would type for these options, of those that a parser knows. Raises UsageError."""
    known = option_file.keys(actions)
    return [word for name, value in options.items() for word in _words(name, value, known)]


def repeatable() -> frozenset[str]:
    """The keywords that take a list."""
    from sandbox.cli import run

    keys = option_file.keys(run.make_parser()[1])
    return frozenset(name.replace("-", "_") for name, key in keys.items() if key.kind == "list")


def _words(name: str, value: Any, known: Mapping[str, option_file.Key]) -> list[str]:
    key = known.get(name.replace("_", "-"))
    if key is None:
        raise UsageError(f"{printable(name)}: there is no such option", hint=option_file.nearest(name, known))
    if value is None:
        return []
    if key.kind == "flag":
        if not isinstance(value, bool):
            raise UsageError(f"{name}: {value!r} is neither True nor False")
        return [f"--{key.name}"] if value else []
    if key.pairs and isinstance(value, Mapping):
        value = [f"{_text(name, variable)}={_text(name, text)}" for variable, text in value.items()]
    if key.kind != "list" or isinstance(value, str | bytes | os.PathLike | int | Mapping):
        value = [value]
    # As one word, so that no value can be taken for an option.
    return [f"--{key.name}={_text(name, item)}" for item in value]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | bytes | os.PathLike | int | float):
        raise UsageError(f"{name}: {value!r} is not a string, path or number")
    text = str(value) if isinstance(value, int | float) else os.fsdecode(value)
    if "\0" in text:
        raise UsageError(f"{name}: {printable(text)} holds a NUL byte")
    return text


def variables(env: Mapping[str, str]) -> dict[bytes, bytes]:
    """The whole environment of a command. Raises UsageError for what would be another variable, or two."""
    found = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    for name, value in found.items():
        if not name or b"=" in name:
            raise UsageError(f"env: '{printable(name)}' is not a variable name")
        if b"\0" in name or b"\0" in value:
            raise UsageError(f"env: {printable(name)} holds a NUL byte")
    return found


def command_words(argv: Any) -> tuple[bytes, ...]:
    """The words of a command, as bytes. Raises UsageError for one string, which a shell would have to take apart."""
    if isinstance(argv, str | bytes | os.PathLike):
        raise UsageError(f"{argv!r} is one word, a command is a list of them", hint='["sh", "-c", "..."] for a shell')
    words = tuple(map(os.fsencode, argv))
    if any(b"\0" in word for word in words):
        raise UsageError("a word of the command holds a NUL byte")
    return words
