"""What /proc says of the processes: one read of proc_pid_stat(5) each.

psutil reads several files of a process and takes ten times as long; a thousand sandboxes have three thousand.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
# Of a stat: 52 numbers and a name.
_LONGEST = 4096
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """`cpu` in seconds, with that of children that were waited for; `start` in ticks after boot; `memory` in bytes."""

    pid: int
    parent: int
    name: str
    cpu: float
    threads: int
    start: int
    memory: int


def parents() -> Iterator[tuple[int, list[bytes], bytes]]:
    """Every process: its pid, the fields of its stat from the third on, and its name. Those that end are left out."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            # The name may hold anything, parentheses and blanks too.
            head, _, tail = _stat_of(entry).rpartition(b")")
            yield int(entry), tail.split(), head.partition(b"(")[2]


def start_of(pid: int) -> int:
    """Ticks after boot when the process started: field 22 of proc_pid_stat(5). Raises OSError."""
    return int(_stat_of(pid).rpartition(b")")[2].split()[19])


def _stat_of(pid: int | str) -> bytes:
    """Without a file object, which costs more than the kernel's part. Raises OSError."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def table() -> dict[int, Process]:
    """Every process by its pid."""
    found = {}
    for pid, fields, name in parents():
        ticks = sum(map(int, fields[11:15]))
        found[pid] = Process(
            pid,
            int(fields[1]),
            name.decode("utf-8", "replace"),
            ticks / TICKS,
            int(fields[17]),
            int(fields[19]),
            int(fields[21]) * _PAGE,
        )
    return found


def below(pid: int, children: dict[int, list[int]] | None = None) -> list[int]:
    """Every process below this one, parents first: a child's children are found whatever thread started them."""
    if children is None:
        children = by_parent((child, int(fields[1])) for child, fields, _ in parents())
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found[1:]


def by_parent(pairs: Iterator[tuple[int, int]]) -> dict[int, list[int]]:
    """The children of each process, from pairs of a pid and its parent's."""
    children: dict[int, list[int]] = {}
    for pid, parent in pairs:
        children.setdefault(parent, []).append(pid)
    return children
