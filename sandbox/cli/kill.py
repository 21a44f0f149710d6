"""`sandbox kill`: end running sandboxes, cleanly."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandbox import limits, running
from sandbox.cli.ps import visible
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, UsageError, complain
from sandbox.home import Home
from sandbox.running import Running

_DESCRIPTION = """\
The command gets SIGTERM, what is left SIGKILL; its supervisor then cleans up. A process is found by the record that it
holds locked, and signalled by descriptor: a number that was given out again is never hit. --all ends those of
your home ($SANDBOX_HOME), also as root."""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("kill", help="end running sandboxes", description=_DESCRIPTION)
    parser.add_argument("ids", nargs="*", metavar="ID", help="a name, or the start of an id")
    parser.add_argument("--all", action="store_true", help="all of your home")
    parser.add_argument(
        "--kill-after", metavar="DURATION", default="10s", help="how long the command has to end (default 10s)"
    )


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    if bool(args.ids) == args.all:
        raise UsageError("nothing to end" if not args.all else "both ids and --all", hint="give ID..., or --all")
    patience = limits.parse_duration(args.kill_after, option="--kill-after")
    if args.all:
        wanted = running.mine(home)
    else:
        runs = visible(home)
        wanted = [running.find(runs, one) for one in args.ids]
    # Together: each of them may take its time.
    with ThreadPoolExecutor(max_workers=max(len(wanted), 1)) as pool:
        told = list(pool.map(lambda run: _end(run, patience), wanted))
    return 0 if all(told) else EXIT_LAUNCHER_FAILED


def _end(run: Running, patience: float) -> bool:
    try:
        print(f"{run.shown}: {running.kill(run, kill_after=patience)}", flush=True)
        return True
    except SandboxError as error:
        complain(error)
        return False
