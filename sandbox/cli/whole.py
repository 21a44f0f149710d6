"""The whole command line as one parser: what man pages, completion and the reference of the docs are made from."""

import argparse
import importlib

from sandbox.cli import run
from sandbox.cli.main import COMMANDS
from sandbox.cli.parser import Parser

DESCRIPTION = """\
Runs a command with private, throw-away filesystems, and with as much isolation as you ask for. No daemon, no container
engine, nothing to clean up afterwards. Without --isolation it isolates mounts and nothing else."""


def whole_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser of `sandbox`, and those of its commands by name. To look at: main.py parses with one command's."""
    parser = Parser(prog="sandbox", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="sandbox_command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name == "run":
            options, _ = run.make_parser()
            commands.add_parser(
                name,
                help=text,
                parents=[options],
                add_help=False,
                usage=options.usage,
                description=options.description,
                epilog=options.epilog,
            )
        else:
            importlib.import_module(f"sandbox.cli.{name}").register(commands)
    return parser, dict(commands.choices)
