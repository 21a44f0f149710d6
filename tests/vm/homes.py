"""Homes, caches and sources on the filesystems that people have them on; runs inside a machine (tests/vm/guest.py)."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import archives, setuid
from tests.support.archives import Entry
from tests.vm import matrix

# How it comes to {h}; what needs a disk has the file {f}, what needs layers the directory {l}.
_DISK = "truncate -s 400M {f}; mkfs.%s {f}; mount -o loop {f} {h}"
FILESYSTEMS = {
    "tmpfs": "mount -t tmpfs home {h}",
    "ext4": _DISK % "ext4 -q -F",
    "xfs": _DISK % "xfs -q",
    "btrfs": _DISK % "btrfs -q",
    "overlay": "mount -t tmpfs layers {l}; mkdir {l}/u {l}/w; "
    "mount -t overlay -o lowerdir={h},upperdir={l}/u,workdir={l}/w layers {h}",
    "noexec": "mount -t tmpfs -o noexec home {h}",
    "nosuid": "mount -t tmpfs -o nosuid,nodev home {h}",
}
TREE = [Entry("f", b"hello\n"), Entry.directory("sub"), Entry("sub/g", b"g\n"), Entry.program("tool", "echo ran")]
OPTIONS = ("--cache", "-s", "i:{d}/tree.sfs", "-s", "z:{d}/tree.zip", "-d", "d:{d}/tree", "-d", "a:{d}/tree.zip")
SCRIPT = """cd "$SANDBOX_STATIC" && cat i/f z/sub/g && z/tool && cd "$SANDBOX_DYNAMIC" &&
for at in d a; do (cd $at && rm -r sub && echo more >>f && cat f && ls && ./tool); done"""
# The working directory as workspace, and beside it as two trees.
JOB = ("--isolation", "job", "-s", "s:{d}/tree", "-d", "d:{d}/tree")
JOB_SCRIPT = """cat f && cat "$SANDBOX_STATIC/s/sub/g" && for at in . "$SANDBOX_DYNAMIC/d"; do
(cd "$at" && rm -r sub && echo more >>f && cat f && ls && ./tool); done"""
# Filesystems whose files the kernel shows as nobody else's, so that a job of root's writes to a copy: before Linux 6.3.
COPIED = ("tmpfs", "overlay", "noexec", "nosuid")
WRITTEN = "hello\nmore\nf\ntool\nran\n"


@pytest.fixture(scope="module")
def homes(session_area: Path):
    """All of them, mounted before the system of mode setuid is made, which would not see them otherwise."""
    with contextlib.ExitStack() as undo:
        for name, script in FILESYSTEMS.items():
            where, layers, disk = (session_area / f"{what}-{name}" for what in ("on", "layers", "disk"))
            where.mkdir()
            layers.mkdir()
            if name == "overlay":
                # Of two filesystems: its files have other devices than its directories.
                _fill(where)
            subprocess.run(["sh", "-ec", script.format(h=where, l=layers, f=disk)], check=True)
            gone = f"umount {where}; umount {layers} 2>/dev/null; rm -r {where}; rmdir {layers}; rm -f {disk}"
            undo.callback(subprocess.run, gone, shell=True, check=True)
            where.chmod(0o1777)
            if name != "overlay":
                _fill(where)
        yield session_area


def _fill(where: Path) -> None:
    archives.make_squashfs(where / "tree.sfs", TREE)
    archives.make_zip(where / "tree.zip", TREE)
    archives.make_tree(where / "tree", TREE)


@pytest.fixture(scope="module")
def system(homes, identities, installed, session_area):
    with setuid.installed(identities, installed, session_area / "homes-system") as made:
        yield made


@pytest.mark.parametrize("mode", matrix.MODES)
@pytest.mark.parametrize("name", FILESYSTEMS)
def test_home(homes, name, mode, run_sandbox, request):
    """Everything in one launch, and again with what was kept."""
    where = homes / f"on-{name}"
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("system")
    own = where / f"home-{mode}"
    env = {"SANDBOX_HOME": str(own)}
    filled = [option.replace("{d}", str(where)) for option in OPTIONS]
    try:
        for _ in range(2):
            done = run_sandbox(
                ["run", "--mode", mode, *filled, "--", "sh", "-c", SCRIPT], as_user=mode != "root", env=env
            )
            assert (done.stdout, done.returncode) == ("hello\ng\nran\n" + WRITTEN * 2, 0), done.stderr
    finally:
        subprocess.run(["rm", "-rf", own], check=True)
        assert not os.path.exists(own)


@pytest.mark.parametrize("mode", matrix.MODES)
@pytest.mark.parametrize("name", FILESYSTEMS)
def test_job(homes, name, mode, run_sandbox, request):
    """An isolated job in a directory there; what it changes is gone."""
    where = homes / f"on-{name}"
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("system")
    filled = [option.replace("{d}", str(where)) for option in JOB]
    job = ["run", "--mode", mode, *filled, "--", "sh", "-c", JOB_SCRIPT]
    done = run_sandbox(job, as_user=mode != "root", cwd=where / "tree")
    assert (done.stdout, done.returncode) == ("hello\ng\n" + WRITTEN * 2, 0), done.stderr
    assert (where / "tree/f").read_text() == "hello\n"


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_job_that_writes(homes, name, run_sandbox, record_property):
    """Through to the directory, as root: where the kernel cannot, that is one line."""
    where = homes / f"on-{name}/tree"
    words = ["run", "--isolation", "job", "--workspace", "rw", "--", "sh", "-c", "echo x >new"]
    done = run_sandbox(words, as_user=False, cwd=where)
    if name in COPIED:
        record_property("line", done.stderr.strip())
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
        assert f"cannot show {where} as a job's own: it is on a filesystem that cannot be id-mapped" in done.stderr
        return
    assert (done.stderr, done.returncode) == ("", 0)
    assert ((where / "new").read_text(), (where / "new").stat().st_uid) == ("x\n", 0)
    (where / "new").unlink()
