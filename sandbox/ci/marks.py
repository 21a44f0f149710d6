"""What groups lines and points at failures in the log of a CI system.

GitHub Actions takes its commands from the output of a step: those of the job are switched off while it runs, with a
word that it cannot know (docs.github.com, "Workflow commands for GitHub Actions"). GitLab's sections and Buildkite's
groups are marks for the eye, and do nothing.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping

from sandbox.errors import printable

NAMES = ("auto", "github", "gitlab", "buildkite", "plain")
# The variable by which each system says that it is there.
_SIGNS = {b"GITHUB_ACTIONS": "github", b"GITLAB_CI": "gitlab", b"BUILDKITE": "buildkite"}


def choose(name: str, environ: Mapping[bytes, bytes]) -> str:
    """The kind of marks that `auto` means here."""
    if name != "auto":
        return name
    return next((kind for sign, kind in _SIGNS.items() if environ.get(sign) == b"true"), "plain")


class Marks:
    """Marks of one kind, written where the log is read."""

    def __init__(self, kind: str, title: str, write: Callable[[bytes], None]) -> None:
        self._kind, self._title, self._write = kind, printable(title), write
        self._word = secrets.token_hex(16)
        self._at_start = True

    @property
    def must_relay(self) -> bool:
        """Whether what the command prints must come by `relay`: marks are understood at the start of a line only, and
        what the command prints must not read them."""
        return self._kind != "plain"

    def relay(self, data: bytes) -> None:
        """What the command printed."""
        self._at_start = data.endswith(b"\n")
        self._write(data)

    def begin(self) -> None:
        match self._kind:
            case "github":
                self._line(f"::group::{_github(self._title)}")
                self._line(f"::stop-commands::{self._word}")
            case "gitlab":
                self._line(f"\x1b[0Ksection_start:{int(time.time())}:{self._section}\r\x1b[0K{self._title}")
            case "buildkite":
                self._line(f"--- {self._title}")
            case _:
                self._line(f"sandbox: begin: {self._title}")

    def end(self, failed: str) -> None:
        """`failed`: in a few words why, empty where all is well."""
        if not self._at_start:
            self._line("")
        match self._kind:
            case "github":
                self._line(f"::{self._word}::")
                self._line("::endgroup::")
            case "gitlab":
                self._line(f"\x1b[0Ksection_end:{int(time.time())}:{self._section}\r\x1b[0K")
            case "buildkite":
                if failed:
                    self._line("^^^ +++")
        if failed:
            self._annotate(failed)
        elif self._kind == "plain":
            self._line(f"sandbox: end: {self._title}")

    def note(self, text: str) -> None:
        """A line of information."""
        # GitHub's runner takes its old commands, ##[add-mask]..., anywhere in a line (actions/runner, ActionCommand).
        self._line(f"sandbox: {printable(text).replace('##[', '## [')}")

    def _annotate(self, text: str) -> None:
        text = printable(text)
        match self._kind:
            case "github":
                self._line(f"::error title={_github(self._title, is_property=True)}::{_github(text)}")
            case "gitlab":
                self._line(f"\x1b[31;1msandbox: {self._title}: {text}\x1b[0m")
            case _:
                self._line(f"sandbox: FAILED: {self._title}: {text}")

    @property
    def _section(self) -> str:
        return f"sandbox_{os.getpid()}"

    def _line(self, text: str) -> None:
        self._write(text.encode("utf-8", "backslashreplace") + b"\n")


def _github(text: str, *, is_property: bool = False) -> str:
    escapes = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if is_property else {})
    return "".join(escapes.get(letter, letter) for letter in text)
