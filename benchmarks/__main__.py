"""`make bench`, or `python -m benchmarks [SECTION ...] [--quick] [--json FILE]`."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chart import svg
from benchmarks.measure import Bench, Figure
from benchmarks.sections import SECTIONS
from benchmarks.stage import Stage
from tests.support import install, users, wheels

_RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="fewer runs: to see that it works, not to quote")
    parser.add_argument("--json", type=Path, default=_RESULTS, help="where the figures go (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.section) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {' '.join(sorted(unknown))}")
    if not shutil.which("hyperfine"):
        sys.exit("bench: hyperfine is missing; packaging/setup.sh bench says how to install it")
    figures: list[Figure] = []
    with _stage(quick=args.quick) as stage:
        for name in args.section or SECTIONS:
            for figure in SECTIONS[name](stage):
                figures.append(figure)
                print(_line(figure), flush=True)
    _save(figures, args.json)
    if drawn := [figure for figure in figures if figure.section == "peers"]:
        args.json.with_suffix(".svg").write_text(svg(drawn))
    print(f"\nfigures in {args.json}; {sum(f.met is False for f in figures)} of them miss their bar")
    return 0


@contextlib.contextmanager
def _stage(*, quick: bool) -> Iterator[Stage]:
    """Identities, directories and the wheel; on a disk, and gone at the end."""
    with contextlib.ExitStack() as stack:
        area = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sbx-bench-")))
        area.chmod(0o755)
        identities = [users.current()]
        if os.geteuid() == 0:
            identities.append(stack.enter_context(users.unprivileged(area / "home")))
        command = install.command_for(identities, area)
        benches = []
        for who in identities:
            directory = area / f"as-{who.uid}"
            directory.mkdir(mode=0o755)
            os.chown(directory, who.uid, who.gid)
            benches.append(Bench(command, who, directory, quick=quick))
        wheel = wheels.place(wheels.zig_wheel(), area)
        root = benches[0] if os.geteuid() == 0 else None
        yield Stage(root, benches[-1], wheel, command.parent / "python")


def _line(figure: Figure) -> str:
    if figure.value is None:
        return f"{figure.section:8} {figure.what:48} {figure.unit}  {figure.command}"
    value = f"{figure.value * 1000:.2f} ms" if figure.unit == "s" else f"{figure.value:.4g}{figure.unit}"
    verdict = {True: "meets", False: "MISSES", None: ""}[figure.met]
    return f"{figure.section:8} {figure.what:48} {value:>10} {figure.bar:>8} {verdict:6}  {figure.command}"


def _save(figures: list[Figure], where: Path) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    host = {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count()}
    where.write_text(json.dumps({"host": host, "figures": [figure._asdict() for figure in figures]}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
