"""Plain data over a pipe, read without trust: what a sandboxed callable gives back.

JSON, with the types that it lacks as tagged lists. Reading it makes values of the types below and of no others, and
runs nothing: a pickle would be the sender's program.
"""

import base64
import json
from typing import Any

from sandbox.errors import SandboxError

# Deeper data is refused when it is written, so that none has to be when it is read.
DEEPEST = 100
_SCALARS = (type(None), bool, int, float, str)


class CallError(SandboxError):
    """A callable in a sandbox gave nothing back that can be used; or it raised, and `remote` is its traceback."""

    def __init__(self, message: str, *, hint: str = "", remote: str = "") -> None:
        super().__init__(message, hint=hint)
        self.remote = remote


def dump(value: Any) -> bytes:
    """The value as JSON. Raises CallError for what is no plain data."""
    return json.dumps(_tagged(value, 0)).encode()


def load(data: bytes) -> Any:
    """The value. Raises CallError for anything that `dump` does not write."""
    try:
        return _plain(json.loads(data), 0)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CallError("the sandbox sent what is no result") from None


def _tagged(value: Any, depth: int) -> Any:
    if type(value) in _SCALARS:
        return value
    if depth > DEEPEST:
        raise CallError(f"the result is nested more than {DEEPEST} deep")
    kind = type(value).__name__
    if type(value) in (list, tuple, set, frozenset):
        return [kind, [_tagged(item, depth + 1) for item in value]]
    if type(value) is dict:
        return [kind, [[_tagged(key, depth + 1), _tagged(item, depth + 1)] for key, item in value.items()]]
    if type(value) in (bytes, bytearray):
        return [kind, base64.b64encode(value).decode()]
    if type(value) is complex:
        return [kind, [value.real, value.imag]]
    raise CallError(
        f"the result holds a {kind}, which is no plain data",
        hint='numbers, strings, bytes, lists, tuples, sets and dicts are; results="pickle" is for callables you trust',
    )


def _plain(value: Any, depth: int) -> Any:
    if not isinstance(value, list | dict):
        return value
    if depth > DEEPEST or not isinstance(value, list):
        raise ValueError
    kind, content = value
    if kind in ("bytes", "bytearray"):
        data = base64.b64decode(content, validate=True)
        return data if kind == "bytes" else bytearray(data)
    if kind == "complex":
        real, imaginary = content
        return complex(float(real), float(imaginary))
    if not isinstance(content, list):
        raise TypeError
    if kind == "dict":
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in content}
    items = [_plain(item, depth + 1) for item in content]
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
