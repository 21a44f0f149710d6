"""Overlays, and the momentary attaching of layers that the kernel refuses while they are detached (section 8)."""

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.plan import Overlay, Stack
from sandbox.plan_types import OverlayOption

if TYPE_CHECKING:
    from sandbox.engine.steps import Child

_SAFE = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
_PROC_FD = b"/proc/self/fd/%d"
_LONGEST_OPTION = 255  # fsconfig(2)


def overlay(child: "Child", step: Overlay) -> None:
    for slot in (*step.lowers, step.upper):
        _attach_for_now(child, slot)
    with contextlib.ExitStack() as stack:
        upper = child.mounts[step.upper]
        own = stack.enter_context(fsops.closing(fsops.make_new_dir(upper, b"%d" % step.slot)))
        top = os.fstat(child.mounts[step.lowers[-1]])
        data = stack.enter_context(fsops.closing(fsops.make_new_dir(own, b"upper")))
        os.fchown(data, *child.owner)
        os.fchmod(data, stat.S_IMODE(top.st_mode) & 0o777)
        work = stack.enter_context(fsops.closing(fsops.make_new_dir(own, b"work")))
        _mount(child, step, [(b"upperdir", _PROC_FD % data), (b"workdir", _PROC_FD % work)])


def stack(child: "Child", step: Stack) -> None:
    for slot in step.lowers:
        _attach_for_now(child, slot)
    _mount(child, step, [])


def _mount(child: "Child", step: Overlay | Stack, writable: list[tuple[bytes, bytes]]) -> None:
    lowers = [_PROC_FD % child.mounts[slot] for slot in reversed(step.lowers)]
    options: list[tuple[bytes, bytes | None]] = [(b"source", b"sandbox")]
    if len(joined := b":".join(lowers)) <= _LONGEST_OPTION:
        options.append((b"lowerdir", joined))
    else:
        options += [(b"lowerdir+", lower) for lower in lowers]  # Linux 6.7
    options += writable
    if step.options & OverlayOption.USERXATTR:
        options.append((b"userxattr", None))
    elif step.options & OverlayOption.REDIRECT_DIR:
        options.append((b"redirect_dir", b"on"))
    else:
        # The module's own default may be to follow what an image says.
        options += [(b"redirect_dir", b"nofollow"), (b"metacopy", b"off")]
    child.mounts[step.slot] = sys.make_mount(b"overlay", options, _SAFE)


def _attach_for_now(child: "Child", slot: int) -> None:
    """Kernels before 6.13, and all in a user namespace, refuse detached layers. Undone before the command starts:
    an overlay keeps clones of its own.
    """
    if slot in child.attached:
        return
    name = b".layer%d" % slot
    os.close(fsops.make_new_dir(child.procdir, name))
    child.momentary.callback(fsops.remove_dir, child.procdir, name)
    with fsops.closing(fsops.open_path(child.procdir, name)) as point:
        sys.move_mount(child.mounts[slot], point)
    child.momentary.callback(sys.unmount, child.mounts[slot])
    child.attached.add(slot)
