"""Loop devices and images of somebody else: none is reached by the name of one's own, or by a descriptor that reads
nothing; and an image that somebody can write to is not root's.
"""

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from sandbox.level_steps import Bind
from sandbox.plan import Attach, Image, Mkdir
from tests.attack.test_setuid_races import secret_tree
from tests.support.helper import TRUSTED, settled
from tests.support.launcher import at, below, squashfs

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


@pytest.mark.parametrize("way", ["a descriptor", "a mapping"])
def test_an_image_that_is_still_open_for_writing(helper, way):
    """A file that was given to root is no file of root's as long as its former owner can write to it."""
    helper.policy('images = "trusted"\n')
    path = helper.roots_image()
    os.chown(path, helper.uid, helper.gid)
    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, 0)
    os.chown(path, 0, 0)
    if way == "a descriptor":
        mapping.close()
    else:
        os.close(fd)
    plan = helper.plan(*SHOWN, sources=(helper.source(path),))
    helper.refused(plan, TRUSTED)
    if way == "a descriptor":
        os.close(fd)
    else:
        mapping.close()
    helper.check(plan, "cat $T/s/f", "hello\n")
    assert settled(helper) == []
