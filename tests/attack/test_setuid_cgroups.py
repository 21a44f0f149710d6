"""Hostile `Cgroup` steps: plans that name a cgroup which their author may not change, or something else as one.

The helper makes and fills a run's cgroup with its caller's rights, so each of these ends where the caller's own `mkdir`
would. They need cgroup v2: `python -m tests.vm -- tests/attack/test_setuid_cgroups.py`.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.level_steps import Cgroup, Init
from tests.support import delegation
from tests.support.launcher import MEMORY, source

NO_LIMIT = 2**64 - 1
STEP = Cgroup(0, NO_LIMIT, NO_LIMIT, 100, NO_LIMIT)
_IN = "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/pids.max"


@pytest.fixture
def others(delegated: Path) -> Iterator[Path]:
    """A cgroup of somebody else's, beside the user's."""
    path = delegated.parent / f"sbx-test-other-{secrets.token_hex(4)}"
    path.mkdir(mode=0o755)
    delegation.enable(path)
    yield path
    left = [entry.name for entry in path.iterdir() if entry.is_dir()]
    for name in left:
        (path / name).rmdir()
    path.rmdir()
    assert not left


def plan(helper, place: Path, step: Cgroup = STEP, **changes) -> bytes:
    return helper.plan(step, sources=(source(place).replace(**changes),))


def runs_in(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name.startswith("sandbox-")]


def test_the_user_s_own(helper, delegated):
    """So that the refusals below are no accidents."""
    helper.check(plan(helper, delegated), _IN, "100\n")
    assert not runs_in(delegated)


def test_somebody_else_s(helper, delegated, others):
    root = delegated
    while (root.parent / "cgroup.procs").exists():
        root = root.parent
    for path in (others, delegated.parent, root):
        helper.refused(plan(helper, path), "cannot make a cgroup in", "Permission denied")
        assert not runs_in(path)


def test_by_a_way_round(helper, delegated, others):
    """By `..`, and by a link of the user's: both are somebody else's all the same."""
    link = helper.area / "link"
    link.symlink_to(others)
    for way in (delegated / ".." / others.name, link):
        helper.refused(plan(helper, others, path=bytes(way)), str(way))
        assert not runs_in(others)
    here = plan(helper, delegated, path=bytes(others / ".." / delegated.name))
    helper.check(here, _IN, "100\n")


def test_another_one_than_was_said(helper, delegated, others):
    """The name of one, the inode of the other: what a swap between compiling and launching looks like."""
    status = delegated.stat()
    helper.refused(plan(helper, others, dev=status.st_dev, ino=status.st_ino), "not what it was when the plan was made")
    helper.refused(plan(helper, delegated, ino=status.st_ino + 1), "not what it was when the plan was made")
    assert not runs_in(others)
    assert not runs_in(delegated)


@pytest.mark.parametrize("more", [(), (Init(0),)], ids=["forked", "born as an init"])
def test_outside_of_the_subtree(helper, user, delegated, others, more):
    """The user's, too, but by no way that this process may be moved: what was made for the run goes again. Also where
    it is born with a raised capability, for its namespaces.
    """
    delegation.give(others, user)
    hostile = helper.plan(STEP, *more, sources=(source(others),))
    helper.refused(hostile, "cannot enter the run's cgroup", "Permission denied")
    assert not runs_in(others)


def test_no_cgroup_at_all(helper, delegated):
    for path in (helper.tree, helper.home, Path("/tmp"), Path("/proc"), Path("/sys"), Path("/sys/fs")):
        helper.refused(plan(helper, path), "no cgroup of version 2")
    assert sorted(os.listdir(helper.tree)) == ["broken", "f", "sub", "tool"]
    for name in ("cgroup.procs", "pids.max"):
        helper.refused(plan(helper, delegated / name), name)
    helper.refused(helper.plan(STEP, sources=(MEMORY,)), "not handed over")


def test_impossible_limits(helper, delegated):
    """What the kernel does not take is one line; what it takes binds nobody but the run."""
    for step in (STEP.replace(cpu_us=1), STEP.replace(memory=NO_LIMIT - 1), STEP.replace(pids=NO_LIMIT - 1)):
        code, out, err = helper.run(plan(helper, delegated, step), "echo", "ran")
        assert (code, out, err.count("\n")) in ((125, "", 1), (0, "ran\n", 0)), err
    for step in (STEP.replace(pids=0), STEP.replace(memory=0, swap=0)):
        code, out, err = helper.run(plan(helper, delegated, step), "sh", "-c", "sleep 0.1 | cat; echo ran >&2")
        assert code != 0
        assert "ran" not in err.splitlines()
    assert not runs_in(delegated)


def test_a_run_that_tries_to_leave(helper, delegated, others):
    """With the rights that it has: to its own subtree, which is the user's, and nowhere else."""
    script = f"echo $$ > {others}/cgroup.procs || echo $$ > {delegated.parent}/cgroup.procs || echo stays"
    code, out, err = helper.run(plan(helper, delegated), "sh", "-c", f"({script}) 2>/dev/null")
    assert (code, out) == (0, "stays\n"), err
