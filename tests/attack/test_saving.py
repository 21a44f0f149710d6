"""A command that fills what is saved of it with whatever a file system can hold, and packers that are killed."""

import os
import signal
import subprocess

import pytest

from tests.e2e.test_layers import COMBINATIONS
from tests.support import archives
from tests.support.archives import Entry

_HOSTILE = r"""
import os, socket, stat
os.chdir(os.environ["SANDBOX_DYNAMIC"] + "/t")
open("setuid", "w").close(); os.chmod("setuid", 0o6755)
open("secret", "w").write("s"); os.chmod("secret", 0)
os.mkdir("locked"); open("locked/in", "w").write("i"); os.chmod("locked", 0)
os.unlink("fifo"); os.mkfifo("fifo")
os.unlink("socket"); socket.socket(socket.AF_UNIX).bind("socket")
os.symlink("/etc/shadow", "shadow"); os.symlink("../../../..", "up"); os.mkdir("d"); os.rename("d", "was\n\xff d")
open(b"\xff\xfe\n", "w").write("odd"); open("-rf", "w").close(); open(":+@", "w").close()
os.unlink("sub/x"); os.rmdir("sub"); os.symlink("/etc", "sub")
with open("sparse", "wb") as f: f.truncate(1 << 26); f.seek(1 << 25); f.write(b"x")
open("one", "w").write("1"); os.link("one", "two"); os.link("two", "d2")
try: os.setxattr("one", "user.overlay.opaque", b"y"); os.mkdir("o"); os.setxattr("o", "user.overlay.redirect", b"/etc")
except OSError: pass
try: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
except OSError: pass
"""
_LOOK = r"""
import os, stat
os.chdir(os.environ["SANDBOX_STATIC"] + "/t")
assert stat.S_IMODE(os.stat("setuid").st_mode) == 0o755
assert stat.S_IMODE(os.stat("secret").st_mode) == 0 and stat.S_IMODE(os.lstat("locked").st_mode) == 0
assert not any(map(os.path.lexists, ("fifo", "socket", "null")))
assert os.readlink("shadow") == "/etc/shadow" and os.readlink("up") == "../../../.." and os.readlink("sub") == "/etc"
assert open(b"\xff\xfe\n").read() == "odd" and os.path.exists("-rf") and os.path.exists(":+@")
assert os.path.isdir("was\n\xff d")
s = os.stat("sparse"); assert s.st_size == 1 << 26
f = open("sparse", "rb"); f.seek(1 << 25); assert f.read(2) == b"x\0"
assert open("one").read() == open("two").read() == "1"
assert open("keep").read() == "base"
print("as it should be")
"""


def source(area, who):
    tree = [Entry("keep", b"base"), Entry("fifo", b"f"), Entry("socket", b"s"), Entry("sub/x", b"x")]
    where = archives.make_tree(area.dir(who.as_user) / "base", tree)
    for path in [where, *where.rglob("*")]:
        os.chown(path, who.uid, who.gid)
    return where


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS)
def test_a_hostile_upper_is_saved_harmlessly(run_sandbox, identities, area, engine, mode, request):
    who = identities[mode != "root"]
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    run = ["run", "--engine", engine, "--mode", mode, "--max-unpacked", "1T"]
    run_sandbox(["image", "build", source(area, who), "-t", "base"], as_user=who.as_user, check=True)
    saves = ["--save", "t=delta", "--save-full", "t=all"]
    args = [*run, "-d", "t:@base", *saves, "--", "python3", "-"]
    run_sandbox(args, as_user=who.as_user, input=_HOSTILE, check=True)
    for tree in ("@base+@delta", "@all"):
        done = run_sandbox(["run", "-s", f"t:{tree}", "--", "python3", "-"], as_user=who.as_user, input=_LOOK)
        assert done.stdout == "as it should be\n", done.stderr


def test_a_killed_launcher_leaves_no_half_image_and_no_draft(run_sandbox, who, area):
    """The draft of a dead launcher is the reaper's, whatever is in it, and what was to be named is not."""
    run_sandbox(["image", "build", source(area, who), "-t", "base"], as_user=who.as_user, check=True)
    script = 'cd "$SANDBOX_DYNAMIC/t"; mkdir locked; chmod 0 locked; echo ready; exec sleep 1000'
    args = ["run", "-d", "t:@base", "--save", "t=no", "--", "sh", "-c", script]
    running = run_sandbox.popen(args, as_user=who.as_user, stdout=subprocess.PIPE)
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGKILL)
    running.wait()
    cache = area.home(who.as_user) / "cache"
    assert [name for name in os.listdir(cache) if name.startswith(".")]
    run_sandbox(["cache", "clean", "--now"], as_user=who.as_user, check=True)
    assert "no image @no" in run_sandbox(["run", "-s", "@no", "--", "true"], as_user=who.as_user).stderr


def test_more_than_the_limit_is_not_saved(run_sandbox, who, area):
    run_sandbox(["image", "build", source(area, who), "-t", "base"], as_user=who.as_user, check=True)
    script = 'head -c 3M /dev/zero > "$SANDBOX_DYNAMIC/t/large"'
    args = ["run", "-d", "t:@base", "--max-unpacked", "1M", "--save", "t=no", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=who.as_user)
    assert done.returncode == 125
    assert "cannot save @no" in done.stderr
    assert "more than 1.0 MiB" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [name for name in os.listdir(area.home(who.as_user) / "cache") if name.startswith(".")]
