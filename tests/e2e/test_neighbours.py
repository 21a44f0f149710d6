"""Sandboxes and setuid helpers of neighbouring versions, built for real (tests/support/neighbours.py): in both
directions, while sandboxes run, and in one home. For make soak: it compiles the helper three times.
"""

import json
import os
import shutil
import subprocess

import pytest

from sandbox.doctor import packaged_program
from sandbox.setuid import HELPER
from tests.support import neighbours
from tests.support.neighbours import FAR, LAST, NEXT, TODAY, Builder

pytestmark = [
    pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="compiles other versions of the helper: in make soak"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to install helpers"),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo"),
]


@pytest.fixture(scope="module")
def built(session_area, installed):
    """The next version, and the helpers of all."""
    builder = Builder(session_area / "neighbours", installed.parent / "python")
    following = builder.all(NEXT)
    helpers = {version: builder.helper(version) for version in (LAST, FAR)}
    helpers |= {TODAY: packaged_program("sandbox-helper"), NEXT: following.helper}
    yield following.command, helpers
    shutil.rmtree(session_area / "neighbours")


@pytest.fixture
def place(run_sandbox, setuid_system, built):
    """`place(version of the command, version of the helper)`; today's helper is back afterwards."""
    run_sandbox.system = setuid_system
    following, helpers = built
    commands = {TODAY: run_sandbox.command, NEXT: following}

    def placed(command=TODAY, helper=TODAY):
        run_sandbox.command = commands[command]
        neighbours.put_helper(setuid_system, helpers[helper])
        told = setuid_system.private.root(HELPER, "version").stdout
        assert told == f"sandbox-helper {helper.text} plans {helper.first}-{helper.last}\n"

    yield placed
    placed()


class User:
    """What the user of the group does, in mode setuid."""

    def __init__(self, run_sandbox, user):
        self.run, self.user = run_sandbox, user

    def __call__(self, *words, mode="setuid"):
        done = self.run(["run", "--mode", mode, *words], as_user=self.user.as_user)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words):
        """The one line."""
        done = self.run(["run", "--mode", "setuid", *words], as_user=self.user.as_user)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
        return done.stderr

    def start(self, *words):
        """One that says `up` and then ends with what it is told."""
        script = "echo up; read line; echo $line"
        words = ["run", "--mode", "setuid", *words, "--", "sh", "-c", script]
        process = self.run.popen(
            words, as_user=self.user.as_user, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout.readline() == "up\n"
        return process


@pytest.fixture(name="alice")
def _alice(run_sandbox, user):
    return User(run_sandbox, user)


@pytest.fixture
def image(area, user):
    """An archive of the user's, and the words that show what is in it."""
    tree = area.dir(user.as_user) / "t"
    tree.mkdir()
    (tree / "file").write_text("inside\n")
    shutil.make_archive(str(tree), "zip", tree)
    return ["-s", "t:t.zip", "--", "sh", "-c", "cat $SANDBOX_STATIC/t/file"]


NEIGHBOURS = [(TODAY, LAST), (TODAY, TODAY), (TODAY, NEXT), (NEXT, LAST), (NEXT, TODAY), (NEXT, NEXT)]


@pytest.mark.parametrize(
    ("command", "helper"), NEIGHBOURS, ids=[f"{one.text} with {other.text}" for one, other in NEIGHBOURS]
)
def test_neighbours_work_together(place, alice, image, command, helper):
    """What both know works; what the helper is too old for is refused in a line that says what to do."""
    place(command, helper)
    assert alice("--", "echo", "fine") == "fine\n"
    assert alice(*image) == "inside\n"
    assert alice("--cache", *image) == "inside\n"
    for words, since in (
        (["--isolation", "job"], 2),
        (["--timeout", "1m"], command.limits_since),
        (["--isolation", "job", "--timeout", "1m"], max(2, command.limits_since)),
    ):
        if since <= helper.last:
            assert alice(*words, "--", "echo", "fine") == "fine\n"
            continue
        line = alice.refused(*words, "--", "echo", "never")
        assert line.startswith("sandbox: --")
        takes = f" in setuid mode needs a newer sandbox-helper: {helper.text} takes plans {helper.first}-{helper.last}"
        assert f"{takes} (as root: sandbox setuid install, or " in line
    assert alice("--timeout", "1m", "--", "echo", "fine", mode="userns") == "fine\n", "the remedy of that line"


def test_a_helper_of_the_far_future(place, alice):
    place(TODAY, FAR)
    line = alice.refused("--", "true")
    assert (
        "this sandbox is too old for the setuid helper: 9.0.0 takes plans 3-4, this makes 1-2 (update sandbox" in line
    )


@pytest.mark.parametrize(("old", "new"), [(TODAY, NEXT), (NEXT, TODAY)], ids=["upgrade", "downgrade"])
def test_sandboxes_run_through_it(place, alice, run_sandbox, user, old, new):
    """The helper changes first, then the command. What runs is seen, ended, and ends as it would have."""
    place(old, old)
    running = {name: alice.start("--name", name, "--isolation", "job") for name in ("stays", "killed")}
    plain = alice.start()
    for command in (old, new):
        place(command, new)
        assert alice("--", "echo", "new") == "new\n"
        listed = run_sandbox(["ps", "--json"], as_user=user.as_user, check=True)
        assert {one["name"] for one in json.loads(listed.stdout)} >= {"stays", "killed"}
    run_sandbox(["kill", "killed"], as_user=user.as_user, check=True)
    assert running["killed"].wait(60) != 0
    for process in (running["stays"], plain):
        assert process.communicate("over\n", timeout=60) == ("over\n", "")
        assert process.returncode == 0


@pytest.mark.parametrize("mode", ["root", "userns", "setuid"])
def test_versions_that_share_a_home(place, run_sandbox, user, area, mode):
    """As nodes of a cluster do while they are upgraded: what one stored for its front does no harm to the other."""
    as_user = mode != "root" and user.as_user
    if mode != "setuid":
        run_sandbox.system = None
    for turn in range(6):
        place((TODAY, NEXT)[turn % 2], NEXT)
        for words in (["--timeout", "1m"], ["--isolation", "job"], []):
            done = run_sandbox(["run", "--mode", mode, *words, "--", "echo", "fine"], as_user=as_user)
            assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", ""), turn
    assert len(list((area.home(as_user) / "plans").iterdir())) >= 3, "the fronts have plans to take"
