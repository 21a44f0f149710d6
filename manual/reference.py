"""The pages of the site that are made from the README and from the code."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sandbox
from sandbox.cli.main import COMMANDS
from sandbox.cli.whole import whole_parser
from sandbox.plan import OPCODES
from sandbox.versions import FIRST, SINCE
from tests.support.reports import SCHEMA

_ROOT = Path(__file__).resolve().parents[1]


def _front_page() -> str:
    return re.sub(r"\]\(docs/", "](", (_ROOT / "README.md").read_text())


def _commands() -> str:
    """Every command with its options, as the parsers have them."""
    parts = ["# Commands", "The same as the man pages, from the same parsers."]
    for name, parser in whole_parser()[1].items():
        parts += [f"## sandbox {name}", f"{COMMANDS[name].capitalize()}.", *_describe(parser, 3)]
    return "\n\n".join(parts) + "\n"


def _describe(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    usage = parser.format_usage().removeprefix("usage: ")
    yield f"```text\n{usage.rstrip()}\n```"
    for text in (parser.description, parser.epilog):
        if text:
            yield _escape(text)
    rows = [
        f"| {_invocation(action)} | {_escape(' '.join((action.help or '').split()))} |"
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]
    if rows:
        yield "\n".join(["| option or argument | meaning |", "|---|---|", *rows])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield f"{'#' * level} {command.prog}"
                yield from _describe(command, level + 1)


def _invocation(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest)
    words = [f"{name} {value}" if action.nargs != 0 else name for name in action.option_strings] or [str(value)]
    return ", ".join(f"`{word}`".replace("|", r"\|") for word in words)


def _escape(text: str) -> str:
    return re.sub(r"([|<>*_\[\]$])", r"\\\1", text)


def _steps() -> str:
    """The steps of a plan, from the records that the engines decode."""
    since = {entry.what: entry.version for entry in SINCE if isinstance(entry.what, type)}
    rows = []
    for opcode, step in sorted(OPCODES.items()):
        fields = ", ".join(f"`{name}`" for name in step.__annotations__)
        about = " ".join((inspect.getdoc(step) or "").split())
        rows.append(f"| 0x{opcode:02X} | {step.__name__} | {since.get(step, FIRST)} | {fields} | {_escape(about)} |")
    head = ["| opcode | step | since version | fields | what it is |", "|---|---|---|---|---|"]
    about = "From `sandbox/plan.py` and its like; [plan.md](../plan.md) says what an engine does with each."
    return f"# Steps of a plan\n\n{about}\n\n" + "\n".join([*head, *rows]) + "\n"


def _schema() -> str:
    about = "The tests hold every report to it; [report.md](../report.md) explains the fields."
    return f"# JSON schema of reports\n\n{about}\n\n```json\n{json.dumps(SCHEMA, indent=2)}\n```\n"


def _python() -> str:
    names: dict[str, Any] = sandbox._HOMES
    found = "\n\n".join(f"::: {home}.{name}" for name, home in names.items())
    return f"# Python API\n\n[python.md](../python.md) is the introduction.\n\n{found}\n"


PAGES: dict[str, Callable[[], str]] = {
    "index.md": _front_page,
    "reference/commands.md": _commands,
    "reference/steps.md": _steps,
    "reference/report-schema.md": _schema,
    "reference/python.md": _python,
}
