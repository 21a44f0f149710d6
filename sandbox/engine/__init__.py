"""Engines: how a plan is carried out. What goes in beside the plan, and what comes out."""

from sandbox.record import Record


class Launch(Record):
    """What a plan needs beside itself: the command, its environment, and open sources by number."""

    command: tuple[bytes, ...]
    env: dict[bytes, bytes]
    fds: dict[int, int]


class Result(Record):
    """How the command ended: `exit_code`, or the `signal` that killed it (0: none); `timed_out`: it was made to."""

    exit_code: int
    signal: int = 0
    timed_out: bool = False
