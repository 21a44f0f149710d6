"""Which lines of a module change the filesystem by themselves, as its syntax tree shows it.

What takes a descriptor and nothing else (`os.write`, `os.fchmod`, `os.ftruncate`) needs no path and is nobody's
business here. Opening for writing counts, but for what is no file of the user's: a memfd, a device.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple

_OS = {
    "chmod", "chown", "lchmod", "lchown", "link", "makedirs", "mkdir", "mkfifo", "mknod", "remove",
    "removedirs", "removexattr", "rename", "renames", "replace", "rmdir", "setxattr", "symlink", "truncate",
    "unlink", "utime",
}  # fmt: skip
_METHODS = {
    "chmod", "hardlink_to", "lchmod", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
_CALLS = {"renameat2", "linkat", "unlinkat", "symlinkat", "mkdirat"}
_READ_ONLY_OF_SHUTIL = {"which", "disk_usage", "get_terminal_size"}
_MODULES = {"shutil", "tempfile"}
_WRITING = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"}
_DEVICES = ("/dev/", b"/dev/")


class Mutation(NamedTuple):
    """What is done, in which function (`<module>` for none), on which line."""

    function: str
    what: str
    line: int


def find(source: str) -> list[Mutation]:
    """Every mutation in a module's text, in the order of its lines."""
    return sorted(_Finder(ast.parse(source)).found, key=lambda mutation: mutation.line)


class _Finder(ast.NodeVisitor):
    def __init__(self, tree: ast.Module) -> None:
        self.found: list[Mutation] = []
        self._functions = ["<module>"]
        self._values = dict(_assignments(tree))
        self._opens: set[int] = set()
        self.visit(tree)

    def _note(self, node: ast.AST, what: str) -> None:
        self.found.append(Mutation(self._functions[-1], what, node.lineno))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name in ("os", *_MODULES) and alias.asname not in (None, alias.name):
                self._note(node, f"import {alias.name} under another name")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if node.module == "os" and alias.name in {*_OS, "open"}:
                self._note(node, f"os.{alias.name}")
            elif (node.module in _MODULES and alias.name not in _READ_ONLY_OF_SHUTIL) or alias.name in _CALLS:
                self._note(node, alias.name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner == "os":
            if node.attr in _OS or (node.attr == "open" and id(node) not in self._opens):
                self._note(node, f"os.{node.attr}")
        elif owner in _MODULES:
            if node.attr not in _READ_ONLY_OF_SHUTIL:
                self._note(node, f"{owner}.{node.attr}")
        elif node.attr in {*_METHODS, *_CALLS} and not _is_own(node.value):
            self._note(node, f".{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "os":
            if function.attr == "open":
                self._opens.add(id(function))
                self._os_open(node)
        elif isinstance(function, ast.Attribute) and function.attr == "open":
            self._method_open(node)
        elif isinstance(function, ast.Name) and function.id == "open":
            self._builtin_open(node)
        elif isinstance(function, ast.Name) and function.id == "getattr" and _names_os(node):
            self._note(node, "getattr(os, ...)")
        elif _is_replace_of_path(node):
            self._note(node, ".replace")
        self.generic_visit(node)

    def _os_open(self, node: ast.Call) -> None:
        flags = node.args[1] if len(node.args) > 1 else None
        if flags is None or (self._writes(flags, set()) and not _is_device(node.args[0])):
            self._note(node, "os.open for writing")

    def _method_open(self, node: ast.Call) -> None:
        mode = node.args[0] if node.args else None
        if isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) & set("wax+"):
            self._note(node, ".open for writing")

    def _builtin_open(self, node: ast.Call) -> None:
        mode = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
        if mode is None or (isinstance(mode, ast.Constant) and not set(str(mode.value)) & set("wax+")):
            return
        # closefd=False is possible with a descriptor only.
        on_descriptor = any(word.arg == "closefd" for word in node.keywords) or _is_memory(node.args[0])
        if not on_descriptor and not _is_device(node.args[0]):
            self._note(node, "open for writing")

    def _writes(self, flags: ast.expr, seen: set[str]) -> bool:
        """Whether the flags can ask for more than reading; names are looked up in the module, unknown ones do."""
        for part in ast.walk(flags):
            if isinstance(part, ast.Attribute) and part.attr in _WRITING:
                return True
            if isinstance(part, ast.Name) and part.id != "os" and part.id not in seen:
                values = self._values.get(part.id)
                if values is None or any(self._writes(value, seen | {part.id}) for value in values):
                    return True
            elif isinstance(part, ast.Constant) and isinstance(part.value, int) and part.value & 0o3:
                return True
        return False


def _assignments(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr]]]:
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
                elif isinstance(target, ast.Tuple):
                    for name in target.elts:
                        if isinstance(name, ast.Name):
                            values.setdefault(name.id, []).append(node.value)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and isinstance(node.target, ast.Name) and node.value:
            values.setdefault(node.target.id, []).append(node.value)
    yield from values.items()


def _is_own(owner: ast.expr) -> bool:
    """Whether an attribute by a mutation's name is a field of the user's wishes, or a function of this package."""
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name in ("args", "spec", "self", "fsops") or name[:1].isupper()


def _names_os(node: ast.Call) -> bool:
    return bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id == "os"


def _is_replace_of_path(node: ast.Call) -> bool:
    """str.replace takes two arguments, a record's keywords: with one it is pathlib's."""
    named = isinstance(node.func, ast.Attribute) and node.func.attr == "replace"
    return named and len(node.args) == 1 and not node.keywords


def _is_device(path: ast.expr) -> bool:
    if isinstance(path, ast.Constant) and isinstance(path.value, (str, bytes)):
        return path.value.startswith(_DEVICES[isinstance(path.value, bytes)])
    return isinstance(path, ast.Attribute) and path.attr == "devnull"


def _is_memory(argument: ast.expr) -> bool:
    called = argument.func if isinstance(argument, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in ("memfd_create", "dup")
