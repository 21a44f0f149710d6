"""`sandbox setuid`: install, look at and remove the setuid helper."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("setuid", help="install, look at and remove the setuid helper")
    commands = parser.add_subparsers(dest="setuid_command", metavar="install|status|remove", required=True)
    commands.add_parser(
        "install",
        help="put the helper in place and prove it (root)",
        description="Copy the helper to its root-owned place, with its group, builder user and default policy, "
        "then prove it by running a sandbox as an ordinary user. May be repeated.",
    )
    commands.add_parser("status", help="what is installed, and everything unsafe about it")
    commands.add_parser("remove", help="undo what install did (root)")


def main(args: argparse.Namespace) -> int:
    """Do it. Raises SandboxError."""
    if args.setuid_command == "status":
        from sandbox.cli.doctor import print_checks
        from sandbox.setuid_status import examine

        checks = examine()
        print_checks(checks)
        return 0 if all(check.ok for check in checks) else 1
    from sandbox import setuid_install

    do = setuid_install.install if args.setuid_command == "install" else setuid_install.remove
    do(say=print)
    return 0
