"""The steps of the isolating levels (docs/plan.md, section 3)."""

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from sandbox import fsops
from sandbox.engine import attendance, changes, init, ranges
from sandbox.engine import syscalls as sys
from sandbox.errors import StepError, printable
from sandbox.level_steps import (
    Audit,
    CountChanges,
    Dev,
    DropCapabilities,
    Expose,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    LockTree,
    Loopback,
    Proc,
    Procdir,
    Protect,
    Seccomp,
    Shift,
    Terminal,
    UserNamespace,
)
from sandbox.plan_types import Attr

if TYPE_CHECKING:
    from sandbox.engine.steps import Child

ATTRS = {
    Attr.READ_ONLY: sys.MOUNT_ATTR_RDONLY,
    Attr.NOSUID: sys.MOUNT_ATTR_NOSUID,
    Attr.NODEV: sys.MOUNT_ATTR_NODEV,
    Attr.NOEXEC: sys.MOUNT_ATTR_NOEXEC,
    Attr.NOSYMFOLLOW: sys.MOUNT_ATTR_NOSYMFOLLOW,
}
_SAFE = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC
# docs/plan.md, section 10.
_PROC_READ_ONLY = (b"bus", b"fs", b"irq", b"pressure", b"sys", b"sysrq-trigger")
_PROC_MASKED = (
    b"acpi",
    b"asound",
    b"interrupts",
    b"kcore",
    b"key-users",
    b"keys",
    b"kmsg",
    b"latency_stats",
    b"sched_debug",
    b"scsi",
    b"timer_list",
    b"timer_stats",
)
# Number, name: linux/Documentation/admin-guide/devices.txt.
_NODES = ((1, 3, b"null"), (1, 5, b"zero"), (1, 7, b"full"), (1, 8, b"random"), (1, 9, b"urandom"), (5, 0, b"tty"))
_DEV_LINKS = (
    (b"/proc/self/fd", b"fd"),
    (b"/proc/self/fd/0", b"stdin"),
    (b"/proc/self/fd/1", b"stdout"),
    (b"/proc/self/fd/2", b"stderr"),
    (b"pts/ptmx", b"ptmx"),
)


def attributes(attrs: int) -> int:
    """MOUNT_ATTR_* of a plan's attributes."""
    return sum(bit for flag, bit in ATTRS.items() if attrs & flag)


def lock_tree(_: "Child", step: LockTree) -> None:
    with fsops.closing(os.open(b"/", os.O_PATH | os.O_CLOEXEC)) as root:
        sys.mount_setattr(root, set_attrs=attributes(step.attrs))


def procdir(child: "Child", step: Procdir) -> None:
    fd = child.open_place(step.place)
    child.procdir_path = child.path_of(step.place)
    # The former one stays open: layers of overlays may still be in it.
    child.procdir = fd


def proc(child: "Child", _: Proc) -> None:
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(fsops.closing(sys.make_mount(b"proc", [], _SAFE)))
        target = stack.enter_context(fsops.closing(child.open_root(b"/proc", os.O_PATH | os.O_DIRECTORY)))
        sys.move_mount(root, target)
        for name in _PROC_READ_ONLY:
            with _open_below(root, name) as fd:
                if fd >= 0:
                    with fsops.closing(sys.clone_mount(fd, recursive=False)) as clone:
                        sys.mount_setattr(clone, set_attrs=sys.MOUNT_ATTR_RDONLY)
                        sys.move_mount(clone, fd)
        for name in _PROC_MASKED:
            with _open_below(root, name) as fd:
                if fd >= 0:
                    _cover(child, fd)


@contextlib.contextmanager
def _open_below(root: int, name: bytes) -> Any:
    """-1 for what this kernel does not have."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        yield -1
        return
    with fsops.closing(fd):
        yield fd


def _cover(child: "Child", fd: int) -> None:
    """Put something empty and read-only over what `fd` is."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        options: list[tuple[bytes, bytes | None]] = [(b"source", b"sandbox:" + child.record.id.encode())]
        options += [(b"size", b"4096"), (b"nr_inodes", b"2"), (b"mode", b"555")]
        mount = sys.make_mount(b"tmpfs", options, _SAFE | sys.MOUNT_ATTR_RDONLY)
    else:
        mount = _device(b"/dev/null", 1, 3)
        sys.mount_setattr(mount, set_attrs=sys.MOUNT_ATTR_RDONLY)
    with fsops.closing(mount):
        sys.move_mount(mount, fd)


def _device(path: bytes, major: int, minor: int) -> int:
    """A detached mount of one device node, which is what its number says."""
    with fsops.closing(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
        status = os.fstat(fd)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(major, minor):
            raise StepError(f"{printable(path)} is not the device {major}:{minor}", hint="mend the host's /dev")
        clone = sys.clone_mount(fd, recursive=False)
    sys.mount_setattr(
        clone,
        set_attrs=sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NOEXEC,
        clear_attrs=sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_RDONLY,
        propagation=sys.MS_PRIVATE,
    )
    return clone


def dev(child: "Child", _: Dev) -> None:
    clones = [_device(b"/dev/" + name, major, minor) for major, minor, name in _NODES]
    options: list[tuple[bytes, bytes | None]] = [(b"source", b"sandbox:" + child.record.id.encode())]
    options += [(b"size", b"65536"), (b"nr_inodes", b"64"), (b"mode", b"755")]
    with contextlib.ExitStack() as stack:
        for clone in clones:
            stack.enter_context(fsops.closing(clone))
        root = stack.enter_context(fsops.closing(sys.make_mount(b"tmpfs", options, _SAFE)))
        target = stack.enter_context(fsops.closing(child.open_root(b"/dev", os.O_PATH | os.O_DIRECTORY)))
        sys.move_mount(root, target)
        for clone, (_major, _minor, name) in zip(clones, _NODES, strict=True):
            with fsops.closing(fsops.new_file(root, name)) as point:
                sys.move_mount(clone, point)
        for to, name in _DEV_LINKS:
            fsops.new_symlink(root, name, to, 0)
        pts = stack.enter_context(
            fsops.closing(sys.make_mount(b"devpts", _pts_options(child), _SAFE & ~sys.MOUNT_ATTR_NODEV))
        )
        for name in (b"pts", b"shm"):
            with fsops.closing(fsops.make_new_dir(root, name, 0o755)) as point:
                if name == b"pts":
                    sys.move_mount(pts, point)
        sys.mount_setattr(root, set_attrs=sys.MOUNT_ATTR_RDONLY, recursive=False)
        child.dev = os.dup(root)


def _pts_options(child: "Child") -> list[tuple[bytes, bytes | None]]:
    """A group for terminals is a second id, which a map of one has not."""
    from sandbox.plan_types import Mode

    options: list[tuple[bytes, bytes | None]] = [(b"ptmxmode", b"666"), (b"mode", b"620")]
    return options if child.plan.mode is Mode.USERNS else [*options, (b"gid", b"5")]


def hide(child: "Child", step: Hide) -> None:
    try:
        fd = child.open_root(step.path, os.O_PATH)
    except OSError as error:
        # What is not there, or out of this user's reach, is out of the command's as well.
        if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR):
            return
        raise
    with fsops.closing(fd):
        child.before_covering(step.path)
        _cover(child, fd)


def loopback(_: "Child", __: Loopback) -> None:
    import fcntl
    import socket
    import struct

    request = struct.Struct("16sH22x")
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _name, flags = request.unpack(fcntl.ioctl(control, get_flags, request.pack(b"lo", 0)))
        fcntl.ioctl(control, set_flags, request.pack(b"lo", flags | up))


def hostname(_: "Child", step: Hostname) -> None:
    sys.set_hostname(step.name)


def identity(child: "Child", step: Identity) -> None:
    child.momentary.close()
    init.become(step.uid, step.gid)


def drop_capabilities(child: "Child", _: DropCapabilities) -> None:
    child.momentary.close()
    init.drop_capabilities()


def idmap(child: "Child", step: Idmap) -> None:
    _set_idmap(child, step.slot, _swap(step.uid, step.shown_uid), _swap(step.gid, step.shown_gid))


def shift(child: "Child", step: Shift) -> None:
    _set_idmap(child, step.slot, ranges.lines(step.uids), ranges.lines(step.gids))


def _set_idmap(child: "Child", slot: int, uids: bytes, gids: bytes) -> None:
    with fsops.closing(_mapping_namespace(uids, gids)) as userns:
        sys.mount_setattr(child.mounts[slot], set_attrs=sys.MOUNT_ATTR_IDMAP, userns=userns, recursive=False)


def enter_user_namespace(child: "Child", _: UserNamespace) -> None:
    sys.setns(next(child.user_namespaces), sys.CLONE_NEWUSER)


def _mapping_namespace(uids: bytes, gids: bytes) -> int:
    """A user namespace with these maps, for nothing but to be given to a mount."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    if (pid := os.fork()) == 0:
        try:
            os.close(writer)
            sys.unshare(sys.CLONE_NEWUSER)
            os.write(tell, b"x")
            os.read(reader, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        if not os.read(ready, 1):
            raise StepError(
                "cannot make a user namespace for an id-mapped mount",
                hint="allow them: sysctl user.max_user_namespaces=15000",
            )
        for name, text in (("uid_map", uids), ("gid_map", gids)):
            ranges.write_map(pid, name, text)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (reader, writer, ready):
            os.close(fd)
        os.waitpid(pid, 0)


def _swap(one: int, other: int) -> bytes:
    """All ids as they are, but these two exchanged, as lines of a map: user_namespaces(7)."""
    if one == other:
        return b"0 0 4294967295\n"
    low, high = sorted((one, other))
    ranges = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1), (high, low, 1)]
    ranges.append((high + 1, high + 1, 0xFFFFFFFF - high - 1))
    return b"".join(b"%d %d %d\n" % line for line in ranges if line[2])


def keep_descriptors(_: "Child", step: KeepDescriptors) -> None:
    """All of our own are close-on-exec: one that is not was inherited. A directory would lead all over the host."""
    for fd in (0, 1, 2):
        _no_directory(fd)
    start = 3
    for fd in sorted(step.fds):
        try:
            inherited = os.get_inheritable(fd)
        except OSError:
            inherited = False
        if not inherited:
            raise StepError(f"descriptor {fd} is not open", hint="open it for sandbox: --pass-fd 3 3<FILE")
        _no_directory(fd)
        if fd > start:
            sys.close_on_exec(start, fd - 1)
        start = max(start, fd + 1)
    sys.close_on_exec(start, 0xFFFFFFFF)


def _no_directory(fd: int) -> None:
    with contextlib.suppress(OSError):  # 0 to 2 may be closed, or held by us until exec
        if os.get_inheritable(fd) and stat.S_ISDIR(os.fstat(fd).st_mode):
            raise StepError(
                f"descriptor {fd} is a directory, which would lead out of the sandbox",
                hint="give the command a file there, or show it the directory: --bind DIR",
            )


def seccomp(child: "Child", step: Seccomp) -> None:
    child.filter = step.filter


def audit(child: "Child", _: Audit) -> None:
    child.audited = True


def expose(child: "Child", _: Expose) -> None:
    attendance.expose(child.attend)


def terminal(child: "Child", _: Terminal) -> None:
    attendance.take_terminal(child.attend)


def protect(child: "Child", step: Protect) -> None:
    from sandbox.engine.steps import check_identity

    attrs = sum(bit for flag, bit in ATTRS.items() if step.attrs & flag)
    with fsops.closing(child.open_root(step.place.path, os.O_PATH, resolve=sys.RESOLVE_NO_SYMLINKS)) as fd:
        check_identity(fd, step.place.dev, step.place.ino, step.place.path)
        with fsops.closing(sys.clone_mount(fd, recursive=True)) as clone:
            sys.mount_setattr(clone, set_attrs=attrs, propagation=sys.MS_PRIVATE)
            sys.move_mount(clone, fd)


DO: dict[type[Any], Any] = {
    Init: init.enter,
    LockTree: lock_tree,
    Procdir: procdir,
    Proc: proc,
    Dev: dev,
    Hide: hide,
    Loopback: loopback,
    Hostname: hostname,
    Identity: identity,
    DropCapabilities: drop_capabilities,
    Idmap: idmap,
    Shift: shift,
    UserNamespace: enter_user_namespace,
    KeepDescriptors: keep_descriptors,
    Seccomp: seccomp,
    Audit: audit,
    Expose: expose,
    Terminal: terminal,
    CountChanges: changes.hand_over,
    Protect: protect,
}
