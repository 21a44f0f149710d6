"""Trees that the helper hands out: to whom it is asked, and never more than the command sees."""

import os
import socket

import pytest

from tests.support.launcher import squashfs


@pytest.mark.parametrize("slot", [2, 4, 99])
def test_what_is_attached_nowhere_is_not_handed_out(helper, slot):
    """Who could change an overlay's upper directory beneath it would change it with the overlay's rights."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper.refused(helper.image_plan(helper.roots_source()), "attached nowhere", trees={slot: theirs.fileno()})
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)


def test_what_the_command_sees_is_handed_out_and_outlives_it(helper):
    """Read-only where the command has it read-only; gone with the descriptor."""
    pairs = {slot: socket.socketpair() for slot in (1, 3)}
    given = {slot: theirs.fileno() for slot, (_, theirs) in pairs.items()}
    script = "echo new >$T/d/f; ls /proc/self/fd | wc -l"
    code, out, err = helper.run(helper.image_plan(helper.roots_source()), "sh", "-c", script, trees=given)
    assert (code, out, err) == (0, "4\n", "")  # the socket is not the command's
    trees = {}
    for slot, (ours, theirs) in pairs.items():
        with ours, theirs:
            _, (trees[slot],), _, _ = socket.recv_fds(ours, 1, 1)
    for slot, content in ((1, "hello\n"), (3, "new\n")):
        with open(os.open("f", os.O_RDONLY, dir_fd=trees[slot])) as file:
            assert file.read() == content
    with pytest.raises(OSError, match="Read-only"):
        os.open("x", os.O_WRONLY | os.O_CREAT, dir_fd=trees[1])
    for tree in trees.values():
        os.close(tree)


def test_nothing_of_roots_opens_it(helper):
    """An image of root's whose root directory is root's alone: the rights to mount it do not open it."""
    path = squashfs(helper.tree, helper.images / "shut.sfs", "-noappend", "-all-root", "-root-mode", "0700")
    path.chmod(0o644)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        plan = helper.image_plan(helper.source(path), dynamic=False)
        helper.refused(plan, "hand out a tree", "Permission denied", trees={1: theirs.fileno()})
    path.unlink()


@pytest.mark.parametrize("numbers", ["", "3", "3,", ",5", "-1,5", "3,5,6", "3,0x5", "3,1023"])
def test_words_that_are_none(helper, numbers):
    code, err = helper.attempt(["sandbox-helper", "run", "7", "8", f"tree={numbers}", "--", "true"])
    assert (code, err.count("\n")) == (125, 1), err
