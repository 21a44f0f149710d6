"""`sandbox ps` and `sandbox top`: the sandboxes that run."""

import argparse
import functools
import json
import os
import pwd
import sys
import time
from collections.abc import Callable
from typing import Any

from sandbox import processes, running
from sandbox.errors import printable
from sandbox.home import Home
from sandbox.processes import Process
from sandbox.running import Running, Usage
from sandbox.units import age, seconds, size

UNKNOWN = "-"
_TITLES = ("id", "name", "user", "age", "level", "mode", "tasks", "cpu", "memory", "images", "command")
_RIGHT = ("tasks", "cpu", "memory")
_SHORTEST = 0.1
Rows = list[tuple[Running, Usage]]


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("ps", help="the sandboxes that run", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", type=seconds, const=2.0, help="again and again (default every 2 s)"
    )


_DESCRIPTION = """\
Yours; as root, everyone's. tasks are processes and threads, cpu is processor time, memory what its processes have
resident (what they share counts for each)."""


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    if args.watch is not None:
        return watch(lambda: look(home), every=args.watch)
    rows = look(home)
    if args.json:
        print(json.dumps([facts(run, used) for run, used in rows], indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(rows))
    else:
        _print_plain(rows)
    return 0


def _print_plain(rows: Rows) -> None:
    for cells in (_TITLES, *(_row(run, used) for run, used in rows)):
        print("\t".join(cells))
    sys.stdout.flush()


def visible(home: Home, everybody: dict[int, Process] | None = None) -> list[Running]:
    """Everyone's for root, else one's own."""
    everybody = processes.table() if everybody is None else everybody
    return running.mine(home, everybody) if os.geteuid() != 0 else running.everyones(home, everybody)


def look(home: Home) -> Rows:
    everybody = processes.table()
    runs = visible(home, everybody)
    used = running.usage(runs, everybody)
    return [(run, used[run.id]) for run in runs]


def facts(run: Running, used: Usage) -> dict[str, Any]:
    """What is known of a run, as plain data. Times in seconds, sizes in bytes."""
    return {
        "id": run.id,
        "name": run.called or None,
        "uid": run.uid,
        "user": _user(run.uid),
        "pid": run.pid or None,
        "home": os.fsdecode(run.home),
        **{key: run.facts.get(key) for key in ("host", "mode", "level", "engine")},
        "command": run.words("command"),
        "images": run.words("images"),
        "age": used.age,
        "tasks": used.tasks,
        "cpu": used.cpu,
        "memory": used.memory,
    }


@functools.cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def amounts(used: Usage) -> dict[str, str]:
    """What a person is told of it; "-" is not known."""
    return {
        "age": UNKNOWN if used.age is None else age(used.age),
        "tasks": UNKNOWN if used.tasks is None else str(used.tasks),
        "cpu": UNKNOWN if used.cpu is None else f"{used.cpu:.1f} s",
        "memory": UNKNOWN if used.memory is None else size(used.memory),
    }


def _row(run: Running, used: Usage) -> tuple[str, ...]:
    shown = amounts(used)
    cells = (
        run.id[:12],
        run.called or UNKNOWN,
        _user(run.uid),
        shown["age"],
        str(run.facts.get("level") or UNKNOWN),
        str(run.facts.get("mode") or UNKNOWN),
        shown["tasks"],
        shown["cpu"],
        shown["memory"],
        " ".join(image.partition("=")[0] for image in run.words("images")) or UNKNOWN,
        " ".join(run.words("command")),
    )
    return tuple(printable(cell) for cell in cells)


def _table(rows: Rows) -> Any:
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None)
    for title in _TITLES:
        shown.add_column(title, no_wrap=True, justify="right" if title in _RIGHT else "left", overflow="ellipsis")
    for run, used in rows:
        shown.add_row(*map(escape, _row(run, used)))
    return shown


def watch(rows: Callable[[], Rows], *, every: float, screen: bool = False) -> int:
    """Show them anew after every so many seconds, until interrupted. Without a terminal, one after the other."""
    every = max(every, _SHORTEST)
    if not sys.stdout.isatty():
        while True:
            _print_plain(rows())
            time.sleep(every)
    from rich.live import Live

    with Live(_table(rows()), screen=screen, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(_table(rows()), refresh=True)
