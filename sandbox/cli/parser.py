"""An argparse parser whose errors are ours."""

import argparse
from typing import Any, NoReturn

from sandbox.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a usage text and leaving with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", hint=f"see {self.prog} --help")

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
