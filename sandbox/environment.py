"""The environment of the command: the caller's, then --env-file, --env, --unset-env."""

import codecs
import os
from collections.abc import Mapping

from sandbox import given
from sandbox.errors import UsageError, printable
from sandbox.spec import Spec

# More than a command can be given.
_MOST_BYTES = 8 << 20
_HARMLESS = (b"HOME", b"LANG", b"LANGUAGE", b"LOGNAME", b"PATH", b"SHELL", b"TERM", b"TZ", b"USER")


def own() -> dict[bytes, bytes]:
    """A copy of this process's own. os.environb converts and checks each name on the way, which was a third of what is
    done in Python for a run; what it holds is such a dict (CPython 3.2 to 3.14).

    Without what Cygwin and Wine hand down, one for each drive: a variable without a name. execve refuses it in Python.
    """
    known = getattr(os.environb, "_data", None)
    env = dict(known if isinstance(known, dict) else os.environb)
    env.pop(b"", None)
    return env


def build(spec: Spec, caller: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The command's environment. Raises UsageError for an unreadable file or a variable that is not set."""
    env = dict(caller) if spec.isolation == "none" else _scrubbed(spec, caller)
    env.pop(b"", None)  # The caller's may be another than `own`.
    for path in spec.env_files:
        for item in _read(path):
            _apply(env, item, caller, where=f"--env-file {printable(path)}")
    for item in spec.env:
        _apply(env, item, caller, where="--env")
    for name in spec.unset_env:
        env.pop(name, None)
    return env


def kept_names(spec: Spec) -> tuple[bytes, ...] | None:
    """Which of the caller's variables stay; those that end in `*` are prefixes. None: all."""
    return None if spec.isolation == "none" else (*_HARMLESS, *spec.pass_env, b"LC_*")


def _scrubbed(spec: Spec, caller: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What an isolated command sees of the caller's: nothing that could be a secret, unless --pass-env names it."""
    for name in spec.pass_env:
        if name not in caller:
            raise UsageError(f"--pass-env: {printable(name)} is not set", hint="export it first")
    kept = kept_names(spec) or ()
    prefixes = tuple(name[:-1] for name in kept if name.endswith(b"*"))
    return {name: value for name, value in caller.items() if name in kept or name.startswith(prefixes)}


def _apply(env: dict[bytes, bytes], item: bytes, caller: Mapping[bytes, bytes], *, where: str) -> None:
    name, equals, value = item.partition(b"=")
    if not name or any(blank in name for blank in b" \t"):
        raise UsageError(f"{where}: '{printable(name)}' is not a variable name", hint="NAME=VALUE, or NAME alone")
    if not equals:
        if name not in caller:
            raise UsageError(f"{where}: {printable(name)} is not set", hint="export it first, or give NAME=VALUE")
        value = caller[name]
    env[name] = value


def _read(path: bytes) -> list[bytes]:
    """NAME=VALUE lines; blank ones and those that start with # do not count, nor does a mark that the file is UTF-8."""
    data = given.read(path, _MOST_BYTES, option="--env-file", hint="a file of NAME=VALUE lines")
    if b"\0" in data:
        raise UsageError(f"--env-file: {printable(path)} holds a NUL byte", hint="NAME=VALUE lines, as text")
    stripped = (line.lstrip() for line in data.removeprefix(codecs.BOM_UTF8).splitlines())
    return [line for line in stripped if line and not line.startswith(b"#")]
