"""Hostile plans with the steps of the isolating levels: what the setuid helper's rules refuse."""

from sandbox.engine.syscalls import CLONE_NEWNET, CLONE_NEWUTS
from sandbox.plan import (
    Attach,
    Base,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    Loopback,
    Place,
    Proc,
    Procdir,
    SetPropagation,
    Tmpfs,
    Unshare,
)
from tests.support.launcher import NEWNS, at

START = (Unshare(NEWNS), SetPropagation(2))
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
        ((*START, TMPFS, Idmap(0, 0, helper.uid, 0, helper.gid)), "no user namespace"),
    ):
        helper.refused(helper.raw(*steps), text)


def test_a_moved_procdir_is_no_way_to_proc(helper):
    """A procdir that is / makes /proc a place below the procdir: what is mounted there names descriptors to root."""
    for place in (Place(Base.PROCDIR, b"proc"), at(b"/proc")):
        plan = helper.raw(*START, TMPFS, Procdir(at(b"/")), Attach(0, place, 6))
        helper.refused(plan, "does not mount over")
    helper.refused(helper.raw(*START, Hide(b"/proc/self")), "does not mount over")


def test_no_descriptor_of_the_helpers_own(helper):
    """Only what the caller had open is passed on: all numbers that the helper opened are close-on-exec."""
    for number in range(3, 40):
        helper.refused(helper.raw(*START, KeepDescriptors((number,))), "is not open")
