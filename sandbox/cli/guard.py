"""`sandbox guard`: protect mount points whose storage is offline."""

import argparse
import json
import os
from typing import Any

from sandbox import guards
from sandbox.errors import EXIT_LAUNCHER_FAILED, HostError, complain, printable
from sandbox.home import Home

_DESCRIPTION = """\
Makes an empty mount point read-only as long as nothing is mounted there, so that nothing fills the disk beneath an
absent share. Needs root. What is set is written to an index first, and clear undoes exactly that."""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("guard", help="protect mount points that may be offline", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="guard_command", metavar="ACTION", required=True)
    adding = commands.add_parser("add", help="guard empty mount points")
    adding.add_argument("paths", nargs="+", metavar="PATH")
    adding.add_argument(
        "--with", dest="kind", choices=guards.KINDS, help="a read-only bind (until a restart), or the immutable flag"
    )
    clearing = commands.add_parser("clear", help="undo it, where nothing is mounted")
    clearing.add_argument("paths", nargs="*", metavar="PATH", help="default: all of the index")
    for one in (adding, clearing):
        one.add_argument("-n", "--dry-run", action="store_true", help="change nothing")
    listing = commands.add_parser("ls", help="what the index says, and how it stands")
    listing.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    with guards.opened(home) as index:
        if index.trouble:
            hint = "look at it; lsattr -d PATH and chattr -i PATH undo a flag by hand"
            complain(HostError(index.trouble, hint=hint))
        if args.guard_command == "ls":
            return _list(index, as_json=args.json)
        if args.guard_command == "add":
            for path in map(os.fsencode, args.paths):
                print(f"{printable(path)}: {guards.add(index, path, args.kind, dry=args.dry_run)}")
            return 0
        done = True
        for path in map(os.fsencode, args.paths) if args.paths else [guard.path for guard in index.guards]:
            cleared, word = guards.clear(index, path, dry=args.dry_run)
            print(f"{printable(path)}: {word}")
            done = done and cleared
        return 0 if done else EXIT_LAUNCHER_FAILED


def _list(index: guards.Index, *, as_json: bool) -> int:
    rows = [(guard, guards.state(guard)) for guard in index.guards]
    if as_json:
        facts = [{"path": os.fsdecode(guard.path), "kind": guard.kind, "state": state} for guard, state in rows]
        print(json.dumps(facts, indent=2))
    else:
        for guard, state in rows:
            print(f"{printable(guard.path)}\t{guard.kind}\t{state}")
    return 0
