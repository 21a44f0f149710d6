"""The native engine: the same plan, carried out by the Rust program of the package (docs/plan.md, section 9)."""

import os
import signal
from typing import NoReturn

from sandbox import dispositions, environment, versions
from sandbox.codec import encode
from sandbox.engine import Launch
from sandbox.errors import HostError, reason
from sandbox.plan import Plan
from sandbox.plan_types import Mode

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin", "sandbox-engine")


def available() -> bool:
    """Whether the native program was built into this package."""
    return os.access(PROGRAM, os.X_OK)


def run(plan: Plan, launch: Launch, version: int) -> NoReturn:
    """Become the engine, which launches, supervises, cleans up and ends like the command. Raises HostError."""
    plan_fd = memory("sandbox-plan", encode(plan, version))
    env_fd = memory("sandbox-env", environment_block(launch.env))
    reports = []
    if launch.report is not None:
        reports = [(memory("sandbox-report", data), fd) for data, fd in launch.report.handed_over()]
    program, argv, given = command_line(
        plan.mode, plan_fd, env_fd, launch.fds, reports, launch.attend, launch.trees, launch.log_format
    )
    privileged = plan.mode is Mode.SETUID
    if privileged and version >= versions.BESIDE and (parent := _parent_to_die_with()) is not None:
        argv[-1:] = [b"parent=%d" % parent, argv[-1]]
        given.append(parent)
    for fd in given:
        os.set_inheritable(fd, True)
    # Python ignores these two, and what is ignored stays so across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    dispositions.give_back()
    try:
        # The command's environment travels beside the plan; the setuid helper is to see nothing of the caller's.
        environ = {} if privileged else environment.own()
        os.execve(program, [*argv, *launch.command], environ)
    except OSError as error:
        dispositions.take()
        hint = "use --mode userns" if privileged else "--engine python"
        raise HostError(f"cannot start the native engine {program}: {reason(error)}", hint=hint) from None


def _parent_to_die_with() -> int | None:
    """A pidfd of it, where this process has PR_SET_PDEATHSIG: the kernel forgets that when a setuid program starts."""
    import prctl

    # 0: it is in another pid namespace.
    if not prctl.get_pdeathsig() or not (parent := os.getppid()):
        return None
    return os.pidfd_open(parent)


def command_line(
    mode: Mode,
    plan_fd: int,
    env_fd: int,
    sources: dict[int, int],
    reports: list[tuple[int, int]],
    attend: int = -1,
    trees: dict[int, int] = {},  # noqa: B006 (it is only read)
    log_format: str = "text",
) -> tuple[str, list[bytes], list[int]]:
    """The program for a mode, its arguments up to the command's, and the descriptors that it is to inherit."""
    program = PROGRAM
    if mode is Mode.SETUID:
        from sandbox.setuid import HELPER as program  # noqa: N811
    pairs = [b"%d=%d" % pair for pair in sources.items()]
    pairs += [b"tree=%d,%d" % pair for pair in trees.items()]
    pairs += [b"report=%d,%d" % pair for pair in reports]
    pairs += [b"attend=%d" % attend] if attend >= 0 else []
    pairs += [b"log=json"] if log_format == "json" else []
    words = [os.fsencode(program), b"run", b"%d" % plan_fd, b"%d" % env_fd, *pairs, b"--"]
    given = [plan_fd, env_fd, *sources.values(), *trees.values(), *(fd for pair in reports for fd in pair)]
    given += [attend] if attend >= 0 else []
    return program, words, given


def environment_block(env: dict[bytes, bytes]) -> bytes:
    """NUL-terminated `NAME=value` strings, as the engine reads them."""
    return b"".join(b"%s=%s\0" % item for item in env.items())


def memory(name: str, data: bytes) -> int:
    """A descriptor of a new file in memory with this content, at its start; closed by the caller, or on exec."""
    fd = os.memfd_create(name)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
