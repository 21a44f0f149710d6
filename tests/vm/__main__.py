"""python -m tests.vm [VARIANT...] | --kernel 6.1 [--user] [--systemd] -- PYTEST-ARGUMENTS"""

import argparse
import os
import sys

from tests.vm import machine, matrix, results, store


def main() -> int:
    options, selection = _parse(sys.argv[1:])
    if os.geteuid() != 0:
        raise SystemExit("make test-vm: needs root, to make the root of a machine whose files are root's")
    if options.refresh:
        store.clear()
    sessions = (matrix.Session("selection", tuple(selection), as_user=options.user),)
    cmdline = options.cmdline + (" vm.systemd" if options.systemd else "")
    variants = [matrix.Variant("selection", "", sessions, kernel=options.kernel, cmdline=cmdline, timeout=1800)]
    return max([run(variant, options) for variant in variants])


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    own, selection = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Run tests on a stock kernel, under qemu.")
    parser.add_argument(
        "--kernel", choices=matrix.KERNELS, default="6.1", help="for the selection after -- (%(default)s)"
    )
    parser.add_argument("--user", action="store_true", help="run the selection as an ordinary user")
    parser.add_argument("--systemd", action="store_true", help="systemd is the machine's init")
    parser.add_argument("--cmdline", default="", help="more options for the kernel")
    parser.add_argument("--refresh", action="store_true", help="build root and kernels anew")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the whole log of every session")
    options = parser.parse_args(own)
    return options, selection


def run(variant: matrix.Variant, options: argparse.Namespace) -> int:
    """Boot it and say how it went; what failed is shown with its log."""
    suite = matrix.KERNELS[variant.kernel]
    outcome = machine.boot(suite, variant.cmdline, variant.job(), timeout=variant.timeout)
    found = results.read(outcome.files)
    for session in found.sessions:
        if session.failed or options.verbose:
            print(outcome.files.get(f"{session.name}.log", b"").decode(errors="replace"), flush=True)
    if outcome.why:
        print(outcome.console[-8000:], flush=True)
    for session in found.sessions:
        print(f"vm: {variant.name}/{session.name}: {session.summary()}")
    print(
        f"vm: {variant.name}: Linux {found.kernel}, up in {found.booted} s, {outcome.seconds:.0f} s in all", flush=True
    )
    if outcome.why:
        print(f"vm: {variant.name}: {outcome.why}", flush=True)
    return int(bool(outcome.why) or any(session.failed for session in found.sessions))


if __name__ == "__main__":
    sys.exit(main())
