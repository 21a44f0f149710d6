"""Homes, trees and mount points that lead elsewhere."""

import os
import socket
import subprocess
from pathlib import Path

from sandbox.plan import Attach, Guard, Mkdir, SetPropagation, Tmpfs, Tree, Unshare
from tests.support.launcher import NEWNS, TOP, at, below, source


def test_foreign_and_odd_homes(helper):
    good = source(helper.home)
    link = helper.disk / "link"
    link.symlink_to(helper.home)
    foreign = helper.area / "foreign"
    for directory in (foreign, foreign / "procdirs", foreign / "records"):
        directory.mkdir()
        directory.chmod(0o777)  # the user could write there: it is the owner that tells
    start = (Unshare(NEWNS), SetPropagation(1), Guard(), Tmpfs(0, 1 << 20, 0, 0o700), Attach(0, TOP, 6))

    def launch(home):
        helper.refused(helper.raw(*start, home=home))

    launch(good.replace(path=bytes(link)))
    helper.refused(helper.raw(*start, home=source(foreign)), "belongs to user 0")
    launch(source(Path("/")))
    launch(good.replace(path=b"/proc/self/fd/0"))
    procdirs = helper.home / "procdirs"
    procdirs.rmdir()
    procdirs.symlink_to("/etc")
    launch(good)
    procdirs.unlink()
    procdirs.mkdir()
    os.chown(procdirs, helper.uid, helper.gid)


def test_what_the_user_cannot_read(helper):
    secret = helper.area / "secret"
    secret.mkdir(mode=0o700)
    (secret / "sub").mkdir()
    for path in (secret / "sub", Path("/root")):
        steps = (Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7))
        got, out, _ = helper.run(helper.plan(*steps, sources=(source(path),)), "ls", str(path))
        assert (got, out) != (0, "")


def test_places_that_are_never_covered(helper):
    tree = source(helper.tree)
    for place in ("/proc", "/proc/self", "/proc/1/task", helper.home / "procdirs"):
        plan = helper.plan(Tree(1, 0, 1), Attach(1, at(Path(place)), 7), sources=(tree,))
        # A link is not followed in the first place.
        helper.refused(plan, "symbolic links" if place == "/proc/self" else "does not mount over")


def test_covered_files_stay_covered(helper):
    """A clone without its submounts would show what an administrator hid by mounting over it.

    That is while the run lasts; what its end shows is another matter, see below.
    """
    hidden = helper.area / "hidden"
    (hidden / "sub").mkdir(parents=True)
    (hidden / "sub/secret").write_text("secret\n")
    covered = hidden / "sub"
    assert helper.private.root("mount", "-t", "tmpfs", "sbx-tests", covered).returncode == 0
    try:
        for unbindable in (False, True):
            if unbindable:
                assert helper.private.root("mount", "--make-unbindable", covered).returncode == 0
            for recursive in (0, 1):
                steps = [Tree(1, 0, recursive), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
                helper.check(helper.plan(*steps, sources=(source(hidden),)), "ls -A $T/t/sub", "")
    finally:
        helper.private.root("umount", covered)


def seen_after_the_end(helper):
    """What the user reads in covered files once a run has ended that handed him the directory above them."""
    hidden = helper.area / "hidden"
    (hidden / "sub").mkdir(parents=True)
    for file, mode in (("open", 0o644), ("shut", 0o600)):
        (hidden / "sub" / file).write_text("secret\n")
        (hidden / "sub" / file).chmod(mode)
    assert helper.private.root("mount", "-t", "tmpfs", "sbx-tests", hidden / "sub").returncode == 0
    ours, theirs = socket.socketpair()
    try:
        with ours, theirs:
            script = f"""import os, socket
with socket.socket(fileno={theirs.fileno()}) as to:
    socket.send_fds(to, [b"x"], [os.open({str(hidden)!r}, os.O_PATH)])"""
            done = helper.run(helper.plan(), "/usr/bin/python3", "-c", script, pass_fds=[theirs.fileno()])
            assert done == (0, "", "")
            _, (directory,), _, _ = socket.recv_fds(ours, 1, 1)
        seen = {}
        for name in ("open", "shut"):
            file = f"/proc/self/fd/{directory}/sub/{name}"
            cat = helper.as_user("cat", file, pass_fds=[directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            seen[name] = cat.communicate()[0]
        os.close(directory)
        return seen
    finally:
        helper.private.root("umount", hidden / "sub")


def test_the_end_of_a_run_uncovers_no_more_than_is_said(helper):
    """With the last process of a mount namespace the kernel takes its mounts off each other, and who was handed a
    directory of it sees what they lay on. That is a known limit, as docs/setuid.md says, and no promise. What a file's
    own mode forbids stays forbidden.
    """
    assert seen_after_the_end(helper) == {"open": "secret\n", "shut": ""}


def test_nothing_is_gained_by_covering_etc(helper):
    etc = helper.area / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    plan = helper.plan(Tree(1, 0, 1), Attach(1, at(Path("/etc")), 6), sources=(source(etc),))
    helper.check(plan, "su -c id 2>&1 | grep -c uid=0", "0\n", 1)
