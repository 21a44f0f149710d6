"""The examples of docs/python.md, run as they stand there."""

import shutil
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_examples(run_sandbox, who, area):
    page = shutil.copy(PAGE, area.path)
    assert PAGE.read_text().count("```python\n>>> ") >= 6
    run_sandbox.command = run_sandbox.command.parent / "python"
    done = run_sandbox(["-X", "dev", "-m", "doctest", "-o", "NORMALIZE_WHITESPACE", page], as_user=who.as_user)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
