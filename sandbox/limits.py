"""What a run may use: the limits as they are asked for, and the steps of a plan that set them."""

import math
import re
from typing import Any

from sandbox.errors import UsageError
from sandbox.level_steps import Cgroup, Limit, Nice, Timeout
from sandbox.plan import Step
from sandbox.plan_types import Resource
from sandbox.record import Record
from sandbox.spec import parse_size

DEFAULT_KILL_AFTER = 10.0
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?")
_LONGEST = 10 * 365 * 86400.0
_MOST = 1 << 31
UNLIMITED = 2**64 - 1


class Limits(Record):
    """Times are seconds, sizes bytes; None: as inherited."""

    timeout: float | None = None
    kill_after: float = DEFAULT_KILL_AFTER
    cpu_time: float | None = None
    nofile: int | None = None
    fsize: int | None = None
    nice: int | None = None
    memory: int | None = None
    pids: int | None = None
    cpus: float | None = None
    best_effort: bool = False

    @property
    def controllers(self) -> set[str]:
        """Of cgroup v2, that these need."""
        asked = {"memory": self.memory, "pids": self.pids, "cpu": self.cpus}
        return {name for name, value in asked.items() if value is not None}


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of 1h30m, 20m, 90s, 1.5 and their like. Raises UsageError."""
    text = text.strip()
    match = _DURATION.fullmatch(text)
    if match and any(match.groups()):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        duration = hours * 3600 + minutes * 60 + seconds
    else:
        duration = float(text) if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) else 0.0
    if not 0 < duration <= _LONGEST:
        raise UsageError(f"{option}: {text!r} is not a duration", hint="seconds, or as in 90s, 20m, 1h30m; more than 0")
    return duration


def parse_count(text: str, *, option: str) -> int:
    """A number from 1. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()) or not 0 < (count := int(text)) <= _MOST:
        raise UsageError(f"{option}: {text!r} is not a number from 1 to {_MOST}")
    return count


def parse_nice(text: str) -> int:
    """-20 (first) to 19 (last). Raises UsageError."""
    if not re.fullmatch(r"[+-]?[0-9]{1,2}", text.strip()) or not -20 <= (value := int(text)) <= 19:
        raise UsageError(f"--nice: {text!r} is not a nice value", hint="-20 (first) to 19 (last)")
    return value


def parse(texts: dict[str, str]) -> Limits:
    """The limits of option values by field name. Raises UsageError."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        option = "--" + name.replace("_", "-")
        if name in ("timeout", "kill_after", "cpu_time"):
            values[name] = parse_duration(text, option=option)
        elif name == "limits":
            if text not in ("enforce", "best-effort"):
                raise UsageError(f"--limits: {text!r} is neither enforce nor best-effort")
            values["best_effort"] = text == "best-effort"
        elif name == "cpus":
            values[name] = _parse_cpus(text)
        elif name in ("fsize", "memory"):
            values[name] = parse_size(text, option=option)
        else:
            values[name] = parse_nice(text) if name == "nice" else parse_count(text, option=option)
    if "kill_after" in values and not values.keys() & {"timeout", "cpu_time"}:
        raise UsageError("--kill-after: nothing ends the job that it could come after", hint="give --timeout as well")
    return Limits(**values)


def _parse_cpus(text: str) -> float:
    cpus = float(text) if re.fullmatch(r"[0-9]{1,5}(?:\.[0-9]+)?", text.strip()) else 0.0
    # The kernel takes no less than a millisecond of a tenth of a second: cpu.max.
    if cpus < 0.01:
        raise UsageError(f"--cpus: {text!r} is not a number of processors", hint="as in 2 or 0.5; at least 0.01")
    return cpus


def steps(limits: Limits, cgroup: int | None) -> list[Step]:
    """The steps that set them; `cgroup` is the source that the run's cgroup goes into, where there is one."""
    made: list[Step] = []
    if cgroup is not None:
        quota = UNLIMITED if limits.cpus is None else round(limits.cpus * 100_000)
        # Memory that may be swapped out is not limited.
        swap = UNLIMITED if limits.memory is None else 0
        made.append(Cgroup(cgroup, limits.memory or UNLIMITED, swap, limits.pids or UNLIMITED, quota))
    else:
        for resource, value in ((Resource.DATA_BYTES, limits.memory), (Resource.PROCESSES, limits.pids)):
            if value is not None:
                made.append(Limit(resource, value, value))
    if limits.timeout is not None:
        made.append(Timeout(_ns(limits.timeout), _ns(limits.kill_after)))
    if limits.cpu_time is not None:
        # SIGXCPU at the soft limit, SIGKILL at the hard one: setrlimit(2).
        soft = math.ceil(limits.cpu_time)
        made.append(Limit(Resource.CPU_SECONDS, soft, soft + math.ceil(limits.kill_after)))
    for resource, value in ((Resource.FILE_BYTES, limits.fsize), (Resource.OPEN_FILES, limits.nofile)):
        if value is not None:
            made.append(Limit(resource, value, value))
    if limits.nice is not None:
        made.append(Nice(limits.nice + 20))
    return made


def compromise(limits: Limits, why: str) -> str:
    """One line: what best effort makes of limits that only a cgroup enforces."""
    instead = {
        "memory": "--memory limits the data of each process, not of the job",
        "pids": "--pids counts all processes of this user, and does not bind root",
        "cpu": "--cpus limits nothing",
    }
    return f"{why}: " + "; ".join(instead[name] for name in ("memory", "pids", "cpu") if name in limits.controllers)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
