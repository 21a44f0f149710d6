"""What the command may use, set right before it starts: limits and nice value."""

import errno
import os
import resource

from sandbox.errors import StepError, reason
from sandbox.level_steps import Limit, Nice
from sandbox.plan_types import Resource

_RESOURCES = {
    Resource.CPU_SECONDS: (resource.RLIMIT_CPU, "the processor time"),
    Resource.FILE_BYTES: (resource.RLIMIT_FSIZE, "the size of files"),
    Resource.DATA_BYTES: (resource.RLIMIT_DATA, "the data of a process"),
    Resource.PROCESSES: (resource.RLIMIT_NPROC, "the number of processes"),
    Resource.OPEN_FILES: (resource.RLIMIT_NOFILE, "the number of open files"),
    Resource.CORE_BYTES: (resource.RLIMIT_CORE, "cores"),
}


def apply(step: Limit | Nice) -> None:
    """Raises StepError."""
    try:
        if isinstance(step, Nice):
            doing = f"set the nice value {step.value - 20}"
            os.setpriority(os.PRIO_PROCESS, 0, step.value - 20)
        else:
            number, name = _RESOURCES[Resource(step.resource)]
            doing = f"limit {name} to {step.soft}"
            if number == resource.RLIMIT_CORE and resource.getrlimit(number)[1] == 0:
                return  # nobody but root makes 1 of it
            resource.setrlimit(number, (step.soft, step.hard))
    except (OSError, ValueError) as error:
        # The resource module makes a ValueError of EPERM.
        why = reason(error) if isinstance(error, OSError) else os.strerror(errno.EPERM)
        hint = "only root goes beyond the hard limits (ulimit -H -a), or below the nice value it was started with"
        raise StepError(f"cannot {doing}: {why}", hint=hint) from None
