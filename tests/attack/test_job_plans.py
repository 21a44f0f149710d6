"""Hostile plans with the steps of the isolating levels: what the setuid helper's rules refuse."""

import os
import signal
import socket
import subprocess

from sandbox.engine.syscalls import CLONE_NEWNET, CLONE_NEWUTS
from sandbox.level_steps import (
    Allow,
    Expose,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    Landlock,
    Loopback,
    Network,
    Proc,
    Procdir,
    Protect,
    Shift,
    Terminal,
    UserNamespace,
)
from sandbox.plan import Attach, Part, SetPropagation, Tmpfs, Unshare
from sandbox.plan_types import Base, Place, PlanFlag, Source, SourceKind
from tests.support.launcher import NEWNS, at

START = (Unshare(NEWNS), SetPropagation(2))
NETWORK = (Unshare(NEWNS | CLONE_NEWNET), SetPropagation(2))
TMPFS = Tmpfs(0, 1 << 20, 0, 0o700)


def test_what_belongs_to_the_host(helper):
    """Without a namespace of its own a step would change the host's name, its network, or show its processes."""
    for steps, text in (
        ((*START, Hostname(b"mine")), "needs a UTS namespace"),
        ((Unshare(NEWNS | CLONE_NEWNET), SetPropagation(2), Hostname(b"mine")), "needs a UTS namespace"),
        ((*START, Loopback()), "needs a network namespace"),
        ((Unshare(NEWNS | CLONE_NEWUTS), SetPropagation(2), Loopback()), "needs a network namespace"),
        ((*START, Proc()), "a pid namespace of the run's own"),
        ((*START, Init(0), Init(0)), "one init"),
        ((*START, Identity(0, 0)), "no user namespace"),
        ((*START, TMPFS, Part(1, 0, 0o777)), "a size is needed"),
        ((*START, TMPFS, Idmap(0, 0, helper.uid, 0, helper.gid)), "no user namespace"),
        ((*START, TMPFS, Shift(0, (0, helper.uid, 1), (0, helper.gid, 1))), "no user namespace"),
        ((*START, UserNamespace((0, 0, 65536), (0, 0, 65536), ())), "no user namespace"),
        ((*START, UserNamespace((0, 0, 1), (0, 0, 1), (b"/usr/bin/newuidmap",) * 2)), "no user namespace"),
        ((UserNamespace((0, 0, 65536), (0, 0, 65536), ()), *START), "a plan starts with a mount namespace"),
    ):
        helper.refused(helper.raw(*steps), text)


def test_a_moved_procdir_is_no_way_to_proc(helper):
    """A procdir that is / makes /proc a place below the procdir: what is mounted there names descriptors to root."""
    for place in (Place(Base.PROCDIR, b"proc"), at(b"/proc")):
        plan = helper.raw(*START, TMPFS, Procdir(at(b"/")), Attach(0, place, 6))
        helper.refused(plan, "does not mount over")
    helper.refused(helper.raw(*START, Hide(b"/proc/self")), "does not mount over")
    status = os.stat("/proc/sys")
    sys = Place(Base.ROOT, b"/proc/sys", status.st_dev, status.st_ino)
    helper.refused(helper.raw(*START, Protect(sys, 1)), "does not mount over")


def test_nothing_is_protected_that_another_put_there(helper):
    """A link is not followed, and another inode than the plan's is none of ours."""
    link = helper.area / "link"
    link.symlink_to("/etc")
    helper.refused(helper.raw(*START, Protect(at(link), 1)), "link")
    other = Place(Base.ROOT, bytes(helper.tree), 1, 1)
    helper.refused(helper.raw(*START, Protect(other, 1)), "not what it was")


def test_the_attendant_is_the_callers_affair(helper):
    """Without one, and with something else in its place, nothing runs; two are refused."""
    for step in (Expose(), Terminal()):
        helper.refused(helper.raw(*START, step), "nobody attends this run")
    fd = os.open("/dev/null", os.O_RDWR)
    helper.refused(helper.raw(*START, Expose()), "cannot hand over the tree", pairs=[f"attend={fd}"], pass_fds=[fd])
    twice = [f"attend={fd}", f"attend={fd}"]
    helper.refused(helper.raw(*START), "one attendant", pairs=twice, pass_fds=[fd])
    helper.refused(helper.raw(*START), "not a descriptor number", pairs=["attend=x"])
    os.close(fd)


def test_a_parent_is_there_or_nothing_runs(helper):
    """A pidfd of who ends with the launch; anything else is nobody, and harms the caller alone."""
    gone = subprocess.Popen(["true"])
    fds = {"gone": os.pidfd_open(gone.pid), "file": os.open("/dev/null", os.O_RDWR), "here": os.pidfd_open(os.getpid())}
    gone.wait()
    for name in ("gone", "file"):
        fd = fds[name]
        told = "whoever started this run is gone"
        helper.refused(helper.raw(*START), told, pairs=[f"parent={fd}"], pass_fds=[fd])
    fd = fds["here"]
    assert helper.run(helper.raw(*START), "true", pairs=[f"parent={fd}"], pass_fds=[fd])[0] == 0
    helper.refused(helper.raw(*START), "one parent", pairs=[f"parent={fd}"] * 2, pass_fds=[fd])
    helper.refused(helper.raw(*START), "not a descriptor number", pairs=["parent="])
    for fd in fds.values():
        os.close(fd)


def test_an_attendant_that_does_not_answer_can_be_left(helper):
    """The supervisor waits with its user's rights only: the user ends it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pairs = [f"attend={theirs.fileno()}"]
        process = helper.start(helper.raw(*START), "true", pairs=pairs, pass_fds=[theirs.fileno()])
        assert ours.recv(8) == b"E\1"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert helper.run(helper.raw(*START), "true")[0] == 0  # which cleans up behind it


def test_no_descriptor_of_the_helpers_own(helper):
    """Only what the caller had open is passed on: all numbers that the helper opened are close-on-exec."""
    for number in range(3, 40):
        helper.refused(helper.raw(*START, KeepDescriptors((number,))), "is not open")


def test_no_network_and_no_fence_around_privileges(helper):
    """A setuid program behind a fence, or in a network, of the user's would fail where it never does."""
    handed = (Source(SourceKind.MEMORY, b""),)
    helper.policy("allow_new_privs = true\n")
    private = Network(0, 0x0A00026418, 0x0A000202, 0x0A000203, ())
    for steps in ((*START, Landlock(2, 0)), (*START, Allow(at(b"/"), 2, 0)), (*NETWORK, private)):
        plan = helper.raw(*steps, sources=handed, flags=PlanFlag.ALLOW_NEW_PRIVS)
        helper.refused(plan, "--allow-new-privs", fds={0: 0})


def test_what_a_fence_leaves_open_is_opened_as_the_user(helper):
    """A rule for what the user may not reach would say whether it is there."""
    secret = helper.area / "secret"
    (secret / "inside").mkdir(parents=True)
    secret.chmod(0o700)
    os.chown(secret, 0, 0)
    for name in ("inside", "nothing"):
        steps = (Allow(at(os.fsencode(secret / name)), 2, 0), Landlock(2, 0))
        helper.refused(helper.raw(*START, *steps), "Permission denied")
