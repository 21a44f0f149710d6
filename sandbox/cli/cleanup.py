"""`sandbox cleanup`: undo what crashes left behind."""

import argparse
import json
from typing import Any

from sandbox import cleanup
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, complain
from sandbox.home import Home

_DESCRIPTION = """\
Removes what sandboxes left that were killed: their processes, records, run directories, scratch directories and
cgroups, unfinished copies of --keep, half-built images, loop devices that nobody uses. Found by the records in your
home; what lives is not touched. Every sandbox run does the first part of it for the runs of its home."""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("cleanup", help="undo what crashes left behind", description=_DESCRIPTION)
    parser.add_argument("-n", "--dry-run", action="store_true", help="only list it")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    found = []
    for finding in cleanup.clean(home, dry=args.dry_run):
        found.append(finding)
        if finding.failure:
            complain(SandboxError(f"cannot remove the {finding.kind} {finding.name}: {finding.failure}"))
        elif not args.json:
            print(f"{'left' if args.dry_run else 'removed'}: {finding.kind} {finding.name}")
    if args.json:
        print(json.dumps([dict(zip(finding.fields, finding, strict=True)) for finding in found], indent=2))
    elif not found:
        print("nothing is left behind")
    return EXIT_LAUNCHER_FAILED if any(finding.failure for finding in found) else 0
