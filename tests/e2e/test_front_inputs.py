"""What a stored launch was made of is looked at each time: with another, Python is asked again."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import landlock, newroot, stored
from sandbox.engine import native
from sandbox.spec import Spec
from tests.support.front import PYTHON

pytestmark = pytest.mark.skipif(not native.available(), reason="the native programs were not built here (no cargo)")


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
    if not landlock.remarks(Spec((b"x",)), landlock.probe()):
        yield "relative fence", ["--allow-write", "tree"], lambda: None, {"cwd": other}
        yield "another fence", ["--allow-read", "/", "--allow-write", "./tree"], lambda: None, {"cwd": other}
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
        "/proc/sys/user/max_user_namespaces",  # the same
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
