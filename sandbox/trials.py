"""Try what a launch needs, in a forked child with namespaces of its own. Whatever is mounted there dies with it.

A sysctl that reads well says nothing of the security module or the container's filter that forbids the call all the
same: only trying tells.
"""

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from sandbox.engine import syscalls

_SECONDS = 20
_MOUNT_POINTS = ("/tmp", "/mnt", "/run", "/proc")  # noqa: S108  (covered, in our own namespace)

# A step's name and why it failed: errno and text. Steps that were not reached are absent.
Trial = dict[str, tuple[int, str]]


def trial(attempt: Callable[[Trial], None]) -> Trial:
    """Run `attempt` in a forked child and hand back what it found. Whatever it mounts dies with the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(_SECONDS)
            found: Trial = {}
            with contextlib.suppress(OSError):
                attempt(found)
            os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    return {name: (number, text) for name, (number, text) in json.loads(data or b"{}").items()}


@contextlib.contextmanager
def _step(found: Trial, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found[name] = (error.errno or errno.EIO, error.strerror or str(error))
        raise
    found[name] = (0, "")


def as_we_are(found: Trial) -> None:
    """Mounting with the rights this process has."""
    with _step(found, "namespaces"):
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    _try_mounts(found, userxattr=False)


def in_user_namespace(found: Trial) -> None:
    """The same in a user namespace, mapped to our own ids."""
    uid, gid = os.geteuid(), os.getegid()
    with _step(found, "namespaces"):
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    with _step(found, "id maps"):
        # gid_map can be written without privilege only after setgroups is denied: user_namespaces(7).
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line)
    _try_mounts(found, userxattr=True)


def _try_mounts(found: Trial, *, userxattr: bool) -> None:
    """In a mount namespace of our own: a tmpfs, and on it the rest."""
    with _step(found, "tmpfs"):
        # The child's own copy of the mount table; without this its mounts would spread to the host's.
        syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)
        tmpfs = syscalls.make_mount(b"tmpfs", [], 0)
        point = os.open(next(filter(os.path.isdir, _MOUNT_POINTS)), os.O_PATH)
        syscalls.move_mount(tmpfs, point)
        os.fchdir(tmpfs)
    for name, attempt in (("xattr", _try_xattr), ("fuse", _try_fuse), ("proc", _try_proc)):
        with contextlib.suppress(OSError), _step(found, name):
            attempt()
    with contextlib.suppress(OSError), _step(found, "overlay"):
        _try_overlay(userxattr=userxattr)


def _try_xattr() -> None:
    Path("file").touch()
    os.setxattr("file", "user.sandbox", b"1")


def _try_overlay(*, userxattr: bool) -> None:
    layers = {b"lowerdir": b"lower", b"upperdir": b"upper", b"workdir": b"work"}
    for name in layers.values():
        os.mkdir(name)
    flag: list[tuple[bytes, bytes | None]] = [(b"userxattr", None)] if userxattr else []
    os.close(syscalls.make_mount(b"overlay", [*layers.items(), *flag], 0))


def _try_fuse() -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    ids = [(b"user_id", b"%d" % os.getuid()), (b"group_id", b"%d" % os.getgid())]
    options: list[tuple[bytes, bytes | None]] = [(b"fd", b"%d" % fd), (b"rootmode", b"40000"), *ids]
    os.close(syscalls.make_mount(b"fuse", options, 0))


def _try_proc() -> None:
    """A new /proc belongs to the pid namespace of its mounter, so a child of the new one has to mount it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                syscalls.make_mount(b"proc", [], 0)
                code = 0
            except OSError as error:
                code = error.errno or errno.EIO
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def failure(found: Trial, steps: tuple[str, ...]) -> tuple[str, int, str] | None:
    """The first of these steps that failed or was not reached: its name, errno and text."""
    for name in steps:
        number, text = found.get(name, (errno.ECANCELED, "was not reached"))
        if number:
            return name, number, text
    return None
