"""Launches for the front: what Python compiled, stored with all it depended on, to be started without Python.

The front (setuid-helper/src/front) reads these files and understands no option. Whatever this module does not know to
be the same next time is not stored: a new field of the Spec is compiled every time until it is listed here.
"""

import contextlib
import hashlib
import os
import re
import struct
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import prctl

from sandbox import config, environment, fsops, records, sources
from sandbox.codec import encode
from sandbox.home import Home
from sandbox.plan import Fuse, Plan
from sandbox.plan_types import Mode, Source, SourceKind
from sandbox.spec import Spec, Tree, TreeKind

if TYPE_CHECKING:
    from sandbox.isolation import Surroundings
    from sandbox.newroot import HostRoot
    from sandbox.preparing import Prepared

DIRECTORY = b"plans"
_MAGIC = b"SBXFRONT"
_VERSION = 3
_MOST = 1024
# Long enough to be worth it, short enough for the reaper to be started and images to count as used.
_LIFETIME = 600
_LATEST = 86400
# Fields whose values are wholly in the words, and whose inputs are among the conditions below.
KNOWN = {
    "command",
    "isolation",
    "trees",
    "run",
    "mode",
    "engine",
    "cache",
    "env",
    "unset_env",
    "chdir",
    "scratch",
    "tmpfs_size",
    "max_unpacked",
    "symlinks",
    "leave_running",
    "net",
    "hostname",
    "as_pid_1",
    "pass_env",
    "pass_fds",
    "allow_syscalls",
    "allow_read",
    "allow_write",
    "limits",
    "allow_new_privs",
    "log_format",
}


class Consulted(dict[bytes, bytes]):
    """An environment that notes which variables decided something. A copy of it notes nothing."""

    def __init__(self, environ: dict[bytes, bytes]) -> None:
        super().__init__(environ)
        self.names: set[bytes] = set()

    def __getitem__(self, name: bytes) -> bytes:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, bytes):
            self.names.add(name)
        return super().__contains__(name)

    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


class Keeper:
    """Stores one launch under its words: those of the command line after the program's name."""

    def __init__(self, words: list[bytes], command_at: int) -> None:
        self.words, self.command_at = words, command_at

    def keep(self, spec: Spec, prepared: "Prepared", plan: Plan, version: int, environ: dict[bytes, bytes]) -> None:
        """Store it, if next time it would be the same. A full disk costs time, not the launch."""
        with contextlib.suppress(OSError):
            if (entry := self._entry(spec, prepared, plan, version, environ)) is None:
                return
            here = not _is_anywhere(spec)
            with fsops.closing(fsops.make_dir(prepared.home.fd, DIRECTORY)) as directory:
                prune(directory, now=time.time(), room=True)
                fsops.replace_file(directory, self._name(here=here), entry)

    def _name(self, *, here: bool) -> bytes:
        end = self.words.index(b"--") + 1 if b"--" in self.words else len(self.words)
        key = hashlib.sha256(b"".join(word + b"\0" for word in self.words[:end])).digest()
        return (hashlib.sha256(key + os.getcwdb()).hexdigest() if here else key.hex()).encode()

    def _entry(
        self, spec: Spec, prepared: "Prepared", plan: Plan, version: int, environ: dict[bytes, bytes]
    ) -> bytes | None:
        if b"--" in self.words and self.words.index(b"--") != self.command_at - 1:
            return None
        if not _is_known(spec):
            return None
        encoded = encode(plan, version)
        recipe = self._recipe(spec, prepared.surroundings)
        conditions = _conditions(spec, prepared, plan, environ)
        numbers = _own_numbers(prepared, encoded, version)
        if recipe is None or conditions is None or numbers is None:
            return None
        helper = b""
        if plan.mode is Mode.SETUID:
            from sandbox.setuid import HELPER

            helper = os.fsencode(HELPER)
        head = _MAGIC + struct.pack("<HI", _VERSION, self.command_at) + _text(helper)
        head += bytes([spec.log_format == "json"])
        return head + recipe + _list(conditions) + numbers + encoded

    def _recipe(self, spec: Spec, where: "Surroundings | None") -> bytes | None:
        """What the command's environment is made of, in the order of environment.build."""
        patterns = environment.kept_names(spec)
        changes = []
        for item in spec.env:
            if b"=" not in item:  # inherited, or among the patterns; its value is a condition
                continue
            if (found := self._find(item)) is None:
                return None
            changes.append(struct.pack("<BII", 1, *found))
        changes += [b"\2" + _text(name) for name in spec.unset_env]
        if where is not None:
            changes += [b"\3" + _text(name) + _text(value) for name, value in where.variables(spec).items()]
        return bytes([patterns is not None]) + _list([_text(name) for name in patterns or ()]) + _list(changes)

    def _find(self, item: bytes) -> tuple[int, int] | None:
        """The word, and the byte of it, where the value of an --env starts: values are not stored."""
        for index, word in enumerate(self.words[: self.command_at]):
            for prefix in (b"", b"--env=", b"-e"):
                if word == prefix + item:
                    return index, len(prefix)
        return None


def prune(directory: int, *, now: float, room: bool = False) -> int:
    """Remove what is out of date, and with `room` the oldest of too many; how many went."""
    found = []
    for name in fsops.names(directory):
        with contextlib.suppress(OSError):
            found.append((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime, name))
    found.sort()
    surplus = len(found) - _MOST + 1 if room else 0
    doomed = [name for at, (written, name) in enumerate(found) if written < now - _LATEST or at < surplus]
    for name in doomed:
        with contextlib.suppress(FileNotFoundError):
            fsops.delete_file(directory, name)
    return len(doomed)


def _is_known(spec: Spec) -> bool:
    defaults = Spec(spec.command)
    if spec.limits is not None and spec.limits.controllers:
        return False
    # A process behind the network, and what a person is told of a fence, are this process's.
    if spec.net == "private" or spec.mode == "landlock":
        return False
    if (spec.allow_read or spec.allow_write) and _is_remarked(spec):
        return False
    return all(getattr(spec, field) == getattr(defaults, field) for field in Spec.fields if field not in KNOWN)


def _is_remarked(spec: Spec) -> bool:
    """Whether a person has to be told, each time, what this kernel's fences leave open. A kernel is one boot's."""
    from sandbox import landlock

    return landlock.remarks(spec, landlock.probe()) != []


def _is_anywhere(spec: Spec) -> bool:
    """Whether the working directory decided nothing."""
    paths = [path for tree in spec.trees if tree.kind is not TreeKind.EMPTY for path in _layers(tree)]
    names = [sources.split(tree.text)[0] or b"" for tree in spec.trees]
    paths += [path for path in (spec.chdir, spec.scratch, *spec.allow_read, *spec.allow_write) if path is not None]
    mounted = any(name.startswith(b"/") for name in names)
    return spec.isolation == "none" and not mounted and all(path.startswith((b"/", b"@")) for path in paths)


def _layers(tree: Tree) -> tuple[bytes, ...]:
    return sources.layers_of(sources.split(tree.text)[1])


def _own_numbers(prepared: "Prepared", encoded: bytes, version: int) -> bytes | None:
    """Where a job of root's has the uid that is its own: as a number, then as digits. The front gives each job another.

    None when another uid does not make exactly the plan for that one.
    """
    where = prepared.surroundings
    if where is None or where.ids is None:
        return struct.pack("<III", 0, 0, 0)
    own, other = where.ids[0], where.ids[0] ^ 1
    as_number = _places(encoded, struct.pack("<I", own))
    as_digits = _places(encoded, b"%d" % own)
    patched = bytearray(encoded)
    for places, text in ((as_number, struct.pack("<I", other)), (as_digits, b"%d" % other)):
        for place in places:
            patched[place : place + len(text)] = text
    assert prepared.recompile is not None
    expected = prepared.recompile(where.replace(ids=(other, other))).plan
    if encode(expected, version) != bytes(patched):
        return None
    lists = [_list([struct.pack("<I", place) for place in places]) for places in (as_number, as_digits)]
    return struct.pack("<I", own) + b"".join(lists)


def _places(data: bytes, text: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(text), data)]


def _conditions(spec: Spec, prepared: "Prepared", plan: Plan, environ: dict[bytes, bytes]) -> "list[bytes] | None":
    """Everything outside the words that the plan depends on; None when some of it cannot be told."""
    defaults = [_file_at(place.path) for place in config.places(environ)]
    consulted = sorted(environ.names) if isinstance(environ, Consulted) else sorted(environ)
    found = [*_machine(spec, plan), *defaults, *(_variable(name, environ) for name in consulted)]
    for index, source in enumerate(plan.sources):
        # A kept tree is handed over with the lock that keeps it.
        if source.kind is SourceKind.MEMORY or (source.kind is SourceKind.DIRECTORY and index in prepared.compiled.fds):
            return None
        found.append(_file(source) if source.kind is SourceKind.FILE else _directory(source.path))
    found += [_file_at(step.program) for step in plan.steps if isinstance(step, Fuse)]
    if plan.mode is Mode.USERNS:
        found.append(_file_at(b"/dev/fuse"))  # who may open it has images through FUSE
    if (where := prepared.surroundings) is not None:
        found += _level(environ)
        found += [_file_at(path) for path, _ in where.accounts]
        if where.root is not None:
            found += _new_root(where.root, named=where.ids is None)
    for tree, opened in zip(spec.trees, prepared.trees, strict=True):
        if tree.kind is not TreeKind.EMPTY:
            found += _names(tree, prepared.home)
        if opened.name.startswith(b"/"):
            found.append(_directory(opened.name))
    return found


def _machine(spec: Spec, plan: Plan) -> list[bytes]:
    """This boot, this user, these programs, this hour, and, if it matters, this directory."""
    groups = os.getgroups()
    ids = struct.pack(f"<{len(groups) + 2}I", os.getuid(), os.getgid(), *groups)
    found = [
        b"\6" + struct.pack("<I", len(groups) + 2) + ids,
        b"\7" + _text(records.boot_id().encode()),
        struct.pack("<BBB", 8, bool(prctl.cap_effective.sys_admin), prctl.get_no_new_privs()),
        struct.pack("<BQ", 9, int(time.time()) + _LIFETIME),
        _file_at(os.fsencode(__file__)),
    ]
    from sandbox.engine.native import PROGRAM

    found.append(_file_at(os.fsencode(PROGRAM)))
    if plan.mode is not Mode.ROOT:
        from sandbox.setuid import HELPER, POLICY

        found += [_file_at(os.fsencode(HELPER)), _file_at(os.fsencode(POLICY))]
    if not _is_anywhere(spec):
        found.append(_directory(os.getcwdb()))
    return found


def _level(environ: dict[bytes, bytes]) -> Iterable[bytes]:
    """What an isolating level looks at of the host."""
    from sandbox import isolation

    homes = (*isolation.HOMES, *isolation.MAIL, *isolation.account_homes({os.getuid()}), environ.get(b"HOME") or b"/")
    for path in (*isolation.SHARED_DIRECTORIES, *homes):
        if path.startswith(b"/"):
            yield _directory(path) if os.path.isdir(path) else _missing(path)


def _new_root(root: "HostRoot", *, named: bool) -> Iterable[bytes]:
    """What a root of the run's own is made of: the links and directories that the plan means, and files as they are.

    `named`: its user has the name that the host gives him.
    """
    from sandbox import newroot

    links = dict(root.links)
    directories = {shown.place.path: shown.place for shown in root.shown if shown.is_directory}
    for path in newroot.PARTS:
        if path in links:
            yield _link(path, links[path])
        elif (place := directories.get(path)) is not None:
            yield b"\3" + _text(path) + struct.pack("<2Q", place.dev, place.ino)
        else:
            yield _file_at(path)
    yield from map(_file_at, (newroot.RESOLVER, *(newroot.NAMES if named else ())))


def _names(tree: Tree, where: Home) -> Iterable[bytes]:
    """What the text of a tree was taken to mean: a path with a colon or a plus, and which image a name stands for."""
    name, path = sources.split(tree.text)
    layers = sources.layers_of(path)
    # Taken whole, a text is a file, and that is among the sources.
    if name is not None:
        yield _missing(tree.text)
    if len(layers) > 1:
        yield _missing(path)
    for layer in layers:
        if layer.startswith(b"@") and not layer.startswith(b"@sha256:"):
            link = os.path.join(where.path, b"names", layer[1:])
            yield _link(link, os.readlink(link))


# -- the encoding, as setuid-helper/src/front reads it ----------------------------------------------------------


def _text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _list(items: list[bytes]) -> bytes:
    return struct.pack("<I", len(items)) + b"".join(items)


def _variable(name: bytes, environ: dict[bytes, bytes]) -> bytes:
    value = dict(environ).get(name)
    return b"\1" + _text(name) + (b"\0" if value is None else b"\1" + hashlib.sha256(value).digest())


def _file(source: Source) -> bytes:
    numbers = (source.dev, source.ino, source.size, source.mtime_ns, source.ctime_ns)
    return b"\2" + _text(source.path) + struct.pack("<5Q", *numbers)


def _file_at(path: bytes) -> bytes:
    """A file as it is now, or its absence."""
    try:
        return _file(sources.describe(path, os.stat(path)))
    except FileNotFoundError:
        return _missing(path)


def _directory(path: bytes) -> bytes:
    status = os.stat(path)
    return b"\3" + _text(sources.absolute(path)) + struct.pack("<2Q", status.st_dev, status.st_ino)


def _link(path: bytes, target: bytes) -> bytes:
    return b"\5" + _text(path) + _text(target)


def _missing(path: bytes) -> bytes:
    return b"\4" + _text(sources.absolute(path))
