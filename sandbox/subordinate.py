"""--as-root with more than one id inside: the user's subordinate ids, or for root's jobs a block that is nobody's."""

import contextlib
import os
import stat

import prctl

from sandbox.host import find_program
from sandbox.plan_types import Mode
from sandbox.record import Record

# Beside root there are as many ids inside as distributions use: up to 65535, which is what Debian calls nobody's peer.
MOST = 65_535
# Above the uids that root's jobs have (isolation.FIRST_UID and its lanes); jobs share a block only if their uids differ
# by a multiple of a prime, so not those of one process.
FIRST_BLOCK, BLOCKS = 0xED000000, 4861
PROGRAMS = ("newuidmap", "newgidmap")
_FILES = (("/etc/subuid", "/etc/passwd"), ("/etc/subgid", "/etc/group"))
_ALL_IDS = 0xFFFFFFFF
# Where ranges start on a host of users with ordinary ids: SUB_UID_MIN of login.defs(5).
_FIRST_USUAL = 100_000
# What making a map of ranges takes, and looking at the process that it is made for.
_NEEDED = ("setuid", "setgid", "sys_ptrace")


class Subordinates(Record):
    """Ranges of uids and of gids, (first, count), and who maps them: nobody but the launcher where that is root."""

    uids: tuple[int, int]
    gids: tuple[int, int]
    programs: tuple[bytes, ...] = ()

    def of_job(self, ids: tuple[int, int] | None) -> "Subordinates":
        """Those of one job; `ids` are its own where root has given it some."""
        if ids is None or self.programs:
            return self
        block = (FIRST_BLOCK + ids[0] % BLOCKS * (MOST + 1), MOST)
        return self.replace(uids=block, gids=block)

    def outer(self, uid: int, gid: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Maps under which they, and the user's own ids, are what they are."""
        ranges = ((uid, self.uids), (gid, self.gids))
        uids, gids = ((own, own, 1, first, first, count) for own, (first, count) in ranges)
        return uids, gids

    def inner(self, uid: int, gid: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Maps under which the own ids are 0 and these follow."""
        uids, gids = ((0, own, 1, 1, first, count) for own, (first, count) in ((uid, self.uids), (gid, self.gids)))
        return uids, gids


def look(mode: Mode) -> Subordinates | str:
    """What there is for this process in this mode; a text says why there is nothing."""
    if mode is Mode.ROOT:
        if not _is_mapped("uid", FIRST_BLOCK, _ALL_IDS - FIRST_BLOCK):
            return "this user namespace has not all ids"
        if not all(getattr(prctl.cap_effective, name) for name in _NEEDED):
            return "root may not map ids here (CAP_SETUID, CAP_SETGID, CAP_SYS_PTRACE)"
        return Subordinates((0, 0), (0, 0))
    programs = [find_program(name) for name in PROGRAMS]
    for name, program in zip(PROGRAMS, programs, strict=True):
        if why := _obstacle(name, program):
            return why
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return f"uid {os.getuid()} has no name"
    if entry.pw_gid != os.getgid():
        return f"{PROGRAMS[0]} wants the user's own group"
    ranges = []
    for kind, (file, accounts) in zip(("uid", "gid"), _FILES, strict=True):
        if isinstance(found := _range(kind, file, accounts, entry.pw_name), str):
            return found
        ranges.append(found)
    return Subordinates(ranges[0], ranges[1], tuple(programs))


def _obstacle(name: str, program: bytes) -> str:
    """Why this program does nothing for this process."""
    if not program:
        return f"there is no {name} (install uidmap)"
    if prctl.get_no_new_privs():
        return f"no_new_privs is set, and {name} is a setuid program"
    status = os.stat(program)
    has_rights = bool(status.st_mode & stat.S_ISUID)
    with contextlib.suppress(OSError):
        has_rights = has_rights or bool(os.getxattr(program, "security.capability"))
    if status.st_uid != 0 or not has_rights or os.statvfs(program).f_flag & os.ST_NOSUID:
        return f"{os.fsdecode(program)} is not a setuid program of root's here"
    return ""


def _range(kind: str, file: str, accounts: str, user: str) -> tuple[int, int] | str:
    """The longest range of this user's: subuid(5). One that holds somebody of this host is left alone."""
    found = [(count, first) for name, first, count in _entries(file) if name in (user, str(os.getuid()))]
    if not found:
        return f"{file} has no line for {user}"
    count, first = max(found)
    count = min(count, MOST)
    taken = next((number for number in _numbers(accounts) if first <= number < first + count), None)
    if taken is not None:
        return f"the range of {user} in {file} holds the {kind} {taken} of {accounts}"
    if not _is_mapped(kind, first, count):
        return f"the range of {user} in {file} is not in this user namespace"
    return first, count


def is_listed(user: str) -> bool:
    """Whether the user has ranges of both kinds, usable or not."""
    names = (user, str(os.getuid()))
    return all(any(entry[0] in names for entry in _entries(file)) for file, _ in _FILES)


def free_range() -> tuple[int, int]:
    """First and last of ids that are in no range of either file, as many as distributions give a user."""
    ends = [first + count for file, _ in _FILES for _, first, count in _entries(file)]
    first = max([_FIRST_USUAL, *ends])
    return first, first + MOST


def _entries(file: str) -> list[tuple[str, int, int]]:
    lines = (fields for fields in _fields(file) if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal())
    return [(name, int(first), int(count)) for name, first, count in lines if int(count) > 0]


def _numbers(accounts: str) -> list[int]:
    return [int(fields[2]) for fields in _fields(accounts) if len(fields) > 2 and fields[2].isdecimal()]


def _fields(file: str) -> list[list[str]]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as opened:
            return [line.strip().split(":") for line in opened]
    except OSError:
        return []


def _is_mapped(kind: str, first: int, count: int) -> bool:
    """Whether all of these ids are in the own user namespace, in one of its ranges."""
    with open(f"/proc/self/{kind}_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(inside <= first and first + count <= inside + length for inside, _, length in ranges)
