"""What a Python inside a sandbox needs of the host, where a level hides it: the interpreter and the modules."""

import os
import sys
from typing import Any

# What the isolating levels replace with something empty (sandbox/isolation.py).
_HIDDEN = ("/tmp", "/var/tmp", "/home", "/root", "/run")  # noqa: S108


def with_python(options: Any, *, also: tuple[str, ...] = ()) -> Any:
    """The options of a sandbox in which this Python runs, with its modules and the directories in `also`."""
    if options["isolation"] == "none":
        return options
    given = options.get("static", ())
    more = [given] if isinstance(given, str | bytes | os.PathLike) else [*given]
    return {**options, "static": [*_trees(also), *more]}


def _trees(also: tuple[str, ...]) -> list[str]:
    """`[NAME:]SRC` of the directories that are to be shown at their own places."""
    needed = [sys.prefix, sys.base_prefix, sys.exec_prefix, *module_path(), *also]
    cwd = os.path.realpath(".")
    found: list[str] = []
    for path in sorted({os.path.realpath(path) for path in needed if os.path.isdir(path)}):
        hidden = any(_is_below(path, os.path.realpath(top)) for top in (*_HIDDEN, os.path.expanduser("~")))
        if hidden and not any(_is_below(path, top) for top in (*found, cwd)):
            found.append(path)
    return [f"{path}:{path}" for path in found]


def module_path() -> list[str]:
    """sys.path, whose relative entries a process in another directory would not understand."""
    return [os.path.abspath(entry) for entry in sys.path]


def main_program() -> dict[str, Any]:
    """What multiprocessing needs to find the names of the main program again: never this process's key."""
    from multiprocessing import spawn

    found = spawn.get_preparation_data("sandbox")
    return {name: value for name, value in found.items() if name.startswith("init_main") or name == "sys_argv"}


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
