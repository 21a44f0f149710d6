"""What an engine has to tell about a run when it is over (docs/report.md)."""

import contextlib
import os
import resource
import signal
import struct
import time
from typing import TYPE_CHECKING, Any

from sandbox.engine import Result
from sandbox.level_steps import Limit
from sandbox.plan import Plan
from sandbox.plan_types import Resource

if TYPE_CHECKING:
    from sandbox import cgroups
    from sandbox.report import Phase

_MARK = struct.Struct("<Q")
# What a report says of a run that nobody attended.
UNATTENDED: dict[str, Any] = dict.fromkeys(("kept", "refused_calls"))


class Account:
    """Filled in while a plan is carried out. Without `wanted` only what costs nothing is."""

    def __init__(self, plan: Plan, *, wanted: bool) -> None:
        self.plan = plan
        self.phases: list[Phase] = []
        self.last_ns = time.monotonic_ns()
        self.result: Result | None = None
        # Whether the command was passed a signal that asks for its end.
        self.asked_to_end = False
        self.wall: float | None = None
        self.user = self.system = 0.0
        self.cgroup: cgroups.Cgroup | None = None
        self.peaks: dict[str, int | None] = dict.fromkeys(("memory", "processes", "oom_kills", "forks_refused"))
        self.largest = self.read = self.written = 0
        # Changed files of the workspace that are gone, and what the attendant had to say: JSON members.
        self.discarded: int | None = None
        self.attended = b""
        # Times that the child notes for its supervisor, in memory that both have open.
        self.marks = os.memfd_create("sandbox-marks", os.MFD_CLOEXEC) if wanted else -1
        # A pipe that gets a byte for each, where somebody waits for it. So many fit into every pipe.
        self.ticks = -1

    def close(self) -> None:
        if self.marks >= 0:
            os.close(self.marks)
        if self.cgroup is not None:
            self.cgroup.close()

    def read_peaks(self) -> None:
        """Before the cgroup goes."""
        if self.cgroup is not None:
            self.peaks = self.cgroup.peaks()

    def mark(self) -> None:
        """In the child: a step is done."""
        if self.marks >= 0:
            os.write(self.marks, _MARK.pack(time.monotonic_ns()))
        if self.ticks >= 0:
            os.write(self.ticks, b".")

    def count(self, usage: resource.struct_rusage) -> None:
        """What a process that was reaped had used, by itself and by those that it had reaped: wait4(2)."""
        self.user += usage.ru_utime
        self.system += usage.ru_stime
        self.largest = max(self.largest, usage.ru_maxrss << 10)
        # Blocks of 512 bytes, whatever the disk: getrusage(2).
        self.read += usage.ru_inblock << 9
        self.written += usage.ru_oublock << 9

    def phase(self, name: str, end_ns: int | None = None) -> None:
        """A phase ends now; the next one starts."""
        if self.marks >= 0:
            from sandbox.report import Phase

            end = time.monotonic_ns() if end_ns is None else end_ns
            self.phases.append(Phase(name, self.last_ns, end))
            self.last_ns = end

    def ended(self, result: Result) -> None:
        """The end of the command, and what its process marked: a phase per step, then the command."""
        self.result = result
        if self.marks < 0:
            return
        now = time.monotonic_ns()
        steps = [type(step).__name__ for step in self.plan.steps]
        times = [value for (value,) in _MARK.iter_unpack(os.pread(self.marks, 8 * (len(steps) + 2), 0))]
        for name, at in zip(("Fork", *steps, "Exec"), times, strict=False):
            self.phase(name, at)
        if len(times) == len(steps) + 2:
            self.wall = (now - self.last_ns) / 1e9
        self.phase("Command", now)

    def facts(self) -> dict[str, Any]:
        """The end of the report."""
        import json

        assert self.result is not None
        cause, limit = self._cause(self.result)
        of_group = self.peaks["memory"]
        ended_by = self.result.signal
        return {
            "cause": cause,
            "limit": limit,
            "error": None,
            "exit_code": None if ended_by else self.result.exit_code,
            "signal": ended_by or None,
            "wall_seconds": self.wall,
            "user_seconds": round(self.user, 6),
            "system_seconds": round(self.system, 6),
            "peak_memory_bytes": self.largest if of_group is None else of_group,
            "peak_memory_of": "largest process" if of_group is None else "cgroup",
            "processes": self.peaks["processes"],
            "oom_kills": self.peaks["oom_kills"],
            "forks_refused": self.peaks["forks_refused"],
            "read_bytes": self.read,
            "written_bytes": self.written,
            "discarded": self.discarded,
            **(json.loads(b"{%s}" % self.attended) if self.attended else UNATTENDED),
        }

    def _cause(self, result: Result) -> tuple[str, str | None]:
        # A shell tells of a death by signal N with the exit code 128 + N, as a Result does.
        died_of = result.exit_code - 128
        limits = {step.resource: step.hard for step in self.plan.steps if isinstance(step, Limit)}
        hard = limits.get(Resource.CPU_SECONDS)
        killed = died_of == signal.SIGKILL and hard is not None and self.user + self.system >= hard
        if result.timed_out:
            return "timeout", None
        if result.exit_code and self.peaks["oom_kills"]:
            return "oom", None
        if hard is not None and (killed or died_of == signal.SIGXCPU):
            return "limit", "cpu-time"
        if Resource.FILE_BYTES in limits and died_of == signal.SIGXFSZ:
            return "limit", "fsize"
        if result.exit_code and self.peaks["forks_refused"]:
            return "limit", "pids"
        return ("signalled" if result.signal else "exited"), None


def reap(account: Account, *, stopped: bool = False) -> tuple[int, int] | None:
    """A child that has ended, or stopped if that is wanted: its pid and status. (0, 0) when all go on, None without."""
    with contextlib.suppress(ChildProcessError):
        pid, status, usage = os.wait4(-1, os.WNOHANG | (os.WUNTRACED if stopped else 0))
        if pid and not os.WIFSTOPPED(status):
            account.count(usage)
        return pid, status
    return None
