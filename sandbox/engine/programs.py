"""Programs that a plan names: what serves an image, what unpacks one (docs/plan.md)."""

import contextlib
import os
from typing import TYPE_CHECKING, Any

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.engine import trouble
from sandbox.errors import StepError, printable
from sandbox.plan import Extract, Fuse
from sandbox.plan_types import SourceKind

if TYPE_CHECKING:
    from sandbox.engine.steps import Child

_ATTRIBUTES = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_RDONLY
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def fuse(child: "Child", step: Fuse) -> None:
    # The kernel wants /dev/fuse opened in the user namespace that mounts.
    with fsops.closing(os.open(b"/dev/fuse", os.O_RDWR | os.O_CLOEXEC)) as fd:
        options: list[tuple[bytes, bytes | None]] = [
            (b"source", b"sandbox"),
            (b"fd", b"%d" % fd),
            (b"rootmode", b"40000"),
            (b"user_id", b"%d" % child.plan.uid),
            (b"group_id", b"%d" % child.plan.gid),
            (b"default_permissions", None),
        ]
        child.mounts[step.slot] = sys.make_mount(b"fuse", options, _ATTRIBUTES)
        argv = [step.program, b"-f", b"-o", b"ro", b"/dev/fd/4", b"/dev/fd/3"]
        # Reparented to the supervisor, which reaps it; it ends when its mount does.
        if (middle := os.fork()) == 0:
            with _exit_always():
                _spawn(argv, {3: fd, 4: child.fds[step.source], 1: os.open(os.devnull, os.O_WRONLY)})
        os.waitpid(middle, 0)


def extract(child: "Child", step: Extract) -> None:
    with contextlib.ExitStack() as stack:
        if child.plan.sources[step.source].kind == SourceKind.DIRECTORY:
            source = stack.enter_context(child.directory(step.source))
        else:
            source = child.fds[step.source]
            os.lseek(source, 0, os.SEEK_SET)
        output = os.memfd_create("sandbox-message", os.MFD_CLOEXEC)
        stack.enter_context(fsops.closing(output))
        root = stack.enter_context(
            fsops.closing(os.open(b".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=child.mounts[step.slot]))
        )
        status = os.waitpid(_spawn(list(step.argv), {0: source, 1: output, 3: root}), 0)[1]
        if status:
            raise _failed(trouble.label(child, step), os.pread(output, 4096, 0).strip(), status)


def _failed(label: str, said: bytes, status: int) -> StepError:
    """What the program says of itself is the whole line."""
    if os.WIFSIGNALED(status):
        return StepError(f"cannot unpack {label}: its program was killed by signal {os.WTERMSIG(status)}")
    return StepError(printable(said) or f"cannot unpack {label}: its program failed without a word")


@contextlib.contextmanager
def _exit_always() -> Any:
    try:
        yield
    finally:
        os._exit(0)


def _spawn(argv: list[bytes], fds: dict[int, int]) -> int:
    """Start a program of the plan with these descriptors and a clean environment; its own signals at default."""
    # Out of the way first: a target number must not overwrite a descriptor that is still to be moved.
    moved = {target: _above(fd) for target, fd in fds.items()}
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in moved.items()]
    try:
        return os.posix_spawn(argv[0], argv, _ENVIRONMENT, file_actions=actions)
    finally:
        for fd in moved.values():
            os.close(fd)


def _above(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
