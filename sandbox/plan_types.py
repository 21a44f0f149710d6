"""The words of a plan: what its fields are, and what they mean."""

import enum
from typing import Annotated

from sandbox.record import Record

U8 = Annotated[int, "u8"]
U32 = Annotated[int, "u32"]
U64 = Annotated[int, "u64"]
Path = Annotated[bytes, "path"]
String = Annotated[bytes, "string"]
Strings = Annotated[tuple[bytes, ...], "strings"]
Slots = Annotated[tuple[int, ...], "slots"]
Words = Annotated[tuple[int, ...], "words"]


class Mode(enum.IntEnum):
    """Where the right to mount comes from."""

    ROOT = 1
    SETUID = 2
    USERNS = 3
    # Since version 2: no right to mount at all.
    LANDLOCK = 4


class SourceKind(enum.IntEnum):
    FILE = 1
    DIRECTORY = 2
    MEMORY = 3


class Base(enum.IntEnum):
    """What a place's path is relative to."""

    ROOT = 1
    PROCDIR = 2


class Propagation(enum.IntEnum):
    SLAVE = 1
    PRIVATE = 2


class Attr(enum.IntFlag):
    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOSYMFOLLOW = 16


class OverlayOption(enum.IntFlag):
    USERXATTR = 1
    REDIRECT_DIR = 2


class Resource(enum.IntEnum):
    """What a Limit limits, each in its own unit."""

    CPU_SECONDS = 1
    FILE_BYTES = 2
    OPEN_FILES = 3
    DATA_BYTES = 4
    PROCESSES = 5
    CORE_BYTES = 6


class PlanFlag(enum.IntFlag):
    LEAVE_RUNNING = 1
    # Since version 2, for the setuid helper: see docs/plan.md.
    KEEP_IMAGES = 2
    ALLOW_NEW_PRIVS = 4


class Source(Record):
    """Something of the user's that is opened with the user's rights; `dev` and `ino` are checked on the descriptor.

    For a file, `size` (bytes), `mtime_ns` and `ctime_ns` are checked as well. A memory source has no path: its
    descriptor is handed over beside the plan.
    """

    kind: U8
    path: Path
    dev: U64 = 0
    ino: U64 = 0
    size: U64 = 0
    mtime_ns: U64 = 0
    ctime_ns: U64 = 0


class Place(Record):
    """A directory inside the run's mount namespace. `dev` and `ino` are checked unless both are 0."""

    base: U8
    path: Path
    dev: U64 = 0
    ino: U64 = 0

    @property
    def is_root(self) -> bool:
        """Whether the path is one of the root directory's."""
        return self.base == Base.ROOT
