"""The error tree: every message says what was being done, to which thing, why it failed, and what to do.

And the one way to say it: lines for a person, or JSON objects for a program (`--log-format json`, docs/living.md).
The native programs say the same in the same shape (setuid-helper/src/messages.rs).
"""

import contextlib
import errno
import os
from typing import Final

EXIT_TIMED_OUT = 124
EXIT_LAUNCHER_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
LOG_FORMATS = ("text", "json")
# Of a message, in characters: at most this, else so many of its start and of its end.
_LONGEST, _KEPT = 1000, 500
# A job that floods a descriptor that nobody reads must not keep its supervisor from its end.
_PATIENCE_MS = 5_000


def printable(raw: bytes | str) -> str:
    """One line for a terminal: bytes that are not printable text appear as backslash escapes."""
    text = raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable()
        else c.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode()
        for c in text
    )


class SandboxError(Exception):
    """A launch or command that cannot go on. `hint` is what the user can do about it."""

    exit_code = EXIT_LAUNCHER_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(SandboxError):
    """The request itself is wrong: an option, a name, a combination."""


class SourceError(SandboxError):
    """A source cannot be opened, read or trusted."""


class ArchiveError(SourceError):
    """An archive is damaged, hostile, or of no known kind."""


class DamagedError(ArchiveError):
    """An archive was cut short or changed since it was made."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="fetch it again, or make it anew")


class HostError(SandboxError):
    """This host lacks something that the request needs."""


class StepError(SandboxError):
    """One step of a plan failed."""


class CommandError(SandboxError):
    """The command itself cannot be started: exit code 126 or 127."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


TIMED_OUT: Final = CommandError("the command was ended: its time was up", hint="--timeout", exit_code=EXIT_TIMED_OUT)


_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: something on its way is no directory",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "a path has at most 4,095 bytes, a name in it 255",
    errno.ELOOP: "name what the symbolic links lead to",
    errno.EACCES: "see the modes and owners on its way: namei -l",
    errno.EPERM: "see its owner, mode and attributes: ls -l, lsattr",
    errno.EROFS: "it is mounted read-only: name a place on another file system",
    errno.ENOSPC: "make room there: df, df -i",
    errno.EDQUOT: "make room there: quota",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "close programs: the machine has too many files open",
    errno.ENOMEM: "free memory",
    errno.EIO: "the storage fails: dmesg",
    errno.ESTALE: "try again: the share has changed",
    errno.ENXIO: "name a regular file",
}


def remedy(error: OSError) -> str:
    """What a user can do about a path that the kernel refuses; empty where nothing can be said in general."""
    return _REMEDIES.get(error.errno or 0, "")


def reason(error: OSError) -> str:
    """The kernel's word for an errno, as in "No space left on device"."""
    return os.strerror(error.errno) if error.errno else str(error)


_as_json = False


def speak(log_format: str) -> None:
    """How this process says things from here on: one of LOG_FORMATS."""
    global _as_json  # noqa: PLW0603 (a process has one standard error)
    _as_json = log_format == "json"


def speaks_json() -> bool:
    """Whether what is said is for a program."""
    return _as_json


def complain(error: SandboxError, *, trace: str = "") -> None:
    """One line on stderr about what cannot go on, and what can be done about it; below `trace`, for who debugs."""
    if trace and not _as_json:
        _put(trace)
    extra = {"traceback": trace} if trace else {}
    _put(line("error", _short(error.message), hint=error.hint, exit_code=error.exit_code, **extra))


def _short(text: str) -> str:
    """Without the middle of what nobody reads to its end: a value of an option may have any length."""
    left = len(text) - _LONGEST
    return text if left <= 0 else f"{text[:_KEPT]} [... {left} characters ...] {text[-_KEPT:]}"


def warn(text: str) -> None:
    """One line on stderr about what the user must know and what stops nothing."""
    _put(line("warning", text))


def note(text: str) -> None:
    """One line on stderr about how it went."""
    _put(line("info", text))


def line(level: str, text: str, *, hint: str = "", exit_code: int | None = None, **extra: str) -> str:
    """A line as it is said, with its end."""
    message, hint = (printable(" ".join(part.split("\n"))) for part in (text, hint))
    if not _as_json:
        warning = "warning: " if level == "warning" else ""
        return f"sandbox: {warning}{message}{f' ({hint})' if hint else ''}\n"
    import json
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat(timespec="microseconds")
    facts = {"time": now, "level": level, "message": message, "hint": hint or None, "exit_code": exit_code}
    return json.dumps({**facts, **extra}) + "\n"


def _put(text: str) -> None:
    """In one write, so that lines of parallel launches do not mix. Who takes nothing for too long is not told."""
    import select

    with contextlib.suppress(OSError):
        events = select.poll()
        events.register(2, select.POLLOUT)
        # Where a page is free in a pipe a line does not wait: pipe(7).
        if events.poll(_PATIENCE_MS):
            os.write(2, text.encode("utf-8", "backslashreplace"))
