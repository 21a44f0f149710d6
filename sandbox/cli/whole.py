"""The whole command line as one parser: what man pages, completion and the reference of the docs are made from."""

import argparse
import importlib
from argparse import _SubParsersAction

from sandbox.cli import ci, run
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
            commands.add_parser(name, help=text)
            commands.choices[name] = run.make_parser()[0]
        else:
            importlib.import_module(f"sandbox.cli.{name}").register(commands)
    # Its options are made when it runs, since that takes time.
    actions = next(action for action in commands.choices["ci"]._actions if isinstance(action, _SubParsersAction))
    actions.choices["run"] = ci.make_parser()[0]
    return parser, dict(commands.choices)
