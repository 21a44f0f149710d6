"""No set-id programs on the host's disk: what stands before the filter of a job that can write there.

Files of a workspace are shown to a job of root's as its own: what it makes there is root's on the disk, and a set-id
bit or file capabilities on it would make root of everybody on the host. `nosuid` is about mounts of the run and says
nothing of the host's. A mount has no flag for this, so it is a matter of system calls: inode(7), capabilities(7).
"""

import contextlib
import errno
import os
import stat
from typing import Any

from sandbox.errors import HostError
from sandbox.seccomp import bindings, instructions, joined, kept
from sandbox.spec import Spec

_BITS = stat.S_ISUID | stat.S_ISGID
# O_CREAT, and the part of O_TMPFILE that is not O_DIRECTORY: open(2) looks at a mode with one of them only.
_MAKING = os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY
# By the argument that holds the mode.
_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
_OPENING = {"open": (1, 2), "openat": (2, 3)}
# Their modes are in memory, out of a filter's sight: whoever gets ENOSYS takes the old way.
_UNSEEN = ("openat2", "io_uring_setup")
_ATTRIBUTES = ("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
# Alike on every architecture; a libseccomp may be older than they are.
_NUMBERS = {"io_uring_setup": 425, "openat2": 437, "fchmodat2": 452, "setxattrat": 463}


def applies(spec: Spec) -> bool:
    """Whether an isolated command can write to the host's disk."""
    binds = ("bind", "bind-try")
    return spec.workspace == "rw" or any(change.option in binds for change in spec.refinements)


def before(spec: Spec, home: int, words: tuple[int, ...]) -> tuple[int, ...]:
    """A filter, or none, with this one before it. `--allow-syscall` opens a call here as well. Raises HostError.

    Attributes are refused where the command may have a user namespace, and with it the right to give capabilities.
    """
    may_own = spec.as_root or spec.seccomp != b"default" or bool(spec.allow_syscalls)
    allowed = frozenset(map(os.fsdecode, spec.allow_syscalls))
    said = ["setid", str(may_own), *sorted(allowed)]
    own = kept(home, said, lambda: compile_filter(allowed, attributes=may_own))
    return joined(own, words) if words else own


def compile_filter(allowed: frozenset[str], *, attributes: bool) -> tuple[int, ...]:
    """What allows all but set-id bits, and extended attributes if they are told to be. Raises HostError."""
    try:
        library = bindings()
    except (ImportError, RuntimeError, OSError) as error:
        raise HostError(
            f"cannot keep a job from making set-id programs: no libseccomp: {error}",
            hint="install libseccomp2, or have nothing of the host writable (--workspace, --bind)",
        ) from None
    rules = library.SyscallFilter(library.ALLOW)
    # Other numbers, other arguments: libseccomp would kill.
    rules.set_attr(library.Attr.ACT_BADARCH, library.ERRNO(errno.ENOSYS))
    denied = library.ERRNO(errno.EPERM)
    for name, place in _MODES.items():
        for bits in _some(_BITS):
            _add(rules, allowed, denied, name, library.Arg(place, library.MASKED_EQ, _BITS, bits))
    for name, (flags, mode) in _OPENING.items():
        for making in _some(_MAKING):
            for bits in _some(_BITS):
                made = library.Arg(flags, library.MASKED_EQ, _MAKING, making)
                _add(rules, allowed, denied, name, made, library.Arg(mode, library.MASKED_EQ, _BITS, bits))
    for name in _UNSEEN:
        _add(rules, allowed, library.ERRNO(errno.ENOSYS), name)
    for name in _ATTRIBUTES if attributes else ():
        _add(rules, allowed, library.ERRNO(errno.EOPNOTSUPP), name)
    return instructions(rules)


def _some(mask: int) -> list[int]:
    """All that a mask of two bits can leave of a number, but for nothing."""
    low = mask & -mask
    return [low, mask ^ low, mask]


def _add(rules: Any, allowed: frozenset[str], action: Any, name: str, *arguments: Any) -> None:
    if name not in allowed:
        # open, chmod and others do not exist on every architecture.
        with contextlib.suppress(OSError, ValueError):
            rules.add_rule(action, _NUMBERS.get(name, name), *arguments)
