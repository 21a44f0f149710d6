"""An argparse parser whose errors are ours."""

import argparse
import contextlib
import os
from typing import Any, NoReturn

from sandbox.errors import UsageError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Knows its width by itself: argparse would import shutil for it, at every start."""

    def __init__(self, prog: str) -> None:
        width = 100
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(1).columns
        super().__init__(prog, max_help_position=32, width=max(width - 2, 60))


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a usage text and leaving with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", hint=f"see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Argparse would have the outermost parser refuse what the command's does not know, and name its help."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, []

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(**options)
