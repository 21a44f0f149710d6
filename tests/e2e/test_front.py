"""The native front: what Python compiled once is started without Python, and only while it is still right.

A copy of the front beside a `sandbox-python` of our own shows who answers: that one says "python" and exits with 99.
"""

import os
import socket

import pytest

from sandbox import landlock, stored
from sandbox.engine import native
from sandbox.spec import Spec
from tests.conformance import strict
from tests.support import archives
from tests.support.archives import Entry
from tests.support.front import PYTHON, Front

pytestmark = pytest.mark.skipif(not native.available(), reason="the native programs were not built here (no cargo)")


def test_the_second_time_without_python(front):
    words = ["--env", "A=1", "--unset-env", "LANG", "--", "sh", "-c", 'echo "$A" "$LANG" "$SANDBOX_TMPDIR" "$@"', "-"]
    first = front.compile(*words, "one")
    assert (first.returncode, first.stdout.split()[0], first.stdout.split()[-1]) == (0, "1", "one")
    assert len(front.files()) == 1
    second = front.again(*words, "two")
    assert (second.returncode, second.stdout.split()[0], second.stdout.split()[-1]) == (0, "1", "two")
    assert "procdirs" in second.stdout
    # Another program, other arguments, the same launch; another value is another launch.
    assert front.again("--env", "A=1", "--unset-env", "LANG", "--", "true").returncode == 0
    assert front.again("--env", "A=2", "--unset-env", "LANG", "--", "true").returncode == PYTHON


def test_without_the_double_dash_the_command_belongs_to_the_key(front):
    front.compile("--env", "A=1", "echo", "one")
    assert front.again("--env", "A=1", "echo", "one").stdout == "one\n"
    assert front.again("--env", "A=1", "echo", "two").returncode == PYTHON


def test_the_end_is_the_commands(front):
    for script in ("exit 7", "kill -TERM $$", "exec nothing-of-that-name", "exec /etc/passwd"):
        words = ["--", "sh", "-c", script]
        first = front.compile(*words)
        again = front.again(*words)
        assert (again.returncode, again.stderr) == (first.returncode, first.stderr), script
    assert front.again("--", "nothing-of-that-name").returncode == 127
    assert "not found" in front.again("--", "nothing-of-that-name").stderr
    # What Python refuses without looking at anything.
    assert front.again("--", "").returncode == PYTHON


def test_without_a_python_that_can_be_started(front):
    python = front.alone.parent / "sandbox-python"
    for damage, says in ((lambda: python.chmod(0o644), "for all users"), (python.unlink, "is gone")):
        damage()
        done = front.again("--", "true")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert says in done.stderr


def test_the_environment_is_the_same(front):
    """Compared as a whole: all of the caller's, and what the words say."""
    words = ["-e", "A=1", "--env=B=x=y", "-eC=3", "--env", "INHERITED", "--unset-env", "GONE", "--", "env", "-0"]
    env = {"INHERITED": "here", "GONE": "x", "LC_ALL": "C", "EMPTY": ""}
    first, again = (run(*words, env=env) for run in (front.compile, front.again))
    assert again.returncode == 0
    outputs = [dict(item.split("=", 1) for item in run.stdout.split("\0") if item) for run in (first, again)]
    for variables in outputs:
        assert variables.pop("SANDBOX_TMPDIR").endswith("/tmp")
    assert outputs[0] == outputs[1]


def test_a_variable_without_a_name_is_dropped(front):
    """As Cygwin and Wine hand down, one for each drive. Python can start nothing with it."""
    words = ["--", "env"]
    for engine in ("python", "native"):
        done = front.compile("--engine", engine, *words, env={"": r"C:=C:\x"})
        assert (done.returncode, done.stderr) == (0, ""), engine
        assert "C:" not in done.stdout
    again = front.again("--engine", "native", *words, env={"": r"C:=C:\x"})
    assert (again.returncode, again.stderr) == (0, "")
    assert "C:" not in again.stdout


def test_no_value_is_stored(front):
    front.compile("--env", "TOKEN=s3cr3t-in-words", "--env", "PASSED", "--", "true", env={"PASSED": "s3cr3t-of-caller"})
    (file,) = front.files()
    assert b"s3cr3t" not in file.read_bytes()
    assert b"s3cr3t" not in os.fsencode(file.name)


def _root(front):
    strict.make_inputs(front.directory)
    return front.directory / "root.sfs"


# Needs a terminal, and a Python that stays.
UNTRIED = {"tty"}
# A launch with this field is compiled every time: words that set it.
NOT_STORED = {
    "env_files": lambda front: ["--env-file", front.file("variables", "A=1\n")],
    "mkdir": lambda front: ["--mkdir", "-s", f"{front.directory}/new:{front.image('m.sfs')}"],
    "user": lambda front: ["--isolation", "job", "--user", "4321"],
    "workspace": lambda front: ["--isolation", "job", "--workspace", "ro"],
    "seccomp": lambda front: ["--isolation", "job", "--seccomp", "none"],
    "report": lambda front: ["--report", front.directory / "report"],
    "status_fd": lambda front: ["--status-fd", "2"],
    "log": lambda front: ["--log", front.directory / "log"],
    "log_size": lambda front: ["--log-size", "5M"],
    "trace": lambda front: ["--trace", front.directory / "trace"],
    "keeps": lambda front: ["--isolation", "job", "--keep", f"artefact={front.directory}/kept"],
    "audit": lambda front: ["--isolation", "job", "--audit"],
    "workspace_unprotected": lambda front: ["--isolation", "job", "--workspace", "rw", "--workspace-unprotected"],
    "root": lambda front: ["--isolation", "strict", "--root", _root(front)],
    "root_ro": lambda front: ["--isolation", "strict", "--root", _root(front), "--root-ro"],
    "refinements": lambda front: ["--isolation", "job", "--tmpfs", "/opt"],
    "as_root": lambda front: ["--isolation", "job", "--as-root"],
    "require_mounts": lambda front: ["--require-mount", "/proc"],
    "name": lambda front: ["--name", "called"],
    "saves": lambda front: ["-d", f"t:{front.image('s.sfs')}", "--save", "t=saved"],
}


@pytest.mark.parametrize("level", ["job", "strict"])
def test_a_job_without_python(front, level):
    """With the caller's own variables, its account, and, started by root, a uid that no other job has."""
    script = (
        'id -u; echo "$USER $HOME $SECRET"; getent passwd $(id -u) | cut -d: -f3,6; grep Seccomp: /proc/self/status'
    )
    words = ["--isolation", level, "--env", "A=1", "--", "sh", "-c", script]
    env = {"SECRET": "s3cr3t"}
    for _ in range(50):  # a user that somebody else adds meanwhile is a reason to compile anew
        accounts = [os.stat(path).st_ino for path in ("/etc/passwd", "/etc/group")]
        runs = [front.compile(*words, env=env), *(front.again(*words, env=env) for _ in range(3))]
        if accounts == [os.stat(path).st_ino for path in ("/etc/passwd", "/etc/group")]:
            break
    assert [run.returncode for run in runs] == [0] * 4, runs[1].stderr
    uids = [run.stdout.split()[0] for run in runs]
    told = [run.stdout.replace(uid, "UID") for run, uid in zip(runs, uids, strict=True)]
    assert set(told) == {told[0]}
    assert "s3cr3t" not in told[0]
    assert "Seccomp:\t2" in told[0]
    if not front.who.as_user:
        assert len(set(uids)) == 4
        assert all(run.stdout.count(uid) == 2 for run, uid in zip(runs, uids, strict=True)), "the account as well"
    else:
        assert set(uids) == {str(front.who.uid)}
    assert front.again(*words, env=env, cwd="/usr").returncode == PYTHON


def test_what_is_kept_by_a_lock_is_not_stored(front):
    """Nobody but Python takes the lock that keeps a tree of the cache while it is used."""
    archives.make_zip(front.directory / "tree.zip", [Entry("file", b"x")])
    words = ["--mode", "userns", "--cache", "-d", f"t:{front.directory}/tree.zip", "--", "true"]
    first = front.compile(*words)
    assert first.returncode == 0, first.stderr
    kept = list((front.area.home(front.who.as_user) / "cache").glob("*.tree"))
    assert bool(kept) == (front.files() == [])


def test_limits_that_need_a_cgroup_are_compiled_every_time(front):
    front.compile("--isolation", "job", "--memory", "1G", "--limits", "best-effort", "--", "true")
    assert front.files() == []


def test_every_field_is_known_to_the_store_or_tried_here():
    """A new option is compiled every time until somebody says where its inputs are: in `stored`, or above."""
    assert set(Spec.fields) == stored.KNOWN | NOT_STORED.keys() | UNTRIED
    assert not stored.KNOWN & NOT_STORED.keys()


@pytest.mark.parametrize("field", NOT_STORED)
def test_not_stored(front, field):
    if field == "user" and front.who.as_user:
        pytest.skip("--user is root's")
    words = [*map(str, NOT_STORED[field](front)), "--", "sh", "-c", "touch artefact || :"]
    first = front.compile(*words)
    assert first.returncode == 0, first.stderr
    assert front.files() == []
    assert front.again(*words).returncode == PYTHON
    assert front.compile("--no-plan-cache", "--", "true").returncode == 0
    assert front.compile("--", "true", env={"SANDBOX_PLAN_CACHE": "0"}).returncode == 0
    assert front.files() == []


@pytest.mark.parametrize("level", ["none", "job"])
def test_a_fence_without_python(front, level):
    """It stands where the words say, and what is there now is what it lets through."""
    (front.directory / "open").mkdir()
    os.chown(front.directory / "open", front.who.uid, front.who.gid)
    words = ["--isolation", level, "--allow-read", "/", "--allow-write", "open"]
    script = "touch open/x && echo in; touch out/y 2>/dev/null || echo kept out"
    (front.directory / "out").mkdir(mode=0o777)
    (front.directory / "out").chmod(0o777)
    first = front.compile(*words, "--", "sh", "-c", script)
    assert (first.returncode, first.stdout) == (0, "in\nkept out\n"), first.stderr
    if landlock.remarks(Spec((b"x",)), landlock.probe()):
        assert front.files() == [], "a person is told of the gaps each time"
        return
    (front.directory / "open").rename(front.directory / "before")
    (front.directory / "open").mkdir()
    os.chown(front.directory / "open", front.who.uid, front.who.gid)
    again = front.again(*words, "--", "sh", "-c", script)
    assert (again.returncode, again.stdout) == (0, "in\nkept out\n"), again.stderr


def test_through_the_setuid_helper(run_sandbox, setuid_system, area, identities):
    run_sandbox.system = setuid_system
    front = Front(run_sandbox, identities[True], area)
    words = ["--mode", "setuid", "--env", "A=1", "--", "sh", "-c", 'echo "$A"; grep NoNewPrivs: /proc/self/status']
    first = front.compile(*words)
    assert (first.returncode, first.stdout.split()) == (0, ["1", "NoNewPrivs:", "1"]), first.stderr
    again = front.again(*words)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    run_sandbox.system = None  # where the helper is not installed
    assert front.again(*words).returncode == PYTHON


@pytest.mark.leaves_procdirs
def test_the_setuid_helper_dies_with_the_parent_where_the_front_was_to(run_sandbox, setuid_system, area, identities):
    run_sandbox.system = setuid_system
    front = Front(run_sandbox, identities[True], area)
    words = ["--mode", "setuid", "--", "sh", "-c"]
    assert front.compile(*words, "true").returncode == 0
    run_sandbox.command = "sh"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        shell = ["-c", '"$@" & read wait <&1', "sh", "setpriv", "--pdeathsig", "KILL", front.alone, "run", *words]
        process = run_sandbox.popen([*shell, "echo ready; read wait <&1"], as_user=front.who.as_user, stdout=theirs)
        theirs.close()
        assert ours.recv(99) == b"ready\n"
        process.kill()
        assert ours.recv(99) == b"", "nobody has the other end any more"


def test_the_store_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_MOST", 5)
    for number in range(9):
        (tmp_path / f"{number}").write_text("x")
        os.utime(tmp_path / f"{number}", (number + 10**9, number + 10**9))
    fd = os.open(tmp_path, os.O_RDONLY)
    assert stored.prune(fd, now=10**9 + 20, room=True) == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["5", "6", "7", "8"]
    assert stored.prune(fd, now=10**9 + 7 + 86400) == 2
    os.close(fd)
