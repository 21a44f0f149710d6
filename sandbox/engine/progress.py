"""What is told while a launch goes on: each step that is done, and that the command has been executed."""

import contextlib
import os
import select

from sandbox.engine import init
from sandbox.level_steps import Init
from sandbox.plan import Plan
from sandbox.report import Reporter


class Progress:
    """The supervisor's end of a pipe that gets a byte for each mark, and ends when the command is executed.

    `failure` is where the child says why it could not become the command.
    """

    def __init__(self, reporter: Reporter, ticks: int, failure: int, plan: Plan) -> None:
        self.reporter, self.failure = reporter, failure
        self.ticks = init.Reports(ticks).reader
        self.has_init = any(isinstance(step, Init) and not step.as_pid_1 for step in plan.steps)
        self.done = 0
        self.is_over = False

    def look(self, command: int) -> None:
        """Tell what is new; `command` is who stands for the command."""
        with contextlib.suppress(BlockingIOError):
            while not self.is_over and (ticks := os.read(self.ticks, 256)):
                for _ in ticks:
                    # The first mark comes before the first step.
                    self.reporter.step_done(self.done - 1)
                    self.done += 1
            if not self.is_over and not _has_data(self.failure):
                self.reporter.event("started", pid=_first_child(command) if self.has_init else command)
            self.is_over = True


def _has_data(reader: int) -> bool:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return any(events & select.POLLIN for _fd, events in poll.poll(0))


def _first_child(pid: int) -> int | None:
    """The oldest child, if it is still there: proc_pid_task(5)."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        return int(file.read().split()[0])
    return None
