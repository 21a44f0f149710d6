"""Loop devices and images of somebody else: none is reached by the name of one's own, or by a descriptor that reads
nothing; and an image that somebody can write to is not root's.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from sandbox.level_steps import Bind
from sandbox.plan import Attach, Image, Mkdir
from tests.attack.test_setuid_races import secret_tree
from tests.support.helper import IMAGES, TRUSTED, settled
from tests.support.launcher import at, below, squashfs

WAYS = ("a descriptor", "a mapping")
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
SHOWN = (Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7))


def device_of(process):
    """What a launch says that has its image at $T/s."""
    line = process.stdout.readline()
    assert line.startswith("/dev/loop"), process.stderr.read()
    return Path(line.strip())


def running(helper, image):
    """A launch that stays, and the device of its image."""
    script = "grep -o '/dev/loop[0-9]*' /proc/self/mountinfo | head -n 1; read x"
    process = helper.start(helper.plan(*SHOWN, sources=(image,)), "sh", "-c", script, stdin=subprocess.PIPE)
    return process, device_of(process)


@pytest.mark.parametrize("what", ["a device of somebody else", "the null device", "a file"])
def test_a_loop_device_that_another_one_covers(helper, what):
    """The kernel is told `/dev/loopN`, and found what a plan had bound there."""
    secret = squashfs(secret_tree(helper), helper.area / "secret.sfs")
    secret.chmod(0o600)
    attach = ["losetup", "--find", "--show", "--read-only", secret]
    victim = Path(subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip())
    image = helper.roots_source()
    process, own = running(helper, image)
    try:
        over = {"a device of somebody else": victim, "the null device": Path("/dev/null"), "a file": helper.tree / "f"}
        there = over[what].stat()
        bound = Bind(5, at(over[what]).replace(dev=there.st_dev, ino=there.st_ino))
        plan = helper.plan(bound, Attach(5, at(own), 0), *SHOWN, sources=(image,))
        helper.refused(plan, "before anything is mounted over /dev")
        # What is over another device is in nobody's way.
        plan = helper.plan(bound, Attach(5, at(victim), 0), *SHOWN, sources=(image,))
        helper.check(plan, "cat $T/s/f", "hello\n")
    finally:
        process.communicate("\n")
        subprocess.run(["losetup", "--detach", victim], check=True)
    assert settled(helper) == []


@pytest.mark.parametrize("how", [os.O_PATH, os.O_WRONLY], ids=["a name", "write-only"])
def test_a_descriptor_that_reads_nothing(helper, how):
    """Anybody opens the name of a file that he may not read, and the device that somebody had of it was found."""
    path = helper.roots_image()
    process, _ = running(helper, helper.source(path))
    path.chmod(0o600)
    image = helper.source(path)
    helper.refused(helper.plan(*SHOWN, sources=(image,)), "Permission denied")
    fd = os.open(path, how)
    helper.refused(helper.plan(*SHOWN, sources=(image,)), "without the right to read it", fds={0: fd})
    os.close(fd)
    # Who could open it may hand it to whom he likes.
    fd = os.open(path, os.O_RDONLY)
    code, out, err = helper.run(helper.plan(*SHOWN, sources=(image,)), "sh", "-c", "cat $T/s/f", fds={0: fd})
    os.close(fd)
    process.communicate("\n")
    assert (code, out, err) == (0, "hello\n", "")
    assert settled(helper) == []


@contextlib.contextmanager
def written(helper, path, way):
    """An image of root's that its former owner can still write to, by a descriptor or by a mapping that has none."""
    os.chown(path, helper.uid, helper.gid)
    fd, mapping = os.open(path, os.O_RDWR), None
    if way == "a mapping":
        # mmap.mmap keeps a descriptor.
        length = os.fstat(fd).st_size
        mapping = LIBC.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        assert mapping != ctypes.c_void_p(-1).value
        os.close(fd)
    os.chown(path, 0, 0)
    try:
        yield
    finally:
        if mapping is None:
            os.close(fd)
        else:
            assert LIBC.munmap(ctypes.c_void_p(mapping), ctypes.c_size_t(length)) == 0


@pytest.mark.parametrize("way", WAYS)
def test_an_image_that_is_still_open_for_writing(helper, way):
    """A file that was given to root is no file of root's as long as its former owner can write to it."""
    helper.policy('images = "trusted"\n')
    path = helper.roots_image()
    with written(helper, path, way):
        plan = helper.plan(*SHOWN, sources=(helper.source(path),))
        helper.refused(plan, TRUSTED)
    helper.check(plan, "cat $T/s/f", "hello\n")
    assert settled(helper) == []


@pytest.mark.parametrize("way", WAYS)
def test_an_image_on_an_overlay(helper, way):
    """A mapping of its file is one of the file below, of which the one above knows nothing."""
    helper.policy('images = "trusted"\n')
    place, lower = helper.roots_place("over"), helper.roots_place("lower")
    inside = IMAGES / place.name
    layers = f"lowerdir={IMAGES / lower.name},upperdir={inside}/upper,workdir={inside}/work"
    make = f"mkdir {inside}/upper {inside}/work {inside}/seen; mount -t overlay -o {layers} overlay {inside}/seen"
    assert helper.private.root("sh", "-ec", make).returncode == 0
    try:
        path = squashfs(helper.tree, place / "seen/root.sfs", "-noappend")
        with written(helper, path, way):
            helper.refused(helper.plan(*SHOWN, sources=(helper.source(path),)), TRUSTED)
        # Nobody can say that there is no mapping.
        helper.refused(helper.plan(*SHOWN, sources=(helper.source(path),)), TRUSTED)
    finally:
        assert helper.private.root("umount", f"{inside}/seen").returncode == 0


def test_a_file_of_roots_that_is_no_image(helper):
    """Whatever the kernel is asked of it, nothing is: a lease would be in the way of who writes to it."""
    helper.policy('images = "trusted"\n')
    path = helper.roots_image()
    path.write_bytes(b"no image at all")
    helper.refused(helper.plan(*SHOWN, sources=(helper.source(path),)), TRUSTED)


def test_devices_of_images_of_roots_are_on_nobodys_account(helper, run_sandbox):
    """Else who goes on using one that somebody else had attached uses up what is that user's."""
    helper.policy("loop_devices = 1\n")
    images = [helper.source(helper.roots_image(name)) for name in ("one.sfs", "two.sfs", "three.sfs")]
    plans = [helper.plan(*SHOWN, sources=(image,)) for image in images]
    runs = [running(helper, image)[0] for image in images]
    for run in runs:
        run.communicate("\n")
    assert settled(helper) == []
    # A launch that holds the lock of an image may be a stopped one: others get a device of their own, which counts.
    locks = [os.open(path, os.O_RDONLY) for path in helper.private.inside("/run/sandbox/locks").iterdir()]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    first, device = running(helper, images[0])
    second, same = running(helper, images[0])
    assert device == same
    helper.refused(plans[1], "all 1 loop devices")
    # What is on a user's account is his alone.
    for engine in ("native", "python"):
        mounted = ("sh", "-c", "grep -o '/dev/loop[0-9]*' /proc/self/mountinfo")
        options = ["--mode", "root", "--engine", engine, "-s", f"t:{helper.images / 'one.sfs'}"]
        others = run_sandbox(["run", *options, "--", *mounted], as_user=False).stdout.split()
        assert others
        assert str(device) not in others
    for lock in locks:
        os.close(lock)
    helper.check(plans[1], "cat $T/s/f", "hello\n")
    for run in (first, second):
        run.communicate("\n")
    assert settled(helper) == []
