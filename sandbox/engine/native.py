"""The native engine: the same plan, carried out by the Rust program of the package (docs/plan.md, section 9)."""

import os
import signal
from typing import NoReturn

from sandbox.codec import encode
from sandbox.engine import Launch
from sandbox.errors import HostError, reason
from sandbox.plan import Mode, Plan

_PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin", "sandbox-engine")


def available() -> bool:
    """Whether the native program was built into this package."""
    return os.access(_PROGRAM, os.X_OK)


def run(plan: Plan, launch: Launch, version: int) -> NoReturn:
    """Become the engine, which launches, supervises, cleans up and ends like the command. Raises HostError."""
    plan_fd = _memory("sandbox-plan", encode(plan, version))
    env_fd = _memory("sandbox-env", b"".join(b"%s=%s\0" % item for item in launch.env.items()))
    privileged = plan.mode is Mode.SETUID
    program = _installed_helper() if privileged else _PROGRAM
    argv = [program, "run", str(plan_fd), str(env_fd)]
    for index, fd in launch.fds.items():
        os.set_inheritable(fd, True)
        argv.append(f"{index}={fd}")
    if launch.report is not None:
        for data, fd in launch.report.handed_over():
            os.set_inheritable(fd, True)
            argv.append(f"report={_memory('sandbox-report', data)},{fd}")
    # Python ignores these two, and what is ignored stays so across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        # The command's environment travels beside the plan; the setuid helper is to see nothing of the caller's.
        environ = {} if privileged else os.environb
        os.execve(program, [*map(os.fsencode, argv), b"--", *launch.command], environ)
    except OSError as error:
        hint = "use --mode userns" if privileged else "--engine python"
        raise HostError(f"cannot start the native engine {program}: {reason(error)}", hint=hint) from None


def _installed_helper() -> str:
    from sandbox.setuid import HELPER

    return HELPER


def _memory(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, 0)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
