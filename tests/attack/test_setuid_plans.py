"""Hostile plans: what the helper's rules refuse, and plans that are no plans."""

import os
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest

from sandbox.plan import (
    Attach,
    DeathSignal,
    Erofs,
    Extract,
    Fuse,
    IdMap,
    Image,
    Mkdir,
    Overlay,
    PlaceEnv,
    Scratch,
    SetPropagation,
    Tmpfs,
    Tree,
    Unshare,
)
from sandbox.plan_types import Mode
from sandbox.setuid import HELPER
from tests.support.helper import WITH_BUILDER, settled
from tests.support.launcher import MEMORY, NEWNS, NEWUSER, TOP, at, below, source

START = (Unshare(NEWNS), SetPropagation(1))
OTHER = 12346


def test_namespaces(helper):
    """CVE-2020-5291: a setuid bubblewrap that also made a user namespace. Here there is none to be had."""
    tmpfs, top = Tmpfs(0, 1 << 20, 0, 0o700), Attach(0, TOP, 6)
    helper.refused(helper.raw(), "makes no namespace")
    for steps in (
        (tmpfs, top),
        (Unshare(NEWNS), tmpfs, top),
        (Unshare(NEWUSER | NEWNS), SetPropagation(1)),
        (Unshare(NEWUSER), SetPropagation(1)),
        (Unshare(0), SetPropagation(1)),
        (*START, Unshare(NEWNS)),
        (*START, Unshare(NEWUSER)),
    ):
        helper.refused(helper.raw(*steps), "starts with a mount namespace")
    helper.refused(helper.raw(*START, IdMap(0, 0, 0, 0)), "no user namespace")


def test_rules(helper):
    tree, image = source(helper.tree), helper.roots_source()
    tmpfs, top = Tmpfs(0, 1 << 20, 0, 0o700), Attach(0, TOP, 6)
    upper, overlay = Tmpfs(2, 1 << 20, 0, 0o700), Overlay(3, (1,), 2, 0)
    unpack, file = Extract(2, 1, (b"/bin/true",)), source(helper.tree / "f")
    for plan, text in (
        (helper.raw(*START, Tmpfs(0, 0, 0, 0o700)), "a size is needed"),
        (helper.raw(*START, tmpfs, top, top), "attached once"),
        (helper.plan(Scratch(0, 1, 2), sources=(source(helper.disk),)), "not supported"),
        (helper.plan(Image(1, 0), sources=(tree,)), "an image is a file"),
        (helper.plan(Erofs(1, 0), sources=(image,)), "reads no erofs"),
        (helper.plan(Tree(1, 0, 1), upper, overlay, sources=(tree,)), "only an image"),
        (helper.plan(Image(1, 0), Overlay(3, (1,), 0, 0), sources=(image,)), "attached nowhere"),
        (helper.plan(Image(1, 0), upper, Overlay(3, (1,), 2, 1), sources=(image,)), "not allowed"),
        (helper.plan(Image(1, 0), upper, overlay, Attach(2, below(""), 6), sources=(image,)), "attached once"),
        (helper.plan(Image(1, 0), upper, unpack, overlay, sources=(image, file)), "attached nowhere"),
        (helper.plan(Image(1, 0), upper, overlay, unpack, sources=(image, file)), "no upper layer"),
        (helper.plan(Image(1, 0), Extract(1, 1, (b"/bin/true",)), sources=(image, file)), "unpacks into a tmpfs"),
        (helper.plan(Image(1, 0), upper, Extract(2, 0, (b"/bin/true",)), sources=(image,)), "to no program"),
        (helper.plan(Fuse(1, 0, b"/bin/true"), Image(2, 0), sources=(image,)), "to no program"),
    ):
        helper.refused(plan, text)


def test_plans_for_somebody_else(helper):
    for mode in (Mode.ROOT, Mode.USERNS):
        helper.refused(helper.raw(*START, mode=mode), "setuid mode only")
    for uid in (0, OTHER):
        helper.refused(helper.raw(*START, uid=uid), f"is for user {uid}")


def test_truncated_and_changed_plans(helper):
    good = helper.image_plan(helper.roots_source())
    chance = random.Random(2)
    for length in chance.sample(range(len(good)), 40):
        helper.refused(good[:length], "cannot decode")
    for _ in range(150):
        bad = bytearray(good)
        bad[chance.randrange(12, len(bad))] ^= 1 << chance.randrange(8)
        got, _, err = helper.run(bytes(bad), "true")
        assert (got, err.count("\n")) in ((0, 0), (125, 1)), err


def test_huge_and_repeated_plans(helper):
    """As much as the encoding allows of everything, and more than that."""
    image, tree = helper.roots_source(), source(helper.tree)
    small = Tmpfs(1, 1 << 16, 0, 0o700)
    many = [Tmpfs(slot, 1 << 16, 0, 0o700) for slot in range(1, 4000)]
    deep = Mkdir(below("/".join("d" * 2000)), 0o755)
    layers = [Image(1, 0), Tmpfs(2, 1 << 16, 0, 0o700), Overlay(3, (1,) * 4000, 2, 0)]
    nested = [Tmpfs(1, 1 << 16, 0, 0o700), Mkdir(below("a"), 0o755), Attach(1, below("a"), 6)]
    for slot in range(2, 200):
        place = below("/".join(["a"] * slot))
        nested += [Tmpfs(slot, 1 << 16, 0, 0o700), Mkdir(place, 0o755), Attach(slot, place, 6)]
    for plan in (
        helper.plan(*many),
        helper.plan(small, *[Tmpfs(slot, (1 << 64) - 1, (1 << 64) - 1, 0o7777) for slot in range(2, 300)]),
        helper.plan(*[deep] * 200),
        helper.plan(*layers, sources=(image,)),
        helper.plan(*nested),
        helper.plan(*[Tree(slot, 0, 1) for slot in range(1, 300)], sources=(tree,)),
        helper.plan(*[Image(slot, slot - 1) for slot in range(1, 200)], sources=(image,) * 200),
        helper.plan()[:-4] + bytes(1 << 21),
    ):
        got, _, err = helper.run(plan, "true")
        assert (got, err.count("\n")) in ((0, 0), (125, 1)), err
    assert settled(helper) == []


def test_files_of_nothing_in_a_small_tmpfs(helper):
    """Names and inodes are the kernel's memory, which no size counts: there are as many as the size has room for."""
    script = "cd $T && seq 3000 | xargs touch 2>/dev/null; ls | wc -l"
    for size, inodes, most in ((1 << 16, 1 << 50, 128), (1 << 16, 0, 128), (1 << 20, 1 << 50, 1024), (1 << 20, 50, 50)):
        tmpfs = Tmpfs(0, size, inodes, 0o700)
        plan = helper.raw(*START, tmpfs, Attach(0, TOP, 6), PlaceEnv(b"T", TOP), DeathSignal(9))
        got, out, err = helper.run(plan, "sh", "-c", script)
        assert (got, err) == (0, "")
        assert most // 2 < int(out) < most
    # As many as there is room for, each with a page, and half as many directories.
    script = "cd $T && seq 500 | xargs -n1 -P2 sh -c 'echo x >f$0; mkdir d$0'; ls | wc -l"
    tmpfs = Tmpfs(0, 1 << 21, 0, 0o700)
    helper.check(helper.raw(*START, tmpfs, Attach(0, TOP, 6), PlaceEnv(b"T", TOP), DeathSignal(9)), script, "1000\n")


def test_many_loop_devices(helper):
    """Every image of the user's has a loop device of its own; all are gone with the launch, however it ends."""
    helper.policy(WITH_BUILDER)
    image = source(helper.own_image())
    fds = {number: os.open(helper.area / "own.sfs", os.O_RDONLY) for number in range(30)}
    plan = helper.plan(*[Image(slot, slot - 1) for slot in range(1, 31)], sources=(MEMORY,) * 30)
    got, _, err = helper.run(plan, "true", fds=fds)
    assert (got, err) == (0, "")
    assert settled(helper) == []
    for wait in (0.1, 0.2, 0.3, 0.4):
        process = helper.start(plan, "true", fds=fds)
        time.sleep(wait)
        process.kill()
        process.communicate()
    for fd in fds.values():
        os.close(fd)
    helper.check(helper.image_plan(image, dynamic=False), "true", "")
    assert settled(helper) == []


def test_policy_that_others_can_change(helper):
    file = helper.policy_file
    directory = file.parent
    for change, undo in (
        (lambda: os.chown(file, helper.uid, 0), lambda: os.chown(file, 0, 0)),
        (lambda: file.chmod(0o666), lambda: file.chmod(0o644)),
        (lambda: file.chmod(0o664), lambda: file.chmod(0o644)),
        (lambda: directory.chmod(0o777), lambda: directory.chmod(0o755)),
        (lambda: os.chown(directory, helper.uid, 0), lambda: os.chown(directory, 0, 0)),
    ):
        change()
        helper.refused(helper.plan(), "could be changed by somebody else than root")
        undo()
    for text in ('images = "all"\n', "x = 1\n", "allow_new_privs = 1\n"):
        helper.policy(text)
        helper.refused(helper.plan(), "line 1 is not understood")
    file.unlink()
    file.symlink_to("/dev/zero")
    helper.refused(helper.plan(), "policy.toml")
    helper.policy(None)
    helper.check(helper.plan(), "echo ran", "ran\n")  # none: the defaults


def test_groups(helper):
    helper.policy(f"groups = [{OTHER}]\n")
    helper.refused(helper.plan(), "does not allow you")
    helper.policy(f"groups = [{OTHER}, {helper.group}]\n")
    helper.check(helper.plan(), "echo ran", "ran\n")
    with pytest.raises(PermissionError):  # the kernel's own gate
        subprocess.run([HELPER, "version"], **helper.become_with(helper.who.groups))


def test_refusals_are_logged(helper):
    if os.path.lexists("/dev/log"):
        pytest.skip("/dev/log is in use")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("/dev/log")
        try:
            os.chmod("/dev/log", 0o666)
            log.settimeout(5)
            helper.refused(helper.raw(), "makes no namespace")
            line = f"<84>sandbox-helper: user {helper.uid}: setuid mode: the plan makes no namespace"
            # Whatever else logs meanwhile, as useradd of a test beside this one.
            assert line in iter(lambda: log.recv(2000).decode(), None)
        finally:
            os.unlink("/dev/log")


def test_an_image_comes_before_a_new_dev(helper):
    """Loop devices are found by their names in the host's /dev."""
    over = (Tree(1, 0, 1), Attach(1, at(Path("/dev")), 7))
    sources = (source(helper.tree), helper.roots_source())
    helper.refused(helper.plan(*over, Image(2, 1), sources=sources), "over /dev")
