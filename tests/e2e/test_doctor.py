"""`sandbox doctor` as a user types it."""

import json
import os
import pty
import shutil
import subprocess

import pytest

from tests.support import modes


def test_says_which_modes_work(run_sandbox, who):
    done = run_sandbox(["doctor", "--json"], as_user=who.as_user)
    report = json.loads(done.stdout)
    expected = modes.userns_works(who)
    assert report["modes"] == {"root": not who.as_user, "setuid": False, "userns": expected}
    assert done.returncode == (0 if any(report["modes"].values()) else 1)
    assert done.stderr == ""


def test_makes_no_home(run_sandbox, who, area):
    done = run_sandbox(["doctor"], as_user=who.as_user)
    assert "not made yet" in done.stdout
    assert not area.home(who.as_user).exists()


def test_plain_text_has_a_remedy_below_each_cross(run_sandbox, who):
    lines = run_sandbox(["doctor"], as_user=who.as_user).stdout.splitlines()
    crosses = [number for number, line in enumerate(lines) if line.startswith("✘")]
    assert crosses
    assert all(lines[number + 1].strip().startswith("-> ") for number in crosses)
    assert "\x1b" not in "".join(lines)


def test_ascii_locale(run_sandbox, who):
    done = run_sandbox(
        ["doctor"], as_user=who.as_user, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout.startswith("ok kernel")
    assert done.stdout.isascii()


@pytest.mark.parametrize("no_color", [None, "1"])
def test_color_only_on_a_terminal_that_wants_it(run_sandbox, no_color):
    ours, theirs = pty.openpty()
    process = run_sandbox.popen(
        ["doctor"], as_user=True, env={"NO_COLOR": no_color, "TERM": "xterm"}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # EIO: the other side is closed
            break
        output += block
    os.close(ours)
    process.wait()
    assert (b"\x1b[" in output) is (no_color is None)
    assert b"kernel" in output


@pytest.mark.parametrize("wrong", ["file", "foreign"])
def test_unusable_home_is_a_cross(run_sandbox, who, area, wrong):
    home = area.path / "home"
    if wrong == "file":
        home.write_text("")
    elif os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    else:
        home.mkdir()
        os.chown(home, 12345, 12345)
    done = run_sandbox(["doctor", "--json"], as_user=who.as_user, env={"SANDBOX_HOME": str(home)})
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "home")
    assert not check["ok"]
    assert "SANDBOX_HOME" in check["remedy"]


def test_without_any_mode(run_sandbox, identities, area):
    """No capability left, and no user namespace allowed; that limit is per user namespace, so this one is private."""
    if not modes.userns_works(identities[True]) or not shutil.which("setpriv"):
        pytest.skip("user namespaces are off here")
    script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*inside, str(run_sandbox.command), "doctor", "--json"],
        env=run_sandbox.environment(True),
        cwd=area.dir(True),
        capture_output=True,
        text=True,
        **identities[True].popen_options(),
    )
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not any(report["modes"].values())
    found = {check["name"]: check for check in report["checks"]}
    assert "user.max_user_namespaces=15000" in found["mode userns"]["remedy"]
    assert not found["user.max_user_namespaces"]["ok"]
