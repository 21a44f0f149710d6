"""Engines: how a plan is carried out. What goes in beside the plan, and what comes out."""

from typing import TYPE_CHECKING

from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.report import Reporter


class Launch(Record):
    """What a plan needs beside itself: the command, its environment, open sources by number, sockets through which the
    trees of some slots are handed out, who wants a report, the socket of who attends the run (-1: nobody), and how a
    native engine says what it says itself (errors.LOG_FORMATS).
    """

    command: tuple[bytes, ...]
    env: dict[bytes, bytes]
    fds: dict[int, int]
    trees: dict[int, int] = {}  # noqa: RUF012
    report: "Reporter | None" = None
    attend: int = -1
    log_format: str = "text"


class Result(Record):
    """How the command ended: `exit_code`, or the `signal` that killed it (0: none); `timed_out`: it was made to."""

    exit_code: int
    signal: int = 0
    timed_out: bool = False
