"""Steps of Buildbot in sandboxes: the arguments that make them, and in `make soak` a real master and worker."""

import json
import os

import pytest

from sandbox.ci.buildbot import shell_command
from sandbox.errors import UsageError
from tests.support import buildbot, escapes, users
from tests.support.buildbot import CANCELLED, EXCEPTION, FAILURE, SUCCESS, Buildbot


def test_what_a_step_is_made_of(run_sandbox, user, area):
    """The worker's part, without a worker: the command runs, its directory stays, and the codes are told apart."""
    made = shell_command(["sh", "-c", "echo x > made; exit $0", "0"], timeout="1m", sandbox="s", title="a b")
    assert made["command"][:3] == ["s", "ci", "run"]
    assert made["decodeRC"] == {0: SUCCESS, 125: EXCEPTION}
    assert run_sandbox(made["command"][1:], as_user=user.as_user).returncode == 0
    assert (area.dir(user.as_user) / "made").read_text() == "x\n"
    for code in ("3", "125"):
        done = run_sandbox([*made["command"][1:-1], code], as_user=user.as_user)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"sandbox: FAILED: a b: exit code {code}")
    broken = shell_command(["true"], static="no-such.zip")
    assert run_sandbox(broken["command"][1:], as_user=user.as_user).returncode == 125


def test_an_option_that_is_none():
    with pytest.raises(UsageError, match="memroy"):
        shell_command(["true"], memroy="1G")


STEPS = """
def step(script, *words, **options):
    own = {{name: options.pop(name) for name in ("buildbot_timeout",) if name in options}}
    made = dict(shell_command(["sh", "-c", script, "sh", *words], sandbox=SANDBOX, **options))
    if "buildbot_timeout" in own:
        made["timeout"] = own["buildbot_timeout"]
    return steps.ShellCommand(**made)

WAIT = "echo mine > mine-of-$1; echo ready; until [ -e stop ]; do sleep 0.1; done; "
WAIT += "find / -name 'mine-of-*' 2>&-; ls /proc"
BUILDS = {{
    "good": [step("echo first > made"), step("cat made; pwd; id -u")],
    "bad": [step("exit 3")],
    "liar": [step("echo sandbox: cannot be made >&2; exit 125")],
    "late": [step("sleep 1000", timeout="1s")],
    "silent": [step("trap '' TERM; sleep 1000", buildbot_timeout=3)],
    "broken": [step("true", static="no-such.zip")],
    "endless": [step("echo ready; sleep 7654")],
    "hostile": [steps.ShellCommand(**shell_command(PROBING, sandbox=SANDBOX, title="hostile"))],
    "one": [step(WAIT, "one")],
    "two": [step(WAIT, "two")],
}}
"""


@pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="installs Buildbot from PyPI: in make soak")
def test_a_master_and_a_worker(run_sandbox, user, area, session_area):
    programs = buildbot.install(session_area / "buildbot")
    with escapes.targets(user.home) as words:
        probing = ["/usr/bin/python3", "-c", escapes.PROBE, *words]
        steps = f"PROBING = {json.dumps(probing)}\n{STEPS.format()}"
        bot = Buildbot(programs, area.dir(user.as_user), user, run_sandbox.command, steps)
        with bot.running():
            _outcomes(bot, user)
            _interrupted(bot, user)
            hostile = bot.force("hostile")
            assert bot.wait(hostile) == SUCCESS, bot.log(hostile)
            escapes.check("\n".join(bot.log(hostile).splitlines()[1:-1]))
            _two_at_once(bot)


def _outcomes(bot, user):
    builds = {name: bot.force(name) for name in ("good", "bad", "liar", "late", "silent", "broken")}
    results = {name: bot.wait(build) for name, build in builds.items()}
    wanted = {"good": SUCCESS, "broken": EXCEPTION} | dict.fromkeys(("bad", "liar", "late", "silent"), FAILURE)
    assert results == wanted, [bot.log(build) for build in builds.values()]
    assert "first" in bot.log(builds["good"]).splitlines()
    assert str(user.uid) in bot.log(builds["good"]).splitlines()
    assert "exit code 3" in bot.log(builds["bad"])
    assert "its time was up (--timeout 1)" in bot.log(builds["late"])
    assert "no-such.zip" in bot.log(builds["broken"])


def _interrupted(bot, user):
    build = bot.force("endless")
    bot.until_printed(build, "ready")
    bot.stop(build)
    assert bot.wait(build) == CANCELLED
    left = [line for line in users.processes_of(user.uid).values() if "7654" in line or "1000" in line.split()]
    assert left == []


def _two_at_once(bot):
    builds = {name: bot.force(name) for name in ("one", "two")}
    for build in builds.values():
        bot.until_printed(build, "ready")
    for name in builds:
        (bot.build_directory / name / "build" / "stop").touch()
    for name, build in builds.items():
        assert bot.wait(build) == SUCCESS
        lines = bot.log(build).splitlines()
        found = [os.path.basename(line) for line in lines if "mine-of-" in line and line.startswith("/")]
        assert set(found) == {f"mine-of-{name}"}, lines
        assert len([line for line in lines if line.isdigit()]) < 6, "processes of its own only"
