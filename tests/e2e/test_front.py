"""The native front: what Python compiled once is started without Python, and only while it is still right.

A copy of the front beside a `sandbox-python` of our own shows who answers: that one says "python" and exits with 99.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import newroot, stored
from sandbox.engine import native
from sandbox.spec import Spec
from tests.conformance import strict
from tests.support import archives
from tests.support.archives import Entry

pytestmark = pytest.mark.skipif(not native.available(), reason="the native programs were not built here (no cargo)")
PYTHON = 99


class Front:
    """The command as installed (`compile`), and the front alone (`again`)."""

    def __init__(self, run_sandbox, who, area):
        self.run, self.who, self.area = run_sandbox, who, area
        self.full = run_sandbox.command
        self.directory = area.dir(who.as_user)
        self.alone = area.path / "alone" / "sandbox"
        self.alone.parent.mkdir()
        shutil.copy(self.full, self.alone)
        fake = self.alone.parent / "sandbox-python"
        fake.write_text(f"#!/bin/sh\necho python\nexit {PYTHON}\n")
        fake.chmod(0o755)

    def compile(self, *words, **options):
        self.run.command = self.full
        return self.run(["run", *words], as_user=self.who.as_user, **options)

    def again(self, *words, **options):
        self.run.command = self.alone
        return self.run(["run", *words], as_user=self.who.as_user, **options)

    def files(self):
        directory = self.area.home(self.who.as_user) / "plans"
        return sorted(directory.iterdir()) if directory.exists() else []

    def file(self, name, text="x"):
        path = self.directory / name
        path.write_text(text)
        os.chown(path, self.who.uid, self.who.gid)
        return path

    def image(self, name, text="one"):
        made = archives.make_squashfs(self.area.path / f"{name}.new", [Entry("file", text.encode())])
        return os.replace(made, self.directory / name) or self.directory / name


@pytest.fixture(name="front")
def _front(run_sandbox, who, area):
    area.home(who.as_user)
    return Front(run_sandbox, who, area)


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


def test_no_value_is_stored(front):
    front.compile("--env", "TOKEN=s3cr3t-in-words", "--env", "PASSED", "--", "true", env={"PASSED": "s3cr3t-of-caller"})
    (file,) = front.files()
    assert b"s3cr3t" not in file.read_bytes()
    assert b"s3cr3t" not in os.fsencode(file.name)


def _changes(front):
    """For each option: its words, and what changes one of its inputs."""
    other = front.area.path / "other"

    def replace_directory(path):
        path.rename(path.with_name(path.name + ".old"))
        path.mkdir()
        os.chown(path, front.who.uid, front.who.gid)

    for name in ("mounted", "scratch", "tree"):
        replace_directory_now = front.directory / name
        replace_directory_now.mkdir()
        os.chown(replace_directory_now, front.who.uid, front.who.gid)
    other.mkdir()
    image = front.image("image.sfs")
    front.image("above.sfs", "above")
    at = front.directory
    yield "static", ["-s", f"n:{image}"], lambda: front.image("image.sfs", "two"), {}
    yield "dynamic", ["-d", f"n:{at}/tree"], lambda: replace_directory(at / "tree"), {}
    yield "whole name", ["-s", "m:image.sfs"], lambda: front.image("m:image.sfs"), {}
    yield "layers", ["-s", "m:image.sfs+above.sfs"], lambda: front.file("image.sfs+above.sfs"), {}
    yield "absolute name", ["-s", f"{at}/mounted:{image}"], lambda: replace_directory(at / "mounted"), {}
    yield "scratch", ["--scratch", f"{at}/scratch"], lambda: replace_directory(at / "scratch"), {}
    yield "relative source", ["-s", "./image.sfs"], lambda: None, {"cwd": other}
    yield "relative chdir", ["--chdir", "tree"], lambda: None, {"cwd": other}
    yield "variable", ["--env", "CONSULTED"], lambda: None, {"env": {"CONSULTED": "2"}}
    yield "switched off", ["--tmpfs-size", "1M"], lambda: None, {"env": {"SANDBOX_PLAN_CACHE": "0"}}
    yield "in a sandbox", ["--tmpfs-size", "2M"], lambda: None, {"env": {"SANDBOX_TMPDIR": "/nonexistent"}}


def test_changed_inputs_are_compiled_anew(front):
    base = {"CONSULTED": "1"}
    for what, words, change, options in _changes(front):
        first = front.compile(*words, "--", "true", env=base)
        assert first.returncode == 0, (what, first.stderr)
        assert front.again(*words, "--", "true", env=base).returncode == 0, what
        change()
        later = {"env": base, **options}
        assert front.again(*words, "--", "true", **later).returncode == PYTHON, what


@pytest.mark.parametrize("level", ["none", "job", "strict"])
def test_whatever_compiling_looks_at_is_a_condition(front, level):
    """Every path of the host that Python looks at for a launch, as strace sees it, stands in the stored file."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    at, log = front.directory, front.area.path / "log"
    (at / "mounted").mkdir()
    image = front.image("image.sfs")
    words = [
        "--isolation",
        level,
        "--mode",
        "userns" if front.who.as_user else "root",
        "-s",
        f"{at}/mounted:{image}",
        "-s",
        f"n:{image}",
    ]
    words += ["--tmpfs-size", "9M", "--chdir", "n", "--env", "PATH", "--", "true"]
    env = front.run.environment(front.who.as_user)
    command = [
        "strace",
        "-f",
        "-y",
        "-e",
        "trace=%file",
        "-e",
        "status=successful",
        "-o",
        log,
        front.full,
        "run",
        *words,
    ]
    log.write_text("")
    log.chmod(0o666)
    assert front.compile(*words).returncode == 0  # the home is there, and Python's byte code
    (file,) = front.files()
    file.unlink()
    done = subprocess.run(command, env=env, cwd=at, **front.who.popen_options(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = front.files()
    stored_bytes = file.read_bytes()
    compiling = log.read_text().split('/bin/sandbox-engine"', 2)[0].splitlines()
    own = (str(front.full.parents[1]), sys.base_prefix, str(front.area.home(front.who.as_user)))
    own += (str(Path(stored.__file__).parents[1]),)
    # Who one is, the locale, the loader's and Python's own; /proc/self is this very process.
    own += (
        "/etc/ld.so",
        "/lib",
        "/usr/lib",
        "/proc/self",
        "/proc/sys/kernel/random/boot_id",
        "/etc/passwd",
        "/etc/group",
    )
    own += (
        "/etc/nsswitch.conf",
        "/etc/localtime",
        "/dev/null",
        "/dev/fuse",  # a plan that wants it fails without it, and is compiled anew
        str(front.full.parent),
        "/usr/bin/python",
        "/bin/python",
    )
    looked_at = {path for line in compiling for path in re.findall(r'\((?:AT_FDCWD<[^>]*>, )?"(/[^"]+)"', line)}
    assert str(image) in looked_at
    forgotten = [path for path in looked_at if not path.startswith(own) and path.encode() not in stored_bytes]
    assert [path for path in forgotten if not str(at).startswith(path)] == []


def test_names_of_images(front, run_sandbox):
    for text in ("one", "two"):
        front.run.command = front.full
        built = run_sandbox(
            ["image", "build", str(front.image("i.sfs", text)), "-t", "name"], as_user=front.who.as_user
        )
        assert built.returncode == 0, built.stderr
        words = ["-s", "n:@name", "--", "sh", "-c", "cat $SANDBOX_STATIC/n/file"]
        assert front.again(*words).returncode == PYTHON
        assert front.compile(*words).stdout == text
        assert front.again(*words).stdout == text


def test_other_rights_are_compiled_anew(front):
    if front.who.as_user:
        pytest.skip("root can change its groups and capabilities")
    front.compile("--", "true")
    env = front.run.environment(False)
    command = [front.alone, "run", "--", "true"]
    for change in (["--groups", "12345"], ["--bounding-set", "-sys_admin"], []):
        done = subprocess.run(["setpriv", *change, "--", *command], env=env, capture_output=True, check=False)
        assert done.returncode == (PYTHON if change else 0), (change, done)


def _patched(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def test_another_boot_another_day(front):
    front.compile("--", "true")
    (file,) = front.files()
    good = file.read_bytes()
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    deadlines = [
        t for t in range(int(time.time()) - 60, int(time.time()) + 700) if b"\x09" + t.to_bytes(8, "little") in good
    ]
    assert len(deadlines) == 1
    for old, new in (
        (boot, boot[::-1]),
        (deadlines[0].to_bytes(8, "little"), int(time.time() - 1).to_bytes(8, "little")),
    ):
        file.write_bytes(_patched(good, old, new))
        assert front.again("--", "true").returncode == PYTHON
    file.write_bytes(good)
    assert front.again("--", "true").returncode == 0


def test_a_damaged_file_is_python(front):
    """Every length and a change of every byte before the plan: never a crash, never another command."""
    front.compile("--env", "A=1", "--", "echo", "ran")
    (file,) = front.files()
    good = file.read_bytes()
    step = 1 if os.environ.get("SANDBOX_SOAK") else 29
    for cut in range(0, len(good), step):
        file.write_bytes(good[:cut])
        done = front.again("--env", "A=1", "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (PYTHON, "python\n"), cut
    for at in range(0, len(good), step):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        done = front.again("--env", "A=1", "--", "echo", "ran")
        assert done.returncode in (0, PYTHON, 126, 127), (at, done)


def test_what_others_could_have_written_is_not_read(front):
    if front.who.as_user:
        pytest.skip("root can write files of others")
    front.compile("--", "true")
    (file,) = front.files()
    for break_it, mend in (
        (lambda: file.chmod(0o622), lambda: file.chmod(0o600)),
        (lambda: os.chown(file, 12345, 0), lambda: os.chown(file, 0, 0)),
        (lambda: file.parent.chmod(0o777), lambda: file.parent.chmod(0o700)),
        (lambda: os.chown(file.parent, 12345, 0), lambda: os.chown(file.parent, 0, 0)),
        (lambda: file.parent.parent.chmod(0o777), lambda: file.parent.parent.chmod(0o700)),
    ):
        break_it()
        assert front.again("--", "true").returncode == PYTHON
        mend()
        assert front.again("--", "true").returncode == 0
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")
    assert front.again("--", "true").returncode == PYTHON


def test_a_plan_that_fails_is_compiled_once_more(front):
    """A home that is another directory: the conditions hold, the plan does not. Nothing is said of it."""
    front.compile("--", "true")
    home = front.area.home(front.who.as_user)
    shutil.copytree(home, moved := home.with_name("copy"))
    if not front.who.as_user:
        home.rename(home.with_name("first"))
        moved.rename(home)
    else:
        for path in (moved, *moved.rglob("*")):
            os.chown(path, front.who.uid, front.who.gid)
        home.rename(home.with_name("first"))
        moved.rename(home)
    failed = front.again("--", "true")
    assert (failed.returncode, failed.stderr) == (PYTHON, "")
    assert front.files() == []
    again = front.compile("--", "echo", "ran")
    assert (again.stdout, again.stderr) == ("ran\n", "")
    assert front.again("--", "true").returncode == 0


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
    "allow_read": lambda front: ["--allow-read", "/"],
    "allow_write": lambda front: ["--allow-write", "/"],
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


def test_what_a_new_root_is_made_of(front):
    """Every part of the host's that is in it is a condition, there or not; one that is replaced, Python sees anew."""
    words = ["--isolation", "strict", "--net", "host", "--", "cat", "/etc/resolv.conf"]
    assert front.compile(*words).returncode == 0
    (file,) = front.files()
    data = file.read_bytes()
    names = newroot.NAMES if front.who.as_user else ()
    assert [path for path in (*newroot.PARTS, *names, newroot.RESOLVER) if path not in data] == []
    if front.who.as_user:
        return
    assert front.again(*words).returncode == 0
    inner = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"']
    env = front.run.environment(False)
    for part in filter(os.path.exists, ("/etc/ld.so.cache", "/etc/resolv.conf")):
        command = [*inner, "/etc/hostname", part, front.alone, "run", *words]
        done = subprocess.run(command, env=env, cwd=front.directory, capture_output=True, check=False)
        assert done.returncode == PYTHON, (part, done)


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
