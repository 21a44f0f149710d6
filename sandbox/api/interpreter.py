"""What a Python inside a sandbox needs of the host, where a level hides it: the interpreter and the modules."""

import os
import sys
from typing import Any


def with_python(options: Any, *, also: tuple[str, ...] = ()) -> Any:
    """The options of a sandbox in which this Python runs, with its modules and the directories in `also`.

    What a level shows of the host anyway, /usr above all, a `root` of the user's own has to hold itself.
    """
    if options["isolation"] == "none":
        return options
    shown: dict[str, list[Any]] = {"static": [], "ro_bind": []}
    for path in _trees(options["isolation"] == "strict", also):
        # [NAME:]SRC has no words for a name with a colon; a bind that names no other place is taken whole.
        if ":" in path:
            shown["ro_bind"].append(path)
        else:
            shown["static"].append(f"{path}:{path}")
    return {**options, **{key: [*paths, *_list(options.get(key))] for key, paths in shown.items() if paths}}


def _list(given: Any) -> list[Any]:
    if given is None:
        return []
    return [given] if isinstance(given, str | bytes | os.PathLike) else [*given]


def _trees(strict: bool, also: tuple[str, ...]) -> list[str]:
    """The directories that are to be shown at their own places: by the names they go by, and where links lead."""
    needed = [sys.prefix, sys.base_prefix, sys.exec_prefix, *module_path(), *also]
    tops = _shown_by_strict() if strict else _hidden_by_job()
    cwd = os.path.realpath(".")
    # The workspace is there in any case, unless too much lies beneath: isolation.can_be_workspace.
    there = [] if any(_is_below(top, cwd) for top in tops) else [cwd]
    found: list[str] = []
    for path in sorted({name for top in needed if os.path.isdir(top) for name in (top, os.path.realpath(top))}):
        hidden = any(_is_below(path, top) for top in tops) is not strict
        if hidden and not any(_is_below(path, top) for top in (*found, *there)):
            found.append(path)
    return found


def _shown_by_strict() -> list[str]:
    from sandbox.newroot import PARTS

    return [os.fsdecode(path) for path in PARTS]


def _hidden_by_job() -> list[str]:
    from sandbox.isolation import HOMES, SHARED_DIRECTORIES

    hidden = map(os.fsdecode, (*SHARED_DIRECTORIES, *HOMES, b"/run"))
    return [os.path.realpath(path) for path in (*hidden, os.path.expanduser("~"))]


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
