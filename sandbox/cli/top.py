"""`sandbox top`: the sandboxes that run, the busiest first, again and again."""

import argparse
import sys
from typing import Any

from sandbox.cli import ps
from sandbox.home import Home
from sandbox.running import Running, Usage
from sandbox.units import seconds

_DESCRIPTION = "As sandbox ps, sorted anew every time; ^C ends it."


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("top", help="watch the sandboxes that run", description=_DESCRIPTION)
    parser.add_argument("--sort", choices=("cpu", "memory", "tasks", "age"), default="cpu", help="the most on top")
    parser.add_argument("--every", metavar="SECONDS", type=seconds, default=2.0, help="how often (default 2)")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it, until interrupted."""
    last: dict[str, float] = {}

    def rows() -> ps.Rows:
        seen = ps.look(home)
        # What was used since the last look counts, not what an old one has used in all its life.
        busy = {run.id: (used.cpu or 0.0) - last.get(run.id, 0.0) for run, used in seen}
        last.update({run.id: used.cpu or 0.0 for run, used in seen})

        def key(row: tuple[Running, Usage]) -> float:
            return busy[row[0].id] if args.sort == "cpu" else getattr(row[1], args.sort) or 0.0

        return sorted(seen, key=key, reverse=True)

    return ps.watch(rows, every=args.every, screen=sys.stdout.isatty())
