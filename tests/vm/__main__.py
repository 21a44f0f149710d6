"""python -m tests.vm [VARIANT...] | --kernel 6.1 [--user] [--systemd] -- PYTEST-ARGUMENTS | --docs

Without arguments: the default matrix. Results are kept; --docs takes each machine's last into tests/vm/found and writes
docs/compatibility.md from what is there.
"""

import argparse
import os
import signal
import sys

from tests.support.install import REPOSITORY
from tests.vm import kept, machine, matrix, report, results, skips, store
from tests.vm.variant import EXPECTATIONS, Session, Variant

_SELECTION = "selection"


def main() -> int:
    options, selection = _parse(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            # Ended like this it still kills its machine and removes what the machine used.
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    if os.geteuid() != 0:
        raise SystemExit("make test-vm: needs root, because it makes the root of a machine, whose files are root's")
    if options.refresh:
        try:
            store.clear()
        except store.BuildError as error:
            raise SystemExit(f"make test-vm: {error}") from None
    if options.docs:
        kept.take()
        (REPOSITORY / "docs/compatibility.md").write_text(report.page(kept.found()))
        return 0
    if selection:
        return run(_selection(options, selection), keep=False, verbose=options.verbose)
    wanted = [matrix.by_name(name) for name in options.variants]
    wanted = wanted or [variant for variant in matrix.VARIANTS if variant.default]
    if options.short:
        wanted = [variant._replace(sessions=EXPECTATIONS) for variant in wanted]
    machines = [machine for variant in wanted for machine in variant.dealt()]
    # A short run is less than what a variant's row tells of.
    failed = [machine.name for machine in machines if run(machine, keep=not options.short, verbose=options.verbose)]
    print(
        f"vm: {len(machines) - len(failed)} of {len(machines)} machines passed"
        + "".join(f"; {name} failed" for name in failed)
    )
    return bool(failed)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    own, selection = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Run tests on stock kernels, under qemu.")
    names = [variant.name for variant in matrix.VARIANTS]
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(names)}; NAME/2: the second of its machines"
    )
    parser.add_argument("--kernel", choices=matrix.KERNELS, help="for the tests after -- (6.1)")
    parser.add_argument("--user", action="store_true", help="run them as an ordinary user with a cgroup of its own")
    parser.add_argument("--systemd", action="store_true", help="systemd is the machine's init")
    parser.add_argument("--cmdline", default="", help="more options for the kernel")
    parser.add_argument("--short", action="store_true", help="of each variant only the lines of its table")
    parser.add_argument("--docs", action="store_true", help="write docs/compatibility.md from the last results")
    parser.add_argument("--refresh", action="store_true", help="build root and kernels anew")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the log of every session, not only of failed ones"
    )
    options = parser.parse_args(own)
    if selection and options.variants:
        parser.error(f"either variants ({' '.join(options.variants)}) or tests after --")
    if not selection and (options.kernel or options.user or options.systemd or options.cmdline):
        parser.error("--kernel, --user, --systemd and --cmdline are for tests, which follow after --")
    if selection and options.short:
        parser.error("--short is for variants")
    for name in options.variants:
        try:
            matrix.by_name(name)
        except KeyError:
            parser.error(f"no variant {name}; there are {', '.join(names)}")
    return options, selection


def _selection(options: argparse.Namespace, arguments: list[str]) -> Variant:
    session = Session(_SELECTION, tuple(arguments), as_user=options.user)
    chosen = Variant(
        _SELECTION, "", kernel=options.kernel or "6.1", cmdline=options.cmdline, sessions=(session,), timeout=1800
    )
    return matrix.with_systemd(chosen) if options.systemd else chosen


def run(variant: Variant, *, keep: bool, verbose: bool) -> int:
    """Boot it and say how it went; what failed is shown with its log. `keep` a run that came to its end."""
    try:
        commit = kept.commit()
        outcome = machine.boot(matrix.KERNELS[variant.kernel], variant.cmdline, variant.job(), timeout=variant.timeout)
    except store.BuildError as error:
        print(f"vm: {variant.name}: cannot be made: {error}", flush=True)
        return 1
    took = (f"{outcome.seconds:.0f}", f"{outcome.processor:.0f}")
    found = results.read(outcome.files)._replace(took=took, commit=commit)
    incomplete = found.incomplete(session.name for session in variant.sessions)
    why = outcome.why or ("nothing passed, or no result, of " + ", ".join(incomplete) if incomplete else "")
    failed = [session for session in found.sessions if session.failed]
    for session in found.sessions if verbose else failed:
        print(outcome.files.get(f"{session.name}.log", b"").decode(errors="replace"), flush=True)
    if why:
        print(outcome.console[-8000:], flush=True)
    for session in found.sessions:
        print(f"vm: {variant.name}/{session.name}: {session.summary()}")
    reasons = () if variant.name == _SELECTION else found.reasons
    unexplained = [reason for reason in reasons if not skips.explanation(reason, variant)]
    for reason in unexplained:
        print(f"vm: {variant.name}: skipped, and nobody says why that is right: {reason}")
    times = f"up in {found.booted} s, {took[0]} s in all, {took[1]} s of processor time"
    print(f"vm: {variant.name}: {why or f'Linux {found.kernel}'}, {times}", flush=True)
    if keep and not why:
        kept.keep(variant.name, found)
    return int(bool(why or failed or unexplained))


if __name__ == "__main__":
    sys.exit(main())
