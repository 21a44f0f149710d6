"""Typed bindings to the kernel calls that Python's os module lacks. Nothing else in the package uses ctypes.

Every function raises OSError with the errno and, where there is one, the path. Descriptors returned are
close-on-exec and belong to the caller. Numbers are those of the generic syscall table (Linux 5.1 and later),
the same on every architecture since.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_NO_LINKS = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RENAME_NOREPLACE = 1
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
MOUNT_ATTR_IDMAP = 0x00100000

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_SYS_MOVE_MOUNT = 429
_SYS_OPEN_TREE = 428
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_CLOSE_RANGE_CLOEXEC = 4
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
# The two that are older than the common numbers.
_SYS_CLONE = 56 if os.uname().machine == "x86_64" else 220
_SYS_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41
_SYS_KEYCTL = 250 if os.uname().machine == "x86_64" else 219
_SYS_SECCOMP = 317 if os.uname().machine == "x86_64" else 277
_SECCOMP_SET_MODE_FILTER = 1
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSCTTY = 0x40045431, 0x5441, 0x540E
_TIMER_ABSTIME = 1

_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
# struct loop_info64 of linux/loop.h: device, inode, rdevice, offset, sizelimit; number, encrypt type, key size,
# flags; file name, crypt name, key; init.
_LOOP_INFO64 = struct.Struct("<5Q4I64s64s32s2Q")
# struct loop_config: fd, block size, loop_info64, 64 reserved bytes.
_LOOP_CONFIG = struct.Struct(f"<2I{_LOOP_INFO64.size}s64x")

# struct clone_args of linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
# set_tid_size, cgroup.
_CLONE_ARGS = struct.Struct("=11Q")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _checked(result: int, path: bytes | str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def openat2(dir_fd: int, path: bytes, flags: int, *, resolve: int = 0, mode: int = 0) -> int:
    """openat2(2): open with restrictions on how the path may resolve. Linux 5.6."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(100):
        try:
            return _checked(_syscall(_long(_SYS_OPENAT2), _long(dir_fd), path, how, _long(len(how))), path)
        except OSError as error:
            # RESOLVE_BENEATH and RESOLVE_IN_ROOT answer EAGAIN when a rename ran beside them: openat2(2), "try again".
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, "the path keeps changing", path)


def open_tree(dir_fd: int, path: bytes, flags: int) -> int:
    """open_tree(2): with OPEN_TREE_CLONE a detached copy of the mount. Linux 5.2."""
    return _checked(_syscall(_long(_SYS_OPEN_TREE), _long(dir_fd), path, _long(flags | _OPEN_TREE_CLOEXEC)), path)


def clone_mount(fd: int, *, recursive: bool) -> int:
    """A detached clone of the mount tree that the directory `fd` is in, rooted at that directory."""
    return open_tree(fd, b"", AT_EMPTY_PATH | OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0))


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2), both sides by descriptor only. Linux 5.2."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked(_syscall(_long(_SYS_MOVE_MOUNT), _long(from_fd), b"", _long(to_fd), b"", _long(flags)))


def mount_setattr(
    fd: int, *, set_attrs: int = 0, clear_attrs: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = True
) -> None:
    """mount_setattr(2) on the mount of `fd`; `userns` is the descriptor for MOUNT_ATTR_IDMAP. Linux 5.12."""
    attr = struct.pack("<QQQQ", set_attrs, clear_attrs, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked(_syscall(_long(_SYS_MOUNT_SETATTR), _long(fd), b"", _long(flags), attr, _long(len(attr))))


def make_mount(fstype: bytes, options: list[tuple[bytes, bytes | None]], attrs: int) -> int:
    """A new detached mount: fsopen, fsconfig, fsmount (Linux 5.2). An option without a value is a flag.

    Raises OSError with the kernel's own explanation in `strerror` where it gives one.
    """
    context = _checked(_syscall(_long(_SYS_FSOPEN), fstype, _long(_FSOPEN_CLOEXEC)), fstype)
    try:
        for key, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            _fsconfig(context, command, key, value)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        return _checked(_syscall(_long(_SYS_FSMOUNT), _long(context), _long(_FSMOUNT_CLOEXEC), _long(attrs)), fstype)
    except OSError as error:
        raise OSError(error.errno, _explain(context) or error.strerror, fstype) from None
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    _checked(_syscall(_long(_SYS_FSCONFIG), _long(context), _long(command), key, value, _long(0)))


def _explain(context: int) -> str:
    """The kernel's error lines on a file system context ("e overlay: ..."), see fsopen(2)."""
    lines: list[str] = []
    while True:
        try:
            line = os.read(context, 1024)
        except OSError:
            return "; ".join(lines)
        if line.startswith(b"e "):
            lines.append(line[2:].decode("utf-8", "replace").strip())


def set_propagation(path: bytes, flags: int) -> None:
    """mount(2) used for nothing but the propagation of an existing mount tree."""
    _checked(_libc.mount(None, path, None, ctypes.c_ulong(flags), None), path)


def unmount(fd: int) -> None:
    """Detach the mount whose root is `fd` from the tree (umount2(2) with MNT_DETACH)."""
    path = b"/proc/self/fd/%d" % fd
    _checked(_libc.umount2(path, MNT_DETACH), path)


def leave_session_keyring() -> None:
    """keyctl(2), KEYCTL_JOIN_SESSION_KEYRING: one of its own, where the kernel has keyrings and this user room."""
    _syscall(_long(_SYS_KEYCTL), _long(1), None)


def pivot_root(new: int) -> None:
    """The mount of the directory `new` becomes the root and the working directory; the old root is detached
    (pivot_root(2): with both in one place the old root lies on the new one).
    """
    old = os.open(b"/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.fchdir(new)
        _checked(_syscall(_long(_SYS_PIVOT_ROOT), b".", b"."))
        os.fchdir(old)
        _checked(_libc.umount2(b".", MNT_DETACH))
        os.chdir(b"/")
    finally:
        os.close(old)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def set_filesystem_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2): whose the files are that this thread makes. Only a question tells of a failure."""
    for call, wanted in ((_libc.setfsgid, gid), (_libc.setfsuid, uid)):
        call(ctypes.c_uint32(wanted))
        if ctypes.c_uint32(call(ctypes.c_uint32(0xFFFFFFFF))).value != wanted:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def fork_init() -> int:
    """fork(2) into a new pid namespace, as a child of this process's parent."""
    return _fork(CLONE_NEWPID | _CLONE_PARENT)


def fork_sibling() -> int:
    """fork(2), as a child of this process's parent."""
    return _fork(_CLONE_PARENT)


def _fork(flags: int) -> int:
    """Not os.fork: nothing of Python's own is told, which is well with a single thread."""
    return _checked(_syscall(_long(_SYS_CLONE), _long(flags | signal.SIGCHLD), *[_long(0)] * 4))


def has_clone3() -> bool:
    """Whether there is a clone3(2). Older filters of container engines answer ENOSYS, with which a C library takes
    clone(2); without arguments the kernel says EINVAL.
    """
    _syscall(_long(_SYS_CLONE3), None, _long(0))
    return ctypes.get_errno() != errno.ENOSYS


def fork_into(cgroup: int) -> int:
    """os.fork, and the child is born in the cgroup (version 2) that this open directory is, which has to be one that
    this process may move itself to (clone3(2), CLONE_INTO_CGROUP, Linux 5.7).
    """
    arguments = _CLONE_ARGS.pack(_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    # A PyDLL keeps the interpreter's lock: the child must find itself holding it. The rest is what os.fork does.
    python = ctypes.PyDLL(None, use_errno=True)
    python.PyOS_BeforeFork()
    pid = int(python.syscall(_long(_SYS_CLONE3), arguments, _long(len(arguments))))
    failed = ctypes.get_errno()
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    if pid < 0:
        raise OSError(failed, os.strerror(failed))
    return pid


def setns(fd: int, flags: int = 0) -> None:
    """setns(2) into whatever namespace `fd` is; into these of a process, all or none, if it is a pidfd (5.8)."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)))


def install_seccomp(instructions: tuple[int, ...], *, listen: bool = False) -> int:
    """A filter of classic BPF instructions for this process (seccomp(2)).

    With `listen` the descriptor that SECCOMP_RET_USER_NOTIF asks (seccomp_unotify(2), Linux 5.0), else 0.
    """
    program = ctypes.create_string_buffer(struct.pack(f"<{len(instructions)}Q", *instructions))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(program)))
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    return _checked(_syscall(_long(_SYS_SECCOMP), _long(_SECCOMP_SET_MODE_FILTER), _long(flags), header))


def open_terminal(main: int) -> int:
    """The other end of a pseudo-terminal, unlocked; found by descriptor, not by a path (ioctl_tty(2), TIOCGPTPEER)."""
    fcntl.ioctl(main, _TIOCSPTLCK, struct.pack("i", 0))
    return fcntl.ioctl(main, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def take_terminal(fd: int) -> None:
    """It becomes the controlling terminal of this session, which has none."""
    fcntl.ioctl(fd, _TIOCSCTTY, 0)


def landlock_abi() -> int:
    """The version of Landlock that this kernel has, 0 for none (landlock_create_ruleset(2))."""
    result: int = _syscall(_long(_SYS_LANDLOCK_CREATE_RULESET), None, _long(0), _long(_LANDLOCK_CREATE_RULESET_VERSION))
    return max(result, 0)


def landlock_ruleset(handled: int, scoped: int) -> int:
    """A ruleset that refuses these rights everywhere, and has these scopes (linux/landlock.h)."""
    attributes = struct.pack("<QQQ", handled, 0, scoped)
    return _checked(_syscall(_long(_SYS_LANDLOCK_CREATE_RULESET), attributes, _long(len(attributes)), _long(0)))


def landlock_allow(ruleset: int, fd: int, access: int) -> None:
    """Leave rights that the ruleset handles open for what `fd` is, and beneath it."""
    rule = struct.pack("<Qi", access, fd)
    kind = _long(_LANDLOCK_RULE_PATH_BENEATH)
    _checked(_syscall(_long(_SYS_LANDLOCK_ADD_RULE), _long(ruleset), kind, rule, _long(0)))


def landlock_restrict(ruleset: int) -> None:
    """This process and its children are behind the ruleset, for good. Needs no_new_privs."""
    _checked(_syscall(_long(_SYS_LANDLOCK_RESTRICT_SELF), _long(ruleset), _long(0)))


def close_on_exec(first: int, last: int) -> None:
    """Make every open descriptor of this range close-on-exec (close_range(2), Linux 5.11)."""
    _checked(_syscall(_long(_SYS_CLOSE_RANGE), _long(first), _long(last), _long(_CLOSE_RANGE_CLOEXEC)))


def set_hostname(name: bytes) -> None:
    """sethostname(2)."""
    _checked(_libc.sethostname(name, ctypes.c_size_t(len(name))))


@contextlib.contextmanager
def continued_at(deadline: float) -> Iterator[None]:
    """A SIGCONT for this process at a time of CLOCK_MONOTONIC, in seconds: it ends a stop (timer_create(2))."""
    # struct sigevent: value, signal, SIGEV_SIGNAL (0), and unused space up to 64 bytes.
    event = struct.pack("<qii48x", 0, signal.SIGCONT, 0)
    timer = ctypes.c_void_p()
    _checked(_libc.timer_create(ctypes.c_int(time.CLOCK_MONOTONIC), event, ctypes.byref(timer)))
    try:
        seconds, fraction = divmod(deadline, 1)
        absolute = struct.pack("<4q", 0, 0, int(seconds), int(fraction * 1e9))
        _checked(_libc.timer_settime(timer, ctypes.c_int(_TIMER_ABSTIME), absolute, None))
        yield
    finally:
        _libc.timer_delete(timer)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2). Linux 3.15; EINVAL where the filesystem lacks a flag."""
    _checked(_libc.renameat2(old_dir, old, new_dir, new, ctypes.c_uint(flags)), new)


class LoopStatus:
    """What LOOP_GET_STATUS64 says of a device (loop(4))."""

    __slots__ = ("dev", "flags", "ino", "name", "offset", "size_limit")

    def __init__(self, raw: bytes) -> None:
        self.dev, self.ino, _, self.offset, self.size_limit, *_, self.flags, self.name, _, _, _, _ = (
            _LOOP_INFO64.unpack(raw)
        )

    def backs(self, dev: int, ino: int) -> bool:
        """Whether the device shows this whole file, read-only, goes away by itself, and is on no user's account."""
        wanted = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
        whole = self.offset == 0 and self.size_limit == 0
        is_somebodys = self.name.startswith(b"sandbox:") and not self.name.startswith(b"sandbox:00000000")
        return (self.dev, self.ino) == (dev, ino) and whole and self.flags & wanted == wanted and not is_somebodys


def loop_status(loop_fd: int) -> LoopStatus:
    """Raises OSError ENXIO when nothing is attached."""
    return LoopStatus(fcntl.ioctl(loop_fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size)))


def loop_get_free(control_fd: int) -> int:
    """The number of a loop device that was free a moment ago (LOOP_CTL_GET_FREE)."""
    return fcntl.ioctl(control_fd, _LOOP_CTL_GET_FREE)


def loop_configure(loop_fd: int, backing_fd: int) -> None:
    """Attach `backing_fd`, whole, read-only, autoclear (LOOP_CONFIGURE, Linux 5.8). EBUSY: somebody was faster."""
    flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
    info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    fcntl.ioctl(loop_fd, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(backing_fd, 0, info))


def loop_clear(loop_fd: int) -> None:
    """Detach it, or as long as somebody uses it, have it detached by its last user (LOOP_CLR_FD)."""
    fcntl.ioctl(loop_fd, _LOOP_CLR_FD)


def syncfs(fd: int) -> None:
    """syncfs(2): all of the filesystem that `fd` is on is on the disk."""
    _checked(_libc.syncfs(fd))


def statfs_type(fd: int) -> int:
    """`f_type` of the filesystem that `fd` is on (statfs(2))."""
    buffer: Any = ctypes.create_string_buffer(256)
    _checked(_libc.fstatfs(fd, buffer))
    return int(struct.unpack_from("<l", buffer)[0]) & 0xFFFFFFFF
