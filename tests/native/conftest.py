"""The native programs by themselves, in every mode that this machine allows."""

import os

import pytest

from sandbox.doctor import packaged_program
from sandbox.plan_types import Mode
from tests.support import modes
from tests.support.launcher import Launcher, copied

# Without a special right of its own: `setuid` is the helper in the hands of an ordinary user.
EVERY = ("root", "userns", "root-userns", "setuid")


@pytest.fixture(params=EVERY)
def native(request, identities, area):
    """A Launcher; `@only(...)` names the kinds of launches that a test is for."""
    kind = request.param
    if kind != "userns" and os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    if kind == "setuid":
        helper = request.getfixturevalue("helper")
        yield helper
        return
    program = packaged_program("sandbox-engine")
    if not os.access(program, os.X_OK):
        pytest.skip("the native engine was not built here (no cargo)")
    who = identities[kind == "userns"]
    if kind != "root" and not modes.userns_works(who):
        pytest.skip("user namespaces are not allowed here")
    launcher = Launcher(copied(program, area.path), Mode.ROOT if kind == "root" else Mode.USERNS, who, area.path)
    yield launcher
    launcher.finish()
