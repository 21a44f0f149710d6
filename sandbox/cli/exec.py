"""`sandbox exec`: run a command inside a sandbox that runs."""

import argparse
import os
from typing import Any

from sandbox import joining, running
from sandbox.errors import UsageError
from sandbox.home import Home

_DESCRIPTION = """\
Joins the namespaces, limits, cgroup and filters of a running sandbox of yours, with the ids, environment and working
directory of its command and no right that this has not. Exit codes are those of sandbox run. What the kernel does not
let a user join is refused: sandboxes of mode setuid, and those with a Landlock fence."""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "exec",
        help="run a command inside a running one",
        description=_DESCRIPTION,
        usage="sandbox exec [-e K=V] ID [--] COMMAND [ARGUMENT ...]",
    )
    parser.add_argument("-e", "--env", metavar="K=V", action="append", default=[], help="set a variable")
    parser.add_argument("id", metavar="ID", help="a name, or the start of an id")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")


def main(args: argparse.Namespace, home: Home) -> int:
    """Join, run, leave as the command left. Raises SandboxError."""
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words or not words[0]:
        raise UsageError("no command to run", hint="sandbox exec ID -- COMMAND")
    # One's own only, also for root: what another user's record says is no reason to enter anything.
    run = running.find(running.mine(home), args.id)
    from sandbox.engine import join
    from sandbox.engine.supervisor import end_like

    with joining.opened(run) as target:
        env = dict(target.env)
        for item in args.env:
            name, equals, value = os.fsencode(item).partition(b"=")
            if not name or not equals:
                raise UsageError(f"--env: {item!r} is not NAME=VALUE", hint="-e NAME=VALUE")
            env[name] = value
        running.mark_joined(home, run)
        result = join.run(run.decoded(), target, tuple(map(os.fsencode, words)), env)
    end_like(result)
