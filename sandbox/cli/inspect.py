"""`sandbox inspect`: all that is known of a running sandbox."""

import argparse
import contextlib
import json
import os
from typing import Any

from sandbox import processes, running
from sandbox.cli import ps
from sandbox.errors import SandboxError, printable
from sandbox.explain import lines
from sandbox.home import Home
from sandbox.running import Running


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("inspect", help="all that is known of a running sandbox")
    parser.add_argument("id", metavar="ID", help="a name, or the start of an id")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    run = running.find(ps.visible(home), args.id)
    used = running.usage([run], processes.table())[run.id]
    facts = ps.facts(run, used) | {"processes": _processes(run), "plan": _plan(run)}
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in (facts | ps.amounts(used)).items():
        if name == "command":
            print(f"{name:10} {' '.join(map(printable, value))}")
        elif not isinstance(value, list):
            print(f"{name:10} {ps.UNKNOWN if value is None else printable(str(value))}")
    for image in facts["images"]:
        print(f"image      {printable(image)}")
    for process in facts["processes"]:
        words = " ".join(map(printable, process["command"])) or printable(process["name"])
        print(f"process    {process['pid']} {process['status']} {words}")
    print("plan")
    for line in facts["plan"]:
        print(f"  {line}")
    return 0


def _plan(run: Running) -> list[str]:
    try:
        return lines(run.decoded(), tuple(map(os.fsencode, run.words("command"))), set())
    except SandboxError as error:
        return [printable(str(error))]


def _processes(run: Running) -> list[dict[str, Any]]:
    """Those of the sandbox, the supervisor first."""
    import psutil

    found = []
    try:
        supervisor = psutil.Process(run.pid) if run.pid else None
        everybody = [supervisor, *supervisor.children(recursive=True)] if supervisor else []
    except psutil.Error:
        return []
    for process in everybody:
        # Processes come and go while they are looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            facts = process.as_dict(["pid", "ppid", "name", "status", "cmdline", "num_threads", "create_time"])
            facts["command"] = facts.pop("cmdline") or []
            found.append(facts)
    return found
