"""The Python API on every engine in every mode: tests/support/api_cases.py is what it is put to."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conformance.test_conformance import COMBINATIONS
from tests.support import modes

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "api_cases.py"


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS, ids=lambda value: value)
def test_api(engine, mode, run_sandbox, area, identities, ran, request):
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    script = Path(shutil.copy(SCRIPT, area.path))
    wanted = re.findall(r"^def (case_\w+)", script.read_text(), re.MULTILINE)
    run_sandbox.command = run_sandbox.command.parent / "python"
    done = run_sandbox(["-X", "dev", "-W", "error", script, engine, mode], as_user=mode != "root", timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"ok {name}" for name in wanted]
    ran(engine, mode)
