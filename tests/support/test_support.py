"""The helpers themselves: a fixture that lies makes every test above it lie."""

import os
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.support import archives, leaks, users
from tests.support.archives import Entry

SAMPLE = [
    Entry.directory("top"),
    Entry("top/file", b"content"),
    Entry.program("top/program", "echo hello"),
    Entry.symlink("top/link", "file"),
]


def test_identity_is_what_it_says(user):
    options = user.popen_options()
    done = subprocess.run(["id", "-u"], capture_output=True, text=True, **options)
    groups = subprocess.run(["id", "-G"], capture_output=True, text=True, **options)
    assert int(done.stdout) == user.uid != 0
    assert set(map(int, groups.stdout.split())) == {user.gid, *user.groups}


def test_directories_belong_to_the_identity(area, who):
    assert area.dir(who.as_user).stat().st_uid == who.uid
    done = subprocess.run(["test", "-w", str(area.dir(who.as_user))], **who.popen_options())
    assert done.returncode == 0


def test_zip_holds_the_entries(area):
    path = archives.make_zip(area.path / "a.zip", SAMPLE)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["top/", "top/file", "top/program", "top/link"]
        assert archive.getinfo("top/program").external_attr >> 16 == 0o100755
        assert archive.read("top/link") == b"file"


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x00b", b"../up", b"/abs", b"new\nline"])
def test_zip_keeps_names_as_they_are(area, name):
    path = archives.make_zip(area.path / "a.zip", [Entry(name, b"x")])
    assert path.read_bytes().count(name) == 2


@pytest.mark.parametrize("compression", ["", "gzip", "bzip2", "xz", "zstd"])
def test_tar_in_every_compression(area, compression):
    path = archives.make_tar(area.path / "a.tar", SAMPLE, compression=compression)
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["top/", "top/file", "top/program", "top/link"]


def test_tar_with_what_no_packer_would_write(area):
    path = archives.make_tar(area.path / "a.tar", [Entry(b"../\xff"), Entry("null", kind="chardev", mode=0o666)])
    with tarfile.open(path, errors="surrogateescape") as archive:
        assert archive.getnames() == ["../\udcff", "null"]
        assert archive.getmember("null").devmajor == 1


def test_squashfs_holds_owners_and_modes(area):
    image = archives.make_squashfs(area.path / "a.sfs", [*SAMPLE, Entry("suid", b"x", mode=0o4755)])
    listed = subprocess.run(["unsquashfs", "-lln", image], capture_output=True, text=True, check=True).stdout
    assert "-rwsr-xr-x 0/0" in listed
    assert "top/link -> file" in listed


def test_leaks_are_seen(area, user):
    uid = user.uid if os.geteuid() == 0 else None
    before = leaks.Snapshot.take(area.path, uid)
    process = subprocess.Popen(["sleep", "60"], **user.popen_options())
    try:
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        new = before.new_in(leaks.Snapshot.take(area.path, uid))
    finally:
        process.kill()
        process.wait()
    assert new == [f"processes: {process.pid} sleep 60"]
    assert leaks.appeared_since(before, area.path, uid) == []


def test_processes_are_found_by_uid(user):
    process = subprocess.Popen(["sleep", "60"], **user.popen_options())
    try:
        assert process.pid in users.processes_of(user.uid)
    finally:
        process.kill()
        process.wait()
