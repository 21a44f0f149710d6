"""The words of a command line: where options end and the command begins, and options that come from elsewhere."""

import argparse
import itertools
import os
from collections.abc import Sequence

from sandbox.errors import UsageError, printable, reason
from sandbox.spec import parse_descriptor

_MOST_BYTES = 1 << 20


def split_command(argv: Sequence[str], actions: Sequence[argparse.Action]) -> tuple[list[str], list[str]]:
    """Options, and the command: the first word that is no option ends them, as does `--`."""
    takes_value = _values(actions)
    at = 0
    while at < len(argv):
        if argv[at] == "--":
            return list(argv[:at]), list(argv[at + 1 :])
        if (width := _width(argv[at], takes_value)) == 0:
            break
        at += width
    return list(argv[:at]), list(argv[at:])


def _values(actions: Sequence[argparse.Action]) -> dict[str, bool]:
    return {name: action.nargs != 0 for action in actions for name in action.option_strings}


def _width(word: str, takes_value: dict[str, bool]) -> int:
    """How many words an option is, with its value; 0 for what is none."""
    if not word.startswith("-") or word == "-":
        return 0
    if word.startswith("--"):
        return 1 + ("=" not in word and takes_value.get(word, False))
    for position, letter in enumerate(word[1:], 1):
        if takes_value.get(f"-{letter}", False):
            return 1 + (position == len(word) - 1)
    return 1


def last_value(options: Sequence[str], name: str) -> str:
    """The value of a long option that takes one, where it stands last; empty where it is not there."""
    found = [after for word, after in itertools.pairwise(options) if word == name]
    joined = [word.partition("=")[2] for word in options if word.startswith(f"{name}=")]
    return ([*found, *joined] or [""])[-1]


def with_args(options: list[str], actions: Sequence[argparse.Action]) -> list[str]:
    """The options, with those that --args names in its place. Raises UsageError."""
    takes_value = _values(actions)
    found: list[str] = []
    at = 0
    while at < len(options):
        end = at + _width(options[at], takes_value)
        if options[at].partition("=")[0] == "--args":
            more, command = split_command(_read("=".join(options[at:end]).partition("=")[2]), actions)
            if command:
                raise UsageError(f"--args: '{printable(command[0])}' is no option", hint="the command stands behind it")
            found += with_args(more, actions)
        else:
            found += options[at:end]
        at = end
    return found


def _read(number: str) -> list[str]:
    """What is read from a descriptor, up to each NUL. The command does not get the descriptor."""
    fd = parse_descriptor(number, option="--args", least=0)
    try:
        with open(fd, "rb", closefd=fd > 2) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"--args: cannot read descriptor {fd}: {reason(error)}", hint="open it for sandbox: --args 3 3<FILE"
        ) from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"--args: more than {_MOST_BYTES} bytes from descriptor {fd}", hint="are those options?")
    return [os.fsdecode(word) for word in data.removesuffix(b"\0").split(b"\0")] if data else []
