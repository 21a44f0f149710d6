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
    parser.add_argument(
        "--fix", action="store_true", help="first do what is safe: load modules (root), remove what dead runs left"
    )
    parser.add_argument(
        "--self-test", action="store_true", help="then run a sandbox of each level in each mode, and show the times"
    )


def main(args: argparse.Namespace) -> int:
    """Examine and print; mend before and try after, if asked to. Raises SandboxError."""
    checks = examine()
    done: list[str] = []
    if args.fix:
        from sandbox.repairs import mend

        done = list(mend(checks))
        checks = examine()
    working = modes(checks)
    tried: list[Any] = []
    if args.self_test:
        from sandbox import selftest

        tried = list(selftest.run(working, landlock=any(check.ok for check in checks if check.name == "landlock")))
    if args.json:
        facts: dict[str, Any] = {"version": __version__, "modes": working}
        facts["checks"] = [check._asdict() for check in checks]
        facts |= {"fixed": done} if args.fix else {}
        facts |= {"self_test": [one._asdict() for one in tried]} if args.self_test else {}
        print(json.dumps(facts, indent=2))
    else:
        print_checks(checks)
        _print_more(args, done, tried)
        print(_summary(working))
    return 0 if any(working.values()) and all(one.ok for one in tried) else 1


def _print_more(args: argparse.Namespace, done: list[str], tried: list[Any]) -> None:
    if args.fix:
        print("\n" + "\n".join(f"fix: {line}" for line in done or ["nothing to do that is safe"]))
    if args.self_test:
        print(f"\n   {'mode':9} {'level':7} {'first':>8} {'again':>8}")
    good, bad = _marks()
    for one in tried:
        print(f"{good if one.ok else bad:2} {one.mode:9} {one.level:7} {one.first_ms:5.0f} ms {one.again_ms:5.1f} ms")
        if one.error:
            print(f"   -> {one.error}")


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
