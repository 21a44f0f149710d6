"""Fences of Landlock rules, for `--allow-read`, `--allow-write` and `--mode landlock`. Pure but for `probe`.

What a fence does not stop is in docs/security.md. The rights and scopes are those of linux/landlock.h, by the ABI of
the kernel that brought them.
"""

import os
from typing import TYPE_CHECKING

from sandbox.errors import HostError, UsageError, printable
from sandbox.level_steps import Allow, Landlock
from sandbox.plan import NoNewPrivs, Step, UnsetEnv
from sandbox.plan_types import Base, Mode, Place
from sandbox.spec import OUR_VARIABLES, Spec

if TYPE_CHECKING:
    from sandbox.builder import Builder

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = _EXECUTE | _READ_FILE | _READ_DIR
# Write a file; remove a directory, a file; make anything.
_WRITE_1 = 0b1_1111_1111_0010
WRITE = _WRITE_1 | _REFER | _TRUNCATE | _IOCTL_DEV
_DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_SINCE = ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV))
# Abstract sockets and signals, since ABI 6.
_SCOPES = 0b11
# What an older ABI lets pass, for a person.
_GAPS = ((3, "truncate(2)"), (5, "ioctls of devices"), (6, "abstract sockets and signals"))
# What a program needs to start at all.
_SYSTEM = (b"/usr", b"/bin", b"/sbin", b"/lib", b"/lib32", b"/lib64", b"/etc/ld.so.cache")
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")


def probe() -> int:
    """The ABI of this kernel's Landlock. Raises HostError where it has none."""
    from sandbox.engine.syscalls import landlock_abi

    if abi := landlock_abi():
        return abi
    raise HostError(
        "--allow-read, --allow-write, --mode landlock: this kernel has no Landlock",
        hint="boot with lsm=landlock,... (Linux 5.13 or later), or use --isolation job",
    )


def remarks(spec: Spec, abi: int) -> list[str]:
    """What a person must know of a fence, each on one line."""
    found = []
    if spec.mode == "landlock":
        found.append("mode landlock is a fence around files and nothing else (docs/security.md says what stays open)")
    if gaps := [what for since, what in _GAPS if abi < since]:
        found.append(f"the Landlock of this kernel (ABI {abi}) does not stop {', '.join(gaps)}")
    return found


def handled(abi: int, *, reads: bool) -> int:
    """All rights that a kernel knows, without those to read unless they are restricted."""
    known = _WRITE_1 | sum(right for since, right in _SINCE if abi >= since)
    return known | (READ if reads else 0)


def steps(spec: Spec, own: list[tuple[Place, int]], cwd: bytes, abi: int) -> list[Step]:
    """The fence of a spec: `own` are the run's own places and what is open of them."""
    reads = bool(spec.allow_read)
    rights = handled(abi, reads=reads)
    allowed: list[tuple[Place, int, bool]] = []
    if reads:
        allowed += [(Place(Base.ROOT, path), READ, True) for path in _SYSTEM]
    allowed += [(Place(Base.ROOT, b"/dev/" + name), _DEVICE, True) for name in _DEVICES]
    allowed += [(place, access, False) for place, access in own]
    for paths, access, option in ((spec.allow_read, READ, "read"), (spec.allow_write, READ | WRITE, "write")):
        for path in paths:
            if not cwd and not path.startswith(b"/"):
                raise UsageError(
                    f"--allow-{option}: {printable(path)}: the working directory was deleted",
                    hint="give an absolute path",
                )
            allowed.append((Place(Base.ROOT, os.path.join(cwd, path)), access, False))
    known = [Allow(place, access & rights, int(optional)) for place, access, optional in allowed if access & rights]
    return [NoNewPrivs(), *known, Landlock(rights, _SCOPES if abi >= 6 else 0)]


def compile_alone(builder: "Builder", cwd: bytes) -> None:
    """The plan of mode landlock: no namespace and no mount, so no private directory either."""
    builder.steps += [UnsetEnv(name) for name in OUR_VARIABLES]
    builder.command([], cwd, covered=[])
    builder.last()


def own_places(builder: "Builder") -> list[tuple[Place, int]]:
    """What was made for this run, and may be used as if there were no fence.

    A rule is for everything beneath, mounts too: a private place that the working directory lies in is not among them,
    nor the working directory where it is a copy.
    """
    from sandbox.level_steps import Proc
    from sandbox.plan import Attach, Part, Tmpfs
    from sandbox.plan_types import Attr

    if builder.mode is Mode.LANDLOCK:
        return []
    found = [(Place(Base.PROCDIR, b""), READ | WRITE)]
    scratch = {step.slot for step in builder.steps if isinstance(step, Tmpfs | Part)}
    shown = {place.path for place in builder.shown}
    for step in builder.steps:
        if isinstance(step, Attach) and step.place.base == Base.ROOT:
            if step.slot in scratch or step.place.path in shown:
                access = READ if step.attrs & Attr.READ_ONLY else READ | WRITE
                if not (builder.workspace + b"/").startswith(step.place.path.rstrip(b"/") + b"/"):
                    found.append((Place(Base.ROOT, step.place.path), access))
        elif isinstance(step, Proc):
            found += [(Place(Base.ROOT, b"/proc"), READ | _WRITE_FILE), (Place(Base.ROOT, b"/dev"), READ | _DEVICE)]
    return found
