"""sandbox ps, inspect, kill, top and --name, in every mode on every engine."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import living, modes
from tests.support.living import Living, wait_for

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look at another user's")


ALL = pytest.mark.parametrize("pair", living.COMBINATIONS, ids="-".join)
SOME = pytest.mark.parametrize("pair", [("python", "userns"), ("native", "root")], ids="-".join)


@pytest.fixture
def live(pair, request, run_sandbox, identities):
    engine, mode = pair
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    return Living(run_sandbox, engine, mode)


@ALL
def test_it_is_listed_as_long_as_it_lives(live):
    level = "none" if live.options[1] == "python" else "job"
    (live.area / "tree").mkdir()
    options = ["--isolation", level] if level != "none" else []
    process = live.start(*options, "--name", "one", "-s", f"t:{live.area}/tree")
    (facts,) = live.own()
    assert (facts["name"], facts["level"], facts["mode"]) == ("one", level, live.options[3])
    assert facts["images"] == [f"t={live.area}/tree"]
    assert facts["command"][:2] == ["sh", "-c"]
    assert facts["uid"] == live.run.identities[live.as_user].uid
    assert (facts["tasks"] >= 1, facts["memory"] > 100_000, facts["cpu"] >= 0) == (True, True, True)
    assert 0 <= facts["age"] < 600
    told = live.json("inspect", "one")
    assert told["id"] == facts["id"]
    assert any("the run is called one" in line for line in told["plan"])
    assert "sh" in [process["name"] for process in told["processes"]]
    assert re.search(r"^age +[0-9]+ s\n(.*\n)+memory +[0-9.]+ [KM]iB$", live("inspect", "one").stdout, re.MULTILINE)
    assert facts["id"][:12] in live("ps").stdout
    assert live("kill", "one").stdout == "one: ended\n"
    assert process.wait(20) == -signal.SIGTERM
    assert live.own() == []


@SOME
def test_what_ignores_the_request_is_killed(live):
    process = live.start("--isolation", "job", script="trap '' TERM")
    (facts,) = live.own()
    assert live("kill", "--kill-after", "0.3", facts["id"][:8]).stdout == f"{facts['id'][:12]}: killed\n"
    assert process.wait(20) == -signal.SIGKILL


@pytest.mark.leaves_procdirs
@ALL
def test_a_name_is_one_running_sandbox(live):
    process = live.start("--name", "only")
    second = live("run", *live.options, "--name", "only", "true")
    assert (second.returncode, len(second.stderr.splitlines())) == (125, 1)
    assert "--name: a sandbox called only is running" in second.stderr
    assert live("run", *live.options, "true").returncode == 0
    assert live("kill", "--all").stdout == "only: ended\n"
    process.wait(20)
    # A dead one gives its name back as well.
    fallen = live.start("--name", "only")
    os.kill(live.own()[0]["pid"], signal.SIGKILL)
    fallen.wait(20)
    wait_for(lambda: not live.own())
    again = live("run", *live.options, "--name", "only", "echo", "again")
    assert (again.stdout, again.stderr) == ("again\n", "")


@pytest.mark.parametrize("name", ["", "-x", "1a", "a/b", "..", ".a", "a b", "x" * 64, "é"])
def test_what_is_no_name(run_sandbox, who, name):
    done = run_sandbox(["run", f"--name={name}", "--", "true"], as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "--name" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["kill", "nobody"], "no running sandbox is called 'nobody'"),
        (["inspect", "nobody"], "no running sandbox is called 'nobody'"),
        (["kill"], "nothing to end"),
        (["kill", "--all", "x"], "both ids and --all"),
        (["kill", "--all", "--kill-after", "soon"], "not a duration"),
        (["ps", "--watch", "nan"], "invalid seconds"),
        (["top", "--every", "1e30"], "invalid seconds"),
    ],
)
def test_mistakes_are_one_line(run_sandbox, who, words, says):
    done = run_sandbox(words, as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert says in done.stderr


def test_what_is_left_running_is_listed(run_sandbox, who, area):
    start = ["run", "--leave-running", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]
    pid = int(run_sandbox(start, as_user=who.as_user).stdout)
    rows = json.loads(run_sandbox(["ps", "--json"], as_user=who.as_user).stdout)
    (facts,) = [row for row in rows if row["home"] == str(area.home(who.as_user))]
    assert (facts["pid"], facts["tasks"]) == (None, None)
    refused = run_sandbox(["kill", facts["id"]], as_user=who.as_user)
    assert (refused.returncode, "supervisor" in refused.stderr) == (125, True)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not run_sandbox.left_procdirs())


@ROOT_ONLY
def test_root_sees_and_ends_everyones(run_sandbox, identities, area):
    user = Living(run_sandbox, "native", "userns")
    process = user.start("--name", "theirs")
    rows = json.loads(run_sandbox(["ps", "--json"], as_user=False).stdout)
    (facts,) = [row for row in rows if row["home"] == str(area.home(True))]
    assert (facts["name"], facts["uid"]) == ("theirs", identities[True].uid)
    assert run_sandbox(["ps"], as_user=False).returncode == 0
    # --all is one's own home, also for root.
    assert run_sandbox(["kill", "--all"], as_user=False).stdout == ""
    assert run_sandbox(["kill", facts["id"]], as_user=False).stdout == "theirs: ended\n"
    process.wait(20)


@ROOT_ONLY
def test_a_user_does_not_see_others(run_sandbox):
    process = Living(run_sandbox, "native", "root").start("--name", "rooted")
    assert json.loads(run_sandbox(["ps", "--json"], as_user=True).stdout) == []
    assert run_sandbox(["kill", "rooted"], as_user=True).returncode == 125
    assert run_sandbox(["kill", "rooted"], as_user=False).stdout == "rooted: ended\n"
    process.wait(20)


def forge(area, who, pid, **facts):
    """A record of this user's that says what it likes, locked by a process of the user's own: returned, with its id."""
    records = area.home(who.as_user) / "records"
    number = "0123456789abcdef" * 2
    record = {"id": number, "host": os.uname().nodename, "pid": pid, "command": ["sh"], "scratch": [], **facts}
    python = os.path.realpath(sys.executable)
    script = (
        f"import fcntl, time; f = open('{records}/{pid}'); fcntl.flock(f, 2); print('up', flush=True); time.sleep(1000)"
    )
    (records / f"{pid}").write_text(json.dumps(record) + "\n")
    os.chown(records / f"{pid}", who.uid, who.gid)
    process = subprocess.Popen([python, "-c", script], stdout=subprocess.PIPE, text=True, **who.popen_options())
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    return process, number


@ROOT_ONLY
@pytest.mark.leaves_procdirs
def test_a_forged_record_ends_nobody_else(run_sandbox, identities, area):
    """A user's record that means a process of root's: root who kills it must not kill that."""
    from sandbox import processes, records

    run_sandbox(["run", "true"], as_user=True, check=True)
    victim = subprocess.Popen(["sleep", "1000"])
    told = {
        "boot_id": records.boot_id(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "start_time": processes.start_of(victim.pid),
    }
    holder, number = forge(area, identities[True], victim.pid, **told)
    try:
        seen = json.loads(run_sandbox(["ps", "--json"], as_user=False).stdout)
        assert [row["pid"] for row in seen if row["id"] == number] == [None]
        for as_user in (False, True):
            assert run_sandbox(["kill", number], as_user=as_user).returncode == 125
        assert victim.poll() is None
    finally:
        for process in (victim, holder):
            process.kill()
            process.wait()


@pytest.mark.leaves_procdirs
def test_a_number_that_was_given_out_again_is_not_hit(run_sandbox, who, area):
    """A record whose pid is another process now: start time and boot say so."""
    from sandbox import processes, records

    run_sandbox(["run", "true"], as_user=who.as_user, check=True)
    victim = subprocess.Popen(["sleep", "1000"], **who.popen_options())
    told = {"boot_id": records.boot_id(), "pid_namespace": os.stat("/proc/self/ns/pid").st_ino}
    holder, number = forge(area, who, victim.pid, **told, start_time=processes.start_of(victim.pid) - 1)
    try:
        assert run_sandbox(["kill", number], as_user=who.as_user).returncode == 125
        assert victim.poll() is None
    finally:
        for process in (victim, holder):
            process.kill()
            process.wait()


@pytest.mark.parametrize("words", [["ps", "--watch", "0.1"], ["top", "--every", "0.1"]])
def test_it_is_shown_again_and_again(run_sandbox, who, words):
    process = run_sandbox.popen(words, as_user=who.as_user, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    titles = 0
    while titles < 3:
        line = process.stdout.readline()
        assert line, process.communicate()
        titles += line.startswith("id\tname\t")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


def test_damaged_records_are_passed_over(run_sandbox, who, area):
    run_sandbox(["run", "true"], as_user=who.as_user, check=True)
    records = area.home(who.as_user) / "records"
    (records / "junk").write_bytes(b"\xff{\x00")
    (records / "dir").mkdir()
    (records / "link").symlink_to("/etc/passwd")
    os.mkfifo(records / "fifo")
    for path in records.iterdir():
        os.chown(path, who.uid, who.gid, follow_symlinks=False)
    start = time.monotonic()
    done = run_sandbox(["ps", "--json"], as_user=who.as_user)
    assert done.returncode == 0
    assert str(area.home(who.as_user)) not in done.stdout
    assert time.monotonic() - start < 30
    for path in records.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
