"""A job that wants more of --keep than its artefacts: to be followed out, waited for, or to fill disks."""

import os

import pytest

from tests.support import jobs

SECRET = "secret\n"
# What the job makes, and what is said of it. Nothing of it may come out.
HOSTILE = {
    "a link in place of it": ("ln -s {secret} out", "symbolic links"),
    "a link on the way": ("mkdir d && ln -s {parent} d/l", "symbolic links"),
    "a FIFO": ("mkfifo out", "neither a file nor a directory"),
    "a socket": ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"out\")'", "neither a file nor"),
    "a hole without end": ("truncate -s 1T out", "larger than --tmpfs-size"),
    "many names of one file": (
        "mkdir out && truncate -s 60M out/0 && for n in 1 2 3 4 5 6 7 8 9; do ln out/0 out/$n; done",
        "larger than --tmpfs-size",
    ),
    "a tree without end": ("python3 -c '{deep}'", "nested deeper than"),
    "what nobody may read": ("mkdir out && echo x > out/f && chmod 0 out/f", "Permission denied"),
    "a device": ("exit 0", "neither a file nor a directory"),
    "a way up": ("exit 0", "it leads out of the working directory"),
}
SOURCES = {"a link on the way": "d/l/secret", "a device": "/dev/zero", "a way up": "../out"}
DEEP = """
import os
os.mkdir("out"); os.chdir("out")
for _ in range(300): os.mkdir("d"); os.chdir("d")
"""

# Two names change places for as long as anything of the job lives; one of them leads to what it may not have.
RACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.mkdir("out"); open("out/secret", "w").write("own\\n")
os.mkdir("out/sub"); open("out/sub/secret", "w").write("own\\n")
os.symlink(sys.argv[1], "link"); os.symlink(sys.argv[1], "out/link")
def swap(one, other): libc.renameat2(-100, one, -100, other, 2)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: swap(b"out/sub", b"out/link"); swap(b"out", b"link")
    os._exit(0)
os.wait()
import time; time.sleep(0.05)
"""


@pytest.fixture
def secret(launch, area):
    """A file that the user could read and the job has no business with, in a directory that the level hides."""
    path = area.dir(launch.as_user) / "hidden"
    path.mkdir()
    (path / "secret").write_text(SECRET)
    return path / "secret"


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_comes_out(launch, area, secret, name):
    jobs.spare_python(launch)
    script, said = HOSTILE[name]
    script = script.replace("{secret}", str(secret)).replace("{parent}", str(secret.parent)).replace("{deep}", DEEP)
    source = SOURCES.get(name, "out")
    kept = area.dir(launch.as_user) / "kept"
    done = launch("--tmpfs-size", "256M", "--keep", f"{source}=kept", "--", "sh", "-c", script)
    assert done.returncode == 125, done.stderr
    assert "cannot keep" in done.stderr
    assert said in done.stderr
    assert not os.path.lexists(kept)
    assert not [entry for entry in os.listdir(kept.parent) if entry.startswith(".tmp-")]


def test_a_race_is_won_by_nobody(launch, area, secret):
    """Survivors of the command are dead before anything is copied: what is kept is whole, and the job's own."""
    own = area.dir(launch.as_user)
    for number in range(4 * int(os.environ.get("SANDBOX_SOAK", "1"))):
        keep = f"out=kept{number}"
        launch("--keep", keep, "--", "/usr/bin/python3", "-c", RACE, str(secret.parent))
        for place, _directories, files in os.walk(own / f"kept{number}"):
            for file in files:
                with open(os.path.join(place, file)) as copy:
                    assert copy.read() == "own\n"


def test_root_keeps_what_the_job_could_read(launch, area):
    """A hard link is another name for a file that only root may read: root copies with the job's rights."""
    if launch.mode != "root":
        pytest.skip("only root has more rights than its job")
    closed = area.dir(as_user=False) / "closed"
    closed.write_text(SECRET)
    closed.chmod(0o600)
    os.chown(closed, 12345, 12345)
    for script, source in (("mkdir out; ln closed out/f || cp /etc/hostname out/f", "out"), ("true", "closed")):
        done = launch("--keep", f"{source}=kept", "--", "sh", "-c", script)
        kept = area.dir(as_user=False) / "kept"
        if kept.exists():
            assert (kept / "f").read_text() != SECRET
        else:
            assert "Permission denied" in done.stderr
    assert not (area.dir(as_user=False) / "kept").is_file()
