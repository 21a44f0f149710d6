"""The error tree: every message says what was being done, to which thing, why it failed, and what to do."""

import contextlib
import os

EXIT_TIMED_OUT = 124
EXIT_LAUNCHER_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
TIMED_OUT = "the command was ended: its time was up (--timeout)"


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


class HostError(SandboxError):
    """This host lacks something that the request needs."""


class StepError(SandboxError):
    """One step of a plan failed."""


class CommandError(SandboxError):
    """The command itself cannot be started: exit code 126 or 127."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def reason(error: OSError) -> str:
    """The kernel's word for an errno, as in "No space left on device"."""
    return os.strerror(error.errno) if error.errno else str(error)


def warn(text: str) -> None:
    """One line on stderr about what the user must know and what stops nothing."""
    note(f"warning: {text}")


def note(text: str) -> None:
    """One line on stderr about how it went."""
    with contextlib.suppress(OSError):
        os.write(2, f"sandbox: {printable(text)}\n".encode("utf-8", "backslashreplace"))
