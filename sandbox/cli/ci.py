"""`sandbox ci`: under the CI systems that are there (docs/ci.md, docs/gitlab.md)."""

import argparse
import os
from typing import Any, NoReturn

from sandbox.cli import run as running
from sandbox.cli.parser import Parser
from sandbox.errors import UsageError

_RUN = """\
All options are those of sandbox run, but for the three here, and but for the level: it is job, unless --isolation or a
job of sandbox.toml says otherwise. docs/ci.md tells what is printed."""


def register(commands: Any) -> None:
    ci: argparse.ArgumentParser = commands.add_parser("ci", help="run jobs of CI systems")
    actions = ci.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("run", help="run a command, with marks in the log and summaries", add_help=False)


def main(args: argparse.Namespace) -> int:
    raise UsageError(f"ci {args.action}: no such action")


def make_parser() -> tuple[Parser, list[argparse.Action], list[argparse.Action]]:
    """The parser of `ci run`, the options of `sandbox run` in it, and those of its own."""
    from sandbox.ci import marks

    parser, actions = running.make_parser()
    parser.prog = "sandbox ci run"
    parser.usage = "sandbox ci run [options] [--] COMMAND [ARGUMENT ...]"
    parser.description = _RUN
    own = [
        parser.add_argument("--marks", choices=marks.NAMES, default="auto", help="whose marks go into the log"),
        parser.add_argument("--title", metavar="TEXT", help="what the log calls the run (default: the command)"),
        parser.add_argument("--junit", metavar="FILE|-|fd:N", help="a summary as JUnit writes it"),
    ]
    parser.set_defaults(isolation="job")
    return parser, actions, own


def run(argv: list[bytes]) -> NoReturn:
    """`sandbox ci run`: ends like the command."""
    from sandbox.ci import generic

    parser, actions, own = make_parser()
    spec, args = running.parse_with(argv, parser, actions, own)
    if args.explain:
        raise UsageError("ci run: --explain runs nothing", hint="sandbox run --explain shows the plan")
    junit = None if args.junit is None else os.fsencode(args.junit)
    ended = generic.run(spec, running.callers_environment(), kind=args.marks, title=args.title, junit=junit)
    from sandbox.engine.supervisor import end_as

    end_as(ended.returncode)
