"""The power fails: after every system call of publish, switch and delete, what is on the "disk" by then is mounted.

The store is on a file system on a loop device. The file behind it is copied, without a sync, after every call: that is
what a disk would hold if nothing but the writes so far had reached it. Each copy must mount, and show a store in which
every name is absent, or complete with the right digest; once the call that makes it durable has returned, the name
is there. Mounts are in a namespace of their own.
"""

import hashlib
import os
import shutil
import subprocess
import traceback

import pytest

from sandbox import fsops
from sandbox.engine import syscalls
from tests.support import killing

IMAGE = os.urandom(300_000)
DIGEST = hashlib.sha256(IMAGE).hexdigest().encode()
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], 16),
    "xfs": (["mkfs.xfs", "-q"], 300),
    "btrfs": (["mkfs.btrfs", "-q"], 120),
}


def publish(fd):
    with fsops.Draft(fd) as draft:
        os.write(draft.fd, IMAGE)
        draft.publish(b"new.sfs")


def replace(fd):
    fsops.replace_file(fd, b"note", b"new" * 1000, durable=True)


def switch(fd):
    fsops.switch_name(fd, b"name", b"second.sfs")


def delete(fd):
    with fsops.closing(os.open(b"second.sfs", os.O_RDONLY, dir_fd=fd)) as expected:
        assert fsops.delete_file(fd, b"second.sfs", expected=expected)


QUICK = {("ext4", "publish"), ("ext4", "switch_name")}
OPERATIONS = {"publish": publish, "replace_file": replace, "switch_name": switch, "delete_file": delete}


def begin(fd):
    """A store with two images, a name and a note, all of it on the disk."""
    for name in (b"first.sfs", b"second.sfs"):
        with fsops.closing(fsops.new_file(fd, name)) as file:
            os.write(file, IMAGE)
    fsops.switch_name(fd, b"name", b"first.sfs")
    fsops.replace_file(fd, b"note", b"old" * 1000)
    syscalls.syncfs(fd)


def look(where, operation, *, done):
    """What a boot after the power failed finds."""
    found = {name for name in os.listdir(where) if not name.startswith((".tmp-", "lost+found"))}
    if operation != "delete_file":
        assert "second.sfs" in found
    for name in found:
        if name.endswith(".sfs"):
            data = (where / name).read_bytes()
            assert hashlib.sha256(data).hexdigest().encode() == DIGEST, f"{name}: {len(data)} bytes, not the image"
    assert (where / "note").read_bytes() in (
        [b"new" * 1000] if done and operation == "replace_file" else [b"old" * 1000, b"new" * 1000]
    )
    assert os.readlink(where / "name") in (
        ["second.sfs"] if done and operation == "switch_name" else ["first.sfs", "second.sfs"]
    )
    if operation == "publish" and done:
        assert "new.sfs" in found, "it was published, and is not there"


class Disk:
    """A file system on a loop device over a file; to be used in a mount namespace of its own."""

    def __init__(self, where, kind):
        self.where, self.kind = where, kind
        self.file, self.point, self.other = where / "disk", where / "mnt", where / "after"
        command, size = FILE_SYSTEMS[kind]
        for directory in (self.point, self.other):
            directory.mkdir()
        with open(self.file, "wb") as file:
            file.truncate(size << 20)
        subprocess.run([*command, str(self.file)], check=True, stdout=subprocess.DEVNULL)

    def fresh(self):
        """Mounted anew, as it was made."""
        copy = self.where / "run"
        self.copy(self.file, copy)
        self.mount(copy, self.point)
        return copy

    @staticmethod
    def copy(source, target):
        # Sparse: most of a new file system is holes.
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)

    @staticmethod
    def mount(file, point):
        subprocess.run(["mount", "-o", "loop", file, point], check=True)

    @staticmethod
    def unmount(point):
        subprocess.run(["umount", "-d", point], check=True)


def power_fails(disk, operation):
    """Every call of the operation: stop there, copy the disk as it is, look at the copy. How many there were."""
    snapshot = disk.where / "snapshot"
    for stop in range(1, 1000):
        run = disk.fresh()
        try:
            fd = os.open(disk.point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                begin(fd)
                ending = killing.run(lambda fd=fd: OPERATIONS[operation](fd), kill_at=stop)
                disk.copy(run, snapshot)
            finally:
                os.close(fd)
        finally:
            disk.unmount(disk.point)
        disk.mount(snapshot, disk.other)
        try:
            look(disk.other, operation, done=not ending.killed and operation != "delete_file")
        finally:
            disk.unmount(disk.other)
        if not ending.killed:
            return stop
    raise AssertionError("it never ended")


def in_namespace(act):
    """`act` in a child with mounts of its own; what it raises is text here."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)
            os.write(writer, str(act()).encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def skip_unless_possible(kind):
    if os.geteuid() != 0:
        pytest.skip("mounting a file system is root's")
    if shutil.which(FILE_SYSTEMS[kind][0][0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"no {FILE_SYSTEMS[kind][0][0]} here")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_the_power_fails_at_every_call(kind, operation, area):
    skip_unless_possible(kind)
    if (kind, operation) not in QUICK and "SANDBOX_SOAK" not in os.environ:
        pytest.skip("the other file systems and operations are tried in make soak")
    disk = Disk(area.path, kind)
    said = in_namespace(lambda: power_fails(disk, operation))
    assert said.isdigit(), said
    print(f"POWER {kind} {operation}: at each of {said} system calls")


def without_fsync(which):
    """os.fsync that leaves out its n-th call of each process: what a forgotten line would be."""
    real, calls = os.fsync, []

    def fsync(fd):
        calls.append(fd)
        if len(calls) != which:
            real(fd)

    os.fsync = fsync


@pytest.mark.parametrize("which", [1, 2], ids=["the file's", "the directory's"])
def test_a_forgotten_fsync_is_noticed(which, area):
    """The check can fail: without either of publish's two the image is not there, or not whole, after the power cut."""
    skip_unless_possible("ext4")
    disk = Disk(area.path, "ext4")

    def mutated():
        original = OPERATIONS["publish"]

        def act(fd):
            without_fsync(which)
            original(fd)

        OPERATIONS["publish"] = act
        return power_fails(disk, "publish")

    assert ("not the image", "is not there")[which - 1] in in_namespace(mutated)
