"""Bytes that must be refused: their names, what is wrong with each, and the bytes."""

import struct
from collections.abc import Iterator

from sandbox import codec
from sandbox.codec import MAX_ITEMS, MAX_PATH, MAX_STRING
from sandbox.plan import (
    Plan,
)
from sandbox.plan_types import Source
from sandbox.versions import version_of
from tests.vectors.good import DIRECTORY, FILE, FULL, HOME, LIMITS, MEMORY, plan


def encode(value: Plan, version: int | None = None) -> bytes:
    """In the oldest version that has it: the vectors of version 1 stay what they are."""
    return codec.encode(value, version or version_of(value))


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    if data.count(old) != 1:
        raise ValueError(f"{old!r} occurs {data.count(old)} times")
    return data.replace(old, new)


def with_steps(*steps: bytes, count: int | None = None, sources: tuple[Source, ...] = (), version: int = 1) -> bytes:
    head = encode(plan(sources=sources), version)[:-4]
    return head + struct.pack("<I", len(steps) if count is None else count) + b"".join(steps)


def step(opcode: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HI", opcode, len(body) if length is None else length) + body


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(value) if length is None else length) + value


def place(base: int, path: bytes) -> bytes:
    return bytes([base]) + text(path) + bytes(16)


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def ids(*words: int) -> bytes:
    return struct.pack(f"<I{len(words)}Q", len(words), *words)


def _network(address: int, *closed: int) -> bytes:
    return step(0x36, u32(0) + struct.pack("<Q", address) + u32(0x0A000202, 0x0A000203) + ids(*closed))


def bad_head() -> Iterator[tuple[str, str, bytes]]:
    data = encode(FULL)
    minimal = encode(plan())
    yield "empty", "no bytes at all", b""
    yield "magic", "another magic", b"SBXPLAM\0" + data[8:]
    yield "version-0", "version 0", data[:8] + b"\0\0" + data[10:]
    yield "version-3", "version 3", data[:8] + b"\3\0" + data[10:]
    newer = encode(plan(*LIMITS, sources=(DIRECTORY,)))
    yield "version-1-limits", "version 1 with steps of version 2", newer[:8] + b"\1\0" + newer[10:]
    for code, body in ((0x30, b"\1" + bytes(16)), (0x31, b"\0"), (0x32, bytes(16))):
        yield f"version-1-{code:x}", f"version 1 with step {code:#x}", with_steps(step(code, body))
    yield "mode-0", "mode 0", data[:10] + b"\0" + data[11:]
    yield "mode-4", "mode 4, which version 1 has not", data[:10] + b"\4" + data[11:]
    yield "mode-5", "mode 5", data[:8] + b"\2\0\5" + data[11:]
    yield "flags", "a flag that version 1 has not", data[:11] + b"\2" + data[12:]
    yield "flags-2", "an unknown flag", data[:8] + b"\2\0" + data[10:11] + b"\x08" + data[12:]
    yield "truncated-head", "ends inside the head", data[:15]
    yield "truncated-source", "ends inside a source", data[:100]
    yield "truncated-step", "ends inside the last step", data[:-1]
    yield "trailing", "one byte after the end", data + b"\0"
    yield "home-file", "the home is a file", minimal[:20] + b"\1" + minimal[21:]
    yield "home-relative", "the home's path is relative", swapped(minimal, b"/home/u", b"xhome/u")
    yield "source-kind-0", "source kind 0", minimal[:20] + b"\0" + minimal[21:]
    yield "source-kind-4", "source kind 4", minimal[:20] + b"\4" + minimal[21:]
    yield "source-nul", "a NUL in a source's path", swapped(data, b"/srv/image", b"/srv\0image")
    yield (
        "source-empty",
        "a file source without a path",
        swapped(encode(plan(sources=(FILE,))), text(FILE.path), text(b"")),
    )
    yield (
        "memory-path",
        "a memory source with a path",
        encode(plan(sources=(MEMORY,))).replace(b"\3" + text(b""), b"\3" + text(b"/x")),
    )
    yield "path-length", "a path longer than the data", swapped(minimal, text(HOME.path), text(HOME.path, 0xFFFFFFFF))
    yield (
        "path-too-long",
        f"a path of {MAX_PATH + 1} bytes",
        swapped(minimal, text(HOME.path), text(b"/" + b"x" * MAX_PATH)),
    )
    yield "sources-count", "four billion sources", minimal[:-8] + u32(0xFFFFFFFF, 0)
    yield "steps-count-over", f"{MAX_ITEMS + 1} steps", with_steps(*[step(0x12, b"")] * (MAX_ITEMS + 1))
    yield "steps-count-beyond", "more steps promised than there are", with_steps(step(0x12, b""), count=2)


def bad_steps() -> Iterator[tuple[str, str, bytes]]:
    tmpfs = step(0x05, u32(1) + bytes(20))
    one = (FILE,)
    yield "opcode-0", "opcode 0", with_steps(step(0, b""))
    yield "opcode-unknown", "an unknown opcode", with_steps(step(0x7FFF, b""))
    yield "step-short", "a step that says less than its fields", with_steps(step(0x01, bytes(8), 7))
    yield "step-long", "a step that says more than its fields", with_steps(step(0x01, bytes(9)))
    yield "step-length", "a step longer than the data", with_steps(step(0x12, b"", 0xFFFFFFFF))
    yield "propagation-0", "propagation 0", with_steps(step(0x03, b"\0"))
    yield "propagation-3", "propagation 3", with_steps(step(0x03, b"\3"))
    yield "tree-recursive", "recursive is 2", with_steps(step(0x07, u32(1, 0) + b"\2"), sources=(DIRECTORY,))
    yield "source-index", "a source beyond the list", with_steps(step(0x08, u32(1, 1)), sources=one)
    yield (
        "source-index-extract",
        "Extract from a source beyond the list",
        with_steps(tmpfs, step(0x0A, u32(1, 0, 1) + text(b"/x"))),
    )
    yield "slot-unmade", "Attach of a slot that was not made", with_steps(step(0x0C, u32(1) + place(2, b"") + u32(0)))
    yield "slot-twice", "a slot that is made twice", with_steps(tmpfs, tmpfs)
    yield (
        "slot-twice-scratch",
        "Scratch with one slot for both",
        with_steps(step(0x06, u32(0, 5, 5)), sources=(DIRECTORY,)),
    )
    yield "slot-own-layer", "an overlay that is its own lower", with_steps(tmpfs, step(0x0B, u32(2, 1, 2, 1, 0)))
    yield "overlay-no-lower", "an overlay without lowers", with_steps(tmpfs, step(0x0B, u32(2, 0, 1, 0)))
    yield "overlay-upper", "an overlay whose upper was not made", with_steps(tmpfs, step(0x0B, u32(2, 1, 1, 9, 0)))
    yield "stack-one", "a stack of one lower", with_steps(tmpfs, step(0x40, u32(2, 1, 1, 0)), version=2)
    yield (
        "stack-unmade",
        "a stack with a lower that was not made",
        with_steps(tmpfs, step(0x40, u32(2, 2, 1, 9, 0)), version=2),
    )
    yield (
        "stack-options",
        "a stack with an option of writable ones",
        with_steps(tmpfs, step(0x40, u32(2, 2, 1, 1, 2)), version=2),
    )
    yield "overlay-options", "an unknown overlay option", with_steps(tmpfs, step(0x0B, u32(2, 1, 1, 1, 4)))
    yield (
        "overlay-count",
        "an overlay with more lowers than there are bytes",
        with_steps(tmpfs, step(0x0B, u32(2, 4000, 1, 0))),
    )
    yield (
        "overlay-count-over",
        f"an overlay of {MAX_ITEMS + 1} lowers",
        with_steps(tmpfs, step(0x0B, u32(2, MAX_ITEMS + 1, *[1] * (MAX_ITEMS + 1), 1, 0))),
    )
    yield "attach-attrs", "an unknown attribute", with_steps(tmpfs, step(0x0C, u32(1) + place(2, b"") + u32(32)))
    yield "extract-empty", "Extract without a program", with_steps(tmpfs, step(0x0A, u32(1, 0, 0)), sources=one)
    yield (
        "extract-relative",
        "Extract with a relative program",
        with_steps(tmpfs, step(0x0A, u32(1, 0, 1) + text(b"x")), sources=one),
    )
    yield (
        "extract-count",
        "Extract with more words than there are bytes",
        with_steps(tmpfs, step(0x0A, u32(1, 0, 4096) + text(b"/x")), sources=one),
    )
    yield (
        "extract-nul",
        "a NUL in a word of Extract",
        with_steps(tmpfs, step(0x0A, u32(1, 0, 1) + text(b"/x\0")), sources=one),
    )
    yield "fuse-relative", "Fuse with a relative program", with_steps(step(0x09, u32(1, 0) + text(b"x")), sources=one)
    yield "env-empty", "PlaceEnv without a name", with_steps(step(0x0E, text(b"") + place(2, b"")))
    yield "env-equals", "PlaceEnv of a name with =", with_steps(step(0x0E, text(b"A=B") + place(2, b"")))
    yield "unset-empty", "UnsetEnv without a name", with_steps(step(0x0F, text(b"")))
    yield "unset-equals", "UnsetEnv of a name with =", with_steps(step(0x0F, text(b"=")))
    yield "limit-resource-0", "resource 0", with_steps(step(0x30, b"\0" + bytes(16)), version=2)
    yield "limit-resource-9", "an unknown resource", with_steps(step(0x30, b"\x09" + bytes(16)), version=2)
    yield (
        "limit-soft",
        "a soft limit above the hard one",
        with_steps(step(0x30, b"\1" + struct.pack("<QQ", 2, 1)), version=2),
    )
    yield "cgroup-source", "a cgroup in a source beyond the list", with_steps(step(0x33, bytes(36)), version=2)
    cgroup = step(0x33, bytes(36))
    yield "cgroup-twice", "two cgroups", with_steps(cgroup, cgroup, sources=(DIRECTORY,), version=2)
    yield "allow-nothing", "Allow of nothing", with_steps(step(0x34, place(1, b"/") + bytes(9)), version=2)
    rule = place(1, b"/") + b"\1" + bytes(7)
    yield "allow-optional", "optional is 2", with_steps(step(0x34, rule + b"\2"), version=2)
    fence = step(0x35, bytes(16))
    yield "landlock-twice", "two fences", with_steps(fence, fence, version=2)
    network = _network(0x0A00026418)
    yield "network-file", "a network that is a file", with_steps(network, sources=one, version=2)
    yield "network-source", "a network beyond the list", with_steps(network, version=2)
    for name, what, words in (
        ("prefix", "an address with a prefix of 33 bits", (0x0A00026421,)),
        ("address", "an address of 33 bits", (0x10A00026418,)),
        ("closed", "closed to what is no network", (0x0A00026418, 0xA9FE000010, 0xA9FE0000FF)),
    ):
        yield f"network-{name}", what, with_steps(_network(*words), sources=(MEMORY,), version=2)
    yield "network-twice", "two networks", with_steps(network, network, sources=(MEMORY,), version=2)
    yield "protect-attrs", "an unknown attribute", with_steps(step(0x54, place(1, b"/x") + u32(32)), version=2)
    yield "count-unmade", "changes in a slot that was not made", with_steps(step(0x53, u32(1)), version=2)
    yield "part-unmade", "a part of a slot that was not made", with_steps(step(0x70, u32(1, 9, 0)), version=2)
    whole = step(0x07, u32(0, 0) + b"\0")
    yield (
        "part-of-tree",
        "a part of a directory of the host's",
        with_steps(whole, step(0x70, u32(1, 0, 0)), sources=(DIRECTORY,), version=2),
    )
    yield "nice-40", "a nice value of 20", with_steps(step(0x31, b"\x28"), version=2)
    yield "timeout-twice", "two timeouts", with_steps(step(0x32, bytes(16)), step(0x32, bytes(16)), version=2)
    yield (
        "string-too-long",
        f"a string of {MAX_STRING + 1} bytes",
        with_steps(step(0x0F, text(b"x" * (MAX_STRING + 1)))),
    )
    yield (
        "run-path-too-long",
        f"Run of a path of {MAX_PATH + 1} bytes",
        with_steps(step(0x11, place(2, b"") + text(b"x" * (MAX_PATH + 1)))),
    )


def bad_places() -> Iterator[tuple[str, str, bytes]]:
    for name, what, base, path in (
        ("base-0", "base 0", 0, b""),
        ("base-3", "base 3", 3, b""),
        ("root-empty", "a root place without a path", 1, b""),
        ("root-relative", "a root place with a relative path", 1, b"x"),
        ("absolute", "a procdir place with an absolute path", 2, b"/x"),
        ("up", "a procdir place that goes up", 2, b"a/../../x"),
        ("dot", "a procdir place with a dot", 2, b"a/./b"),
        ("double", "a procdir place with an empty component", 2, b"a//b"),
        ("slash", "a procdir place that ends with a slash", 2, b"a/"),
        ("nul", "a place with a NUL", 1, b"/a\0b"),
    ):
        yield f"place-{name}", what, with_steps(step(0x10, place(base, path)))


def bad_isolation() -> Iterator[tuple[str, str, bytes]]:
    yield "init-2", "as_pid_1 is 2", with_steps(step(0x14, b"\2"), version=2)
    yield "lock-attrs", "an unknown attribute of the tree", with_steps(step(0x15, u32(32)), version=2)
    yield "hide-relative", "Hide of a relative path", with_steps(step(0x19, text(b"x")), version=2)
    yield "hostname-empty", "an empty host name", with_steps(step(0x1B, text(b"")), version=2)
    yield "hostname-long", "a host name of 65 bytes", with_steps(step(0x1B, text(b"x" * 65)), version=2)
    for name, what, value in (
        ("empty", "an empty name", b""),
        ("long", "a name of 64 bytes", b"x" * 64),
        ("number", "a name that is a number", b"12"),
        ("up", "a name that leads out", b".."),
        ("slash", "a name of two components", b"a/b"),
    ):
        yield f"name-{name}", what, with_steps(step(0x60, text(value)), version=2)
    yield "name-twice", "two names", with_steps(*[step(0x60, text(b"a"))] * 2, version=2)
    yield "idmap-slot", "Idmap of a slot that was not made", with_steps(step(0x1E, u32(1, 0, 0, 0, 0)), version=2)
    yield (
        "shift-slot",
        "Shift of a slot that was not made",
        with_steps(step(0x56, u32(1) + ids(0, 1, 1) * 2), version=2),
    )
    for name, what, numbers in (
        ("empty", "no range of ids", ()),
        ("part", "a range without a count", (0, 1000)),
        ("none", "a range of no ids", (0, 1000, 0)),
        ("over", "a range beyond the last id", (0, 2**32 - 2, 2)),
        ("wrap", "a range whose end is beyond 64 bits", (2**64 - 1, 0, 2**64 - 1)),
    ):
        for which, maps in (
            ("gids", ids(0, 1000, 1) + ids(*numbers)),
            ("uids", ids(*numbers) + ids(0, 1000, 1)),
        ):
            yield f"ranges-{name}-{which}", what, with_steps(step(0x55, maps + u32(0)), version=2)
    for name, programs in (("one", (b"/x",)), ("relative", (b"/x", b"x")), ("three", (b"/x",) * 3)):
        body = ids(0, 1000, 1) * 2 + u32(len(programs)) + b"".join(map(text, programs))
        yield f"ranges-programs-{name}", "programs that write no maps", with_steps(step(0x55, body), version=2)
    yield "fds-over", "more descriptors than a list may hold", with_steps(step(0x1F, u32(MAX_ITEMS + 1)), version=2)
    yield "fds-short", "fewer descriptors than promised", with_steps(step(0x1F, u32(2, 3)), version=2)
    tmpfs = step(0x05, u32(1) + bytes(20))
    root = step(0x28, u32(1, 0))
    yield "root-slot", "NewRoot of a slot that was not made", with_steps(root, version=2)
    yield "root-attrs", "an unknown attribute of the new root", with_steps(tmpfs, step(0x28, u32(1, 32)), version=2)
    yield "root-twice", "two new roots", with_steps(tmpfs, root, root, version=2)
    yield "pivot-2", "read_only is 2", with_steps(tmpfs, root, step(0x29, b"\2"), version=2)
    yield "pivot-twice", "two pivots", with_steps(tmpfs, root, *[step(0x29, b"\0")] * 2, version=2)
    yield "pivot-alone", "PivotRoot without a new root", with_steps(step(0x29, b"\0"), version=2)
    late = with_steps(tmpfs, root, step(0x29, b"\0"), step(0x0D, place(1, b"/x") + u32(0)), version=2)
    yield "pivot-late", "a directory after PivotRoot", late
    yield "symlink-empty", "a link to nothing", with_steps(step(0x27, place(1, b"/x") + text(b"")), version=2)
    yield "bind-procdir", "a bind of the procdir", with_steps(step(0x24, u32(1) + place(2, b"x")), version=2)
    yield (
        "bind-twice",
        "a slot that Bind makes anew",
        with_steps(tmpfs, step(0x24, u32(1) + place(1, b"/x")), version=2),
    )
    yield "node-up", "a node outside /dev", with_steps(tmpfs, step(0x2A, u32(1) + text(b"../x")), version=2)
    yield "node-slot", "a node of a slot that was not made", with_steps(step(0x2A, u32(1) + text(b"x")), version=2)
    yield "filter-empty", "an empty filter", with_steps(step(0x20, u32(0)), version=2)
    yield "filter-short", "half an instruction", with_steps(step(0x20, u32(1, 6)), version=2)
