"""`sandbox doctor` as a user types it."""

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import modes, users


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


@pytest.mark.parametrize("wrong", ["file", "foreign", "open"])
def test_unusable_home_is_a_cross(run_sandbox, who, area, wrong):
    home = area.path / "home"
    if wrong == "file":
        home.write_text("")
    elif wrong == "open":
        home.mkdir()
        home.chmod(0o777)
        os.chown(home, who.uid, who.gid)
    elif os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    else:
        home.mkdir()
        os.chown(home, 12345, 12345)
    done = run_sandbox(["doctor", "--json"], as_user=who.as_user, env={"SANDBOX_HOME": str(home)})
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "home")
    assert not check["ok"]
    assert ("chmod 700" if wrong == "open" else "SANDBOX_HOME") in check["remedy"]


FEATURES = (
    "landlock",
    "system call filter",
    *(f"limit --{name}" for name in ("memory", "pids", "cpus")),
    "namespaces of the levels",
    *("newuidmap", "newgidmap", "ids for --as-root"),
    "--net private",
    "slirp4netns",
    "pasta",
    "nft",
    "terminals",
    "front",
    *("pyroute2", "psutil", "rich", "shtab"),
)


def test_every_feature_is_looked_at_and_nothing_is_changed(run_sandbox, who):
    before = [path.read_text() for path in Path("/sys/fs/cgroup").glob("**/cgroup.subtree_control")]
    report = json.loads(run_sandbox(["doctor", "--json"], as_user=who.as_user).stdout)
    found = {check["name"]: check for check in report["checks"]}
    assert set(FEATURES) <= found.keys()
    assert all(found[name]["remedy"] or found[name]["ok"] for name in FEATURES)
    assert [path.read_text() for path in Path("/sys/fs/cgroup").glob("**/cgroup.subtree_control")] == before


def test_ids_for_as_root(run_sandbox, who, identities):
    """The check says what `-v` says of them, and the remedy names this user."""
    report = json.loads(run_sandbox(["doctor", "--json"], as_user=who.as_user).stdout)
    check = next(check for check in report["checks"] if check["name"] == "ids for --as-root")
    if not who.as_user:
        assert check["ok"], check
        return
    user = identities[True]
    if why := users.no_subordinates(user):
        assert why in check["detail"]
        assert "uidmap" in check["remedy"] or f" {user.name}" in check["remedy"]
    else:
        assert check["ok"], check


def test_plans_that_are_not_stored_are_a_cross(run_sandbox):
    done = run_sandbox(["doctor"], as_user=True, env={"SANDBOX_PLAN_CACHE": "0"})
    if "is not native" in done.stdout:
        pytest.skip("the front was not built")
    assert "✘ store of plans" in done.stdout
    assert "-> unset SANDBOX_PLAN_CACHE" in done.stdout


def test_self_test(run_sandbox, who):
    done = run_sandbox(["doctor", "--self-test", "--json"], as_user=who.as_user)
    report = json.loads(done.stdout)
    tried = {(one["mode"], one["level"]): one for one in report["self_test"]}
    own = ["userns"] if who.as_user else ["root"]
    wanted = {(mode, level) for mode in own if report["modes"][mode] for level in ("none", "job", "strict")}
    assert wanted <= tried.keys()
    assert [one for one in tried.values() if not one["ok"] or one["error"]] == []
    assert all(one["first_ms"] > 0 and one["again_ms"] > 0 for one in tried.values())
    assert done.returncode == (0 if any(report["modes"].values()) else 1)
    assert run_sandbox(["ps", "--json"], as_user=True).stdout == "[]\n"


def test_a_self_test_that_fails_says_why(run_sandbox, area):
    """A home that sandboxes refuse: everything is tried, nothing works, and each line is the launcher's."""
    home = area.path / "home"
    home.write_text("")
    done = run_sandbox(["doctor", "--self-test"], as_user=True, env={"SANDBOX_HOME": str(home)})
    assert done.returncode == 1
    assert "-> sandbox: cannot use the home" in done.stdout


@pytest.mark.leaves_procdirs
def test_fix_removes_what_a_dead_run_left_and_says_what_takes_root(run_sandbox, area):
    process = run_sandbox.popen(
        ["run", "--", "sh", "-c", "echo up; exec sleep 1000"], as_user=True, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    records = area.home(True) / "records"
    assert list(records.iterdir())
    report = json.loads(run_sandbox(["doctor", "--fix", "--json"], as_user=True).stdout)
    assert [line for line in report["fixed"] if line.startswith("removed: ")]
    assert not list(records.iterdir())
    missing = [check["name"] for check in report["checks"] if not check["ok"]]
    for name in ("squashfs", "overlay", "fuse"):
        said = [line for line in report["fixed"] if line.startswith(f"{name}: ")]
        assert bool(said) == (name in missing)
        assert all("takes root" in line for line in said)


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
