"""`sandbox report show FILE`: the account of a run for a person."""

import argparse
import json
import sys
from typing import Any

from sandbox import given
from sandbox.errors import UsageError, printable
from sandbox.report import SCHEMA

_MAX_BYTES = 64 << 20
_CAUSES = {
    "exited": "exited by itself",
    "signalled": "killed by a signal",
    "timeout": "ended because its time was up",
    "oom": "killed because memory was used up",
    "limit": "ended by a limit",
    "launcher": "could not be started",
}


def register(commands: Any) -> None:
    report: argparse.ArgumentParser = commands.add_parser("report", help="show the report of a run")
    actions = report.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="what a file that --report wrote says")
    show.add_argument("file", metavar="FILE", help="the report; - reads it from the standard input")


def main(args: argparse.Namespace) -> int:
    about, phases = _read(args.file)
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    shown = Table.grid(padding=(0, 2))
    for line in about:
        shown.add_row(*line)
    console.print(shown)
    shown = Table("phase", "at (us)", "took (us)", box=None)
    for column in shown.columns[1:]:
        column.justify = "right"
    for phase in phases:
        shown.add_row(*phase)
    console.print(shown)
    return 0


def _read(name: str) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """What is shown of a report: the facts, and the phases. Raises UsageError for what is none."""
    what = printable(name)
    if name == "-":
        data = sys.stdin.buffer.read(_MAX_BYTES)
    else:
        data = given.read(name, _MAX_BYTES, hint="name a file that sandbox run --report wrote")
    try:
        facts = json.loads(data)
        if facts["schema"] == SCHEMA:
            return _lines(facts), [_phase(phase) for phase in facts["phases"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # anything may be in a file
    raise UsageError(f"{what} is no report of this version", hint="name a file that sandbox run --report wrote")


def _phase(phase: dict[str, Any]) -> tuple[str, str, str]:
    return printable(str(phase["name"])), f"{phase['start_us']:,}", f"{phase['us']:,}"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    ending = _CAUSES[facts["cause"]] + (f": {facts['limit']}" if facts["limit"] else "")
    lines = [
        ("command", " ".join(printable(word) for word in facts["command"])),
        ("ended", ending),
        ("error", facts["error"]),
        ("exit code", facts["exit_code"]),
        ("signal", facts["signal"]),
        ("from, to", f"{facts['started']}, {facts['ended']}"),
        ("seconds", _seconds(facts)),
        ("peak memory", _bytes(facts["peak_memory_bytes"], f" ({facts['peak_memory_of']})")),
        ("processes", facts["processes"]),
        ("storage read", _bytes(facts["read_bytes"])),
        ("storage written", _bytes(facts["written_bytes"])),
        ("changed files discarded", facts.get("discarded")),
        *(("kept", _kept(item)) for item in facts.get("kept") or ()),
        *(
            ("refused", f"{item['call']} ({item['error']}), {item['count']}")
            for item in facts.get("refused_calls") or ()
        ),
        ("launched", ", ".join(filter(None, (facts["mode"], facts["engine"], facts["level"])))),
        *(("image", f"{printable(i['name'])} = {printable(i['source'])} {i['digest'] or ''}") for i in facts["images"]),
        *(("mount", _mount(mount)) for mount in facts["mounts"]),
    ]
    return [(name, printable(str(value))) for name, value in lines if value not in (None, "")]


def _kept(item: dict[str, Any]) -> str:
    source = printable(item["source"])
    return item["error"] or f"{source} as {printable(item['target'])}: {item['files']} files, {item['size']:,} bytes"


def _seconds(facts: dict[str, Any]) -> str | None:
    parts = [(name, facts[f"{name}_seconds"]) for name in ("wall", "user", "system")]
    return ", ".join(f"{value:.3f} {name}" for name, value in parts if value is not None) or None


def _bytes(value: int | None, of: str = "") -> str | None:
    return None if value is None else f"{value:,} bytes{of}"


def _mount(mount: dict[str, Any]) -> str:
    source = f" of {printable(mount['source'])}" if mount["source"] else ""
    return f"{printable(mount['on'])}: {mount['kind']}{source}{', read-only' if mount['read_only'] else ''}"
