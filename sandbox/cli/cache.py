"""`sandbox cache`: list, remove and clean converted images."""

import argparse
import json
import os
import sys
import time
from typing import Any

from sandbox.errors import UsageError, printable
from sandbox.home import Home
from sandbox.images import catalog, names, reaper
from sandbox.images.store import Store
from sandbox.records import clean_at
from sandbox.units import age, size


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("cache", help="list and clean converted images")
    commands = parser.add_subparsers(dest="cache_command", metavar="ACTION", required=True)
    listing = commands.add_parser("ls", help="what is in the cache: age, last use, size, uses, source")
    listing.add_argument("--json", action="store_true", help="print it as JSON")
    removing = commands.add_parser("rm", help="remove images")
    removing.add_argument("names", nargs="*", metavar="NAME", help="an image's name, or the start of it")
    removing.add_argument("--all", action="store_true", help="remove all of them")
    cleaning = commands.add_parser("clean", help="evict what is stale, in the background")
    cleaning.add_argument("--now", action="store_true", help="in the foreground, and say what was done")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    if args.cache_command == "clean":
        return _clean(home, now=args.now)
    with Store(home.fd) as images:
        return _list(images, as_json=args.json) if args.cache_command == "ls" else _remove(images, args)


def _list(where: Store, *, as_json: bool) -> int:
    images = catalog.list_images(where.cache) if where.listed(b"cache") else []
    if as_json:
        print(json.dumps([image._asdict() for image in images], indent=2))
    elif not images:
        print("the cache is empty")
    elif sys.stdout.isatty():
        _print_table(images)
    else:
        for image in images:
            print("\t".join(_row(image)))
    return 0


def _row(image: catalog.CachedImage) -> tuple[str, ...]:
    now = time.time()
    ages = age(now - image.created), age(now - image.last_used)
    return (image.name[:12], *ages, size(image.size), str(image.uses), printable(image.source))


def _print_table(images: list[catalog.CachedImage]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for title in ("name", "age", "last use"):
        table.add_column(title, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("uses", justify="right")
    table.add_column("source", overflow="fold")
    for image in images:
        table.add_row(*(escape(cell) for cell in _row(image)))
    table.add_row("", "", "", size(sum(image.size for image in images)), "", "in all")
    Console().print(table)


def _remove(images: Store, args: argparse.Namespace) -> int:
    if bool(args.names) == args.all:
        raise UsageError("nothing to remove" if not args.all else "both names and --all", hint="give NAME..., or --all")
    if args.all:
        kept = names.kept(images)
        found = [entry.name for entry in catalog.usage(images.cache)]
        wanted = [name.decode() for name in found if name.partition(b".")[0] not in kept]
        if len(wanted) < len(found):
            print(f"{len(found) - len(wanted)} images stay: names keep them (sandbox image rm)")
    else:
        wanted = [catalog.find(images.cache, name) for name in args.names]
    outcome = catalog.remove_all(images, wanted)
    for name in (name for name, failure in outcome.items() if failure is None):
        print(f"removed {name}")
    for failure in filter(None, outcome.values()):
        raise failure
    return 0


def _clean(home: Home, *, now: bool) -> int:
    limits = reaper.settings(os.environ)
    if not now:
        reaper.start(home.fd, limits, clean_records=clean_at)
        return 0
    report = reaper.run_once(
        home.fd,
        now=time.time(),
        max_age_days=limits.max_age_days,
        max_bytes=limits.max_bytes,
        clean_records=clean_at,
    )
    if not report.ran:
        print("another process is cleaning the cache")
        return 0
    for name in report.evicted:
        print(f"evicted {name}")
    print(f"freed {size(report.freed)}, {report.leftovers} leftovers removed")
    return 0
