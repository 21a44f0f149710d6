"""What a run may use: the limits as they are asked for, and the steps of a plan that set them."""

import math
import re
from typing import Any

from sandbox.errors import UsageError
from sandbox.plan import Limit, Nice, Resource, Step, Timeout
from sandbox.record import Record
from sandbox.spec import parse_size

DEFAULT_KILL_AFTER = 10.0
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_LONGEST = 10 * 365 * 86400.0
_MOST = 1 << 31


class Limits(Record):
    """Times are seconds, sizes bytes; None: as inherited."""

    timeout: float | None = None
    kill_after: float = DEFAULT_KILL_AFTER
    cpu_time: float | None = None
    nofile: int | None = None
    fsize: int | None = None
    nice: int | None = None


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of 1h30m, 20m, 90s, 1.5 and their like. Raises UsageError."""
    text = text.strip()
    match = _DURATION.fullmatch(text)
    if match and any(match.groups()):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        duration = hours * 3600 + minutes * 60 + seconds
    else:
        duration = float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else 0.0
    if not 0 < duration <= _LONGEST:
        raise UsageError(f"{option}: {text!r} is not a duration", hint="seconds, or as in 90s, 20m, 1h30m; more than 0")
    return duration


def parse_count(text: str, *, option: str) -> int:
    """A number from 1. Raises UsageError."""
    if not re.fullmatch(r"\d{1,10}", text.strip()) or not 0 < (count := int(text)) <= _MOST:
        raise UsageError(f"{option}: {text!r} is not a number from 1 to {_MOST}")
    return count


def parse_nice(text: str) -> int:
    """-20 (first) to 19 (last). Raises UsageError."""
    if not re.fullmatch(r"[+-]?\d{1,2}", text.strip()) or not -20 <= (value := int(text)) <= 19:
        raise UsageError(f"--nice: {text!r} is not a nice value", hint="-20 (first) to 19 (last)")
    return value


def parse(texts: dict[str, str]) -> Limits:
    """The limits of option values by field name. Raises UsageError."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        option = "--" + name.replace("_", "-")
        if name in ("timeout", "kill_after", "cpu_time"):
            values[name] = parse_duration(text, option=option)
        elif name == "fsize":
            values[name] = parse_size(text, option=option)
        else:
            values[name] = parse_nice(text) if name == "nice" else parse_count(text, option=option)
    if "kill_after" in values and not values.keys() & {"timeout", "cpu_time"}:
        raise UsageError("--kill-after: nothing ends the job that it could come after", hint="give --timeout as well")
    return Limits(**values)


def steps(limits: Limits) -> list[Step]:
    """The steps that set them."""
    made: list[Step] = []
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


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
