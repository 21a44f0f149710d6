"""The byte encoding of plans (docs/plan.md). Decoding treats its input as hostile: the first doubt rejects it all."""

import struct
from collections.abc import Callable
from typing import Any, TypeVar

from sandbox import plan_check
from sandbox.errors import SandboxError, printable
from sandbox.plan import (
    OPCODE_OF,
    OPCODES,
    Plan,
    Step,
)
from sandbox.plan_types import (
    U8,
    U32,
    U64,
    Mode,
    Path,
    Place,
    PlanFlag,
    Slots,
    Source,
    String,
    Strings,
    Words,
)
from sandbox.versions import FIRST, LAST, lowered, version_of

MAGIC = b"SBXPLAN\x00"
MAX_BYTES = 1 << 20
MAX_ITEMS = 4096
MAX_STRING = 65536
MAX_PATH = 4095


class PlanError(SandboxError):
    """Bytes that are not a plan of this version."""


# -- encoding -------------------------------------------------------------------------------------------------


def _pack_bytes(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _pack_path(value: bytes) -> bytes:
    if len(value) > MAX_PATH:
        raise PlanError(f"{printable(value)}: a path of {len(value)} bytes", hint=f"the kernel takes {MAX_PATH}")
    return _pack_bytes(value)


def _pack_record(record: Any) -> bytes:
    kinds = type(record).__annotations__
    return b"".join(_PACK[kinds[name]](value) for name, value in zip(record.fields, record, strict=True))


def _pack_list(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda items: struct.pack("<I", len(items)) + b"".join(map(pack, items))


_PACK: dict[Any, Callable[[Any], bytes]] = {
    U8: lambda v: struct.pack("<B", v),
    U32: lambda v: struct.pack("<I", v),
    U64: lambda v: struct.pack("<Q", v),
    Path: _pack_path,
    String: _pack_bytes,
    Strings: _pack_list(_pack_bytes),
    Slots: _pack_list(lambda v: struct.pack("<I", v)),
    Words: _pack_list(lambda v: struct.pack("<Q", v)),
    Place: _pack_record,
}


def encode(plan: Plan, version: int = LAST) -> bytes:
    """The plan as bytes of a version. Raises PlanError when it breaks a limit of the format, TooNewError when the
    version has not all that the plan says; nothing is left out.
    """
    if lowered(plan, version) != plan:
        raise PlanError(f"a flag of this plan is newer than version {version}")
    out = [
        MAGIC,
        struct.pack("<HBBII", version, plan.mode, plan.flags, plan.uid, plan.gid),
        _pack_record(plan.home),
        _pack_list(_pack_record)(plan.sources),
        struct.pack("<I", len(plan.steps)),
    ]
    for step in plan.steps:
        body = _pack_record(step)
        out.append(struct.pack("<HI", OPCODE_OF[type(step)], len(body)) + body)
    data = b"".join(out)
    decode(data)  # one place knows the limits
    return data


# -- decoding -------------------------------------------------------------------------------------------------

T = TypeVar("T")


class _Reader:
    """A cursor over hostile bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def fail(self, why: str) -> PlanError:
        return PlanError(f"cannot decode the plan: {why} at byte {self.at}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.fail("truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self, limit: int = MAX_STRING) -> bytes:
        length = self.number(4)
        if length > limit:
            raise self.fail(f"a string of {length} bytes")
        value = self.take(length)
        if b"\0" in value:
            raise self.fail("a NUL byte inside a string")
        return value

    def items(self, read: Callable[[], T]) -> tuple[T, ...]:
        count = self.number(4)
        if count > MAX_ITEMS:
            raise self.fail(f"a list of {count} items")
        return tuple(read() for _ in range(count))

    def record(self, cls: Callable[..., T]) -> T:
        kinds = cls.__annotations__
        return cls(*(self.field(kinds[name]) for name in cls.fields))  # type: ignore[attr-defined]

    def field(self, kind: Any) -> Any:
        if kind is Place:
            return self.record(Place)
        return _READ[kind](self)


_READ: dict[Any, Callable[[_Reader], Any]] = {
    U8: lambda r: r.number(1),
    U32: lambda r: r.number(4),
    U64: lambda r: r.number(8),
    Path: lambda r: r.string(MAX_PATH),
    String: lambda r: r.string(),
    Strings: lambda r: r.items(r.string),
    Slots: lambda r: r.items(lambda: r.number(4)),
    Words: lambda r: r.items(lambda: r.number(8)),
}


def decode(data: bytes) -> Plan:
    """The plan in `data`. Raises PlanError, and returns nothing, on the first doubt."""
    if len(data) > MAX_BYTES:
        raise PlanError(f"cannot decode the plan: {len(data)} bytes, the limit is {MAX_BYTES}")
    reader = _Reader(data)
    if reader.take(len(MAGIC)) != MAGIC:
        raise PlanError("cannot decode the plan: it does not start with the magic bytes")
    if not FIRST <= (version := reader.number(2)) <= LAST:
        raise PlanError(f"cannot decode the plan: version {version}, this program takes {FIRST} to {LAST}")
    mode, flags, uid, gid = reader.number(1), reader.number(1), reader.number(4), reader.number(4)
    if mode not in Mode.__members__.values():
        raise reader.fail(f"unknown mode {mode}")
    # ~ of an IntFlag keeps only its known bits (enum, Python 3.11): the complement is taken of the number.
    if flags & ~int(sum(PlanFlag)):
        raise reader.fail(f"unknown flags {flags:#x}")
    home = reader.record(Source)
    sources = reader.items(lambda: reader.record(Source))
    steps = reader.items(lambda: _read_step(reader))
    if reader.at != len(data):
        raise reader.fail("trailing bytes")
    plan = Plan(Mode(mode), PlanFlag(flags), uid, gid, home, sources, steps)
    if version_of(plan) > version:
        raise PlanError("cannot decode the plan: it holds something that its version has not")
    if why := plan_check.fault(plan):
        raise PlanError(f"cannot decode the plan: {why}")
    return plan


def _read_step(reader: _Reader) -> Step:
    opcode, length = reader.number(2), reader.number(4)
    if opcode not in OPCODES:
        raise reader.fail(f"unknown step {opcode:#x}")
    end = reader.at + length
    step: Step = reader.record(OPCODES[opcode])
    if reader.at != end:
        raise reader.fail(f"step {opcode:#x} does not fill its length")
    return step
