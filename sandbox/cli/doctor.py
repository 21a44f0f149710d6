"""`sandbox doctor`: what this host can do, and the remedy for what it cannot."""

import argparse
import json
import os
import sys
from typing import Any

from sandbox import __version__
from sandbox.doctor import Check, examine, modes


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    about = "Say what this host can do, and for what it cannot the exact remedy. Exit code 1 when no mode works."
    parser = subparsers.add_parser("doctor", help="what this host can do", description=about)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Examine and print."""
    checks = examine()
    working = modes(checks)
    if args.json:
        findings = [check._asdict() for check in checks]
        print(json.dumps({"version": __version__, "modes": working, "checks": findings}, indent=2))
    else:
        print_checks(checks)
        print(_summary(working))
    return 0 if any(working.values()) else 1


def print_checks(checks: list[Check]) -> None:
    """A line for each, the remedy below what failed."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        _print_colored(checks)
    else:
        _print_plain(checks)


def _summary(working: dict[str, bool]) -> str:
    usable = [name for name, works in working.items() if works]
    return f"\nsandbox works here, in mode {' and '.join(usable)}." if usable else "\nNo mode works here."


def _marks() -> tuple[str, str]:
    try:
        "✔✘".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok", "no"
    return "✔", "✘"


def _print_plain(checks: list[Check]) -> None:
    good, bad = _marks()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{good if check.ok else bad} {check.name:{width}}  {check.detail}")
        if check.remedy:
            print(f"{' ' * len(bad)} {'':{width}}  -> {check.remedy}")


def _print_colored(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    good, bad = _marks()
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        mark = Text(good, style="green") if check.ok else Text(bad, style="red")
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n-> {check.remedy}", style="yellow")
        table.add_row(mark, Text(check.name, style="bold"), detail)
    Console().print(table)
