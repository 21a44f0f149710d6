"""The table of keys in docs/job-files.md; after a change of options `python -m tests.support.job_keys` renews it."""

from pathlib import Path

from sandbox import option_file
from sandbox.cli import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "job-files.md"
BEGIN, END = "| key | value | meaning |\n", "\n\n<!-- end of the keys -->"


def table() -> str:
    """The rows, in the order of `sandbox run --help`."""
    rows = [f"| `{key.name}` | {key.type} | {key.help} |" for key in option_file.keys(run.make_parser()[1]).values()]
    return "\n".join(["|---|---|---|", *rows])


def parts() -> tuple[str, str, str]:
    """The page before, in and after the rows."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    rows, end, after = rest.partition(END)
    return before + begin, rows, end + after


if __name__ == "__main__":
    before, _, after = parts()
    PAGE.write_text(before + table() + after)
