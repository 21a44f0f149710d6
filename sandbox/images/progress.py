"""A progress bar for what takes over a second, on a terminal only."""

import os
import time
from typing import Any

from sandbox import errors

_AFTER = 1.0  # seconds
_wanted = True


def silence() -> None:
    """No progress bars in this process: --quiet."""
    global _wanted  # noqa: PLW0603
    _wanted = False


class Progress:
    """`update` often and cheaply; rich is imported when a second has passed and not before."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self.total = total
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def update(self, done: int) -> None:
        """`done` of `total` bytes are done."""
        if self._bar is None:
            if time.monotonic() - self._started < _AFTER:
                return
            self._show()
        self._bar.update(self._task, completed=min(done, self.total))

    def _show(self) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(escape(self._what), total=self.total)
        self._bar.start()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()


def on_terminal(what: str, total: int) -> Progress | None:
    """A progress bar, or None when standard error is no terminal, or bars are not wanted."""
    try:
        return Progress(what, total) if _wanted and os.isatty(2) and not errors.speaks_json() else None
    except OSError:
        return None
