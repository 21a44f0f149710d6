"""Limits of the helper's processes that their user lowers and raises while they work (prlimit(2) asks for ids only), so
that calls of it fail: nothing is decided in his favour, and nothing is left.
"""

import fcntl
import os
import random
import resource
import subprocess
import time
from collections import Counter

import pytest

from tests.attack.test_setuid_devices import SHOWN, running
from tests.attack.test_setuid_races import LAUNCHES, SECONDS
from tests.support.helper import can_raise_limits, settled
from tests.support.launcher import source

# Told a process, it lowers and raises limits of it and its children for a moment; then they are as they were. The pause
# in between is the attacker's luck.
LIMITS = """
import random, resource, sys, time
def family(pid):
    try:
        return [pid, *map(int, open(f'/proc/{pid}/task/{pid}/children').read().split())]
    except OSError:
        return []
def change(pid, kind, soft):
    try:
        resource.prlimit(pid, kind, (soft, resource.prlimit(pid, kind)[1]))
    except (OSError, ValueError):
        pass
for line in sys.stdin:
    first, kind, low, needed, most = line.split()
    kind, low, before = int(kind), int(low), {}
    end = time.monotonic() + 0.02
    while len(before) < int(needed) and time.monotonic() < end:
        for pid in family(int(first)):
            try:
                before.setdefault(pid, resource.prlimit(pid, kind)[0])
            except OSError:
                pass  # it is not this user's yet, or no more
    print(len(before), flush=True)
    end = time.monotonic() + random.random() * float(most)
    while time.monotonic() < end:
        for pid, soft in before.items():
            change(pid, kind, low)
            for _ in range(random.randrange(40)):
                pass
            change(pid, kind, soft)
            for _ in range(random.randrange(80)):
                pass
"""


def attacker(helper):
    return helper.as_user("/usr/bin/python3", "-c", LIMITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def disturb(limits, process, kind, low, *, needed, most_s):
    """Have the limits of a launch changed for at most so long, once it has `needed` processes."""
    limits.stdin.write(f"{process.pid} {kind} {low} {needed} {most_s}\n")
    limits.stdin.flush()
    limits.stdout.readline()


def test_devices_are_counted_while_opening_one_fails(helper, request):
    """RLIMIT_NOFILE of a process of the same user, which the helper's are, is everybody's to change."""
    helper.policy('images = "any"\nloop_devices = 1\n')
    image = source(helper.own_image())
    process, _ = running(helper, image)
    plan = helper.plan(*SHOWN, sources=(image,))
    helper.refused(plan, "all 1 loop devices")
    lock = os.open(helper.private.inside(f"/run/sandbox/{helper.uid}/loops"), os.O_RDWR)
    limits, seen, end = attacker(helper), Counter(), time.monotonic() + SECONDS
    while time.monotonic() < end and seen.total() < LAUNCHES:
        # As a stopped launch of his own would: the next one waits here until all is ready.
        fcntl.flock(lock, fcntl.LOCK_EX)
        launch = helper.start(plan, "true")
        time.sleep(0.005)
        disturb(limits, launch, resource.RLIMIT_NOFILE, 3, needed=2, most_s=0.0025)
        fcntl.flock(lock, fcntl.LOCK_UN)
        _, err = launch.communicate(timeout=60)
        seen[launch.returncode, err] += 1
    print(f"race: {request.node.name}: {seen.total()} launches, {seen}")
    limits.communicate()
    os.close(lock)
    process.communicate("\n")
    assert {code for code, _ in seen} == {125}
    assert settled(helper) == []


def test_a_record_that_has_no_room(helper):
    """The signal that waits while all are blocked ended the helper before it could say why."""
    plan = helper.plan(*SHOWN, sources=(helper.roots_source(),))
    none = (resource.RLIMIT_FSIZE, (0, 0))
    code, _, err = helper.run(plan, "true", then=lambda: resource.setrlimit(*none))
    assert (code, err.count("\n")) == ((0, 0) if can_raise_limits() else (125, 1)), err
    assert settled(helper) == []


@pytest.mark.parametrize("kind", ["NOFILE", "NPROC", "FSIZE"])
def test_limits_that_change_while_the_helper_works(helper, kind, request):
    """Whatever fails, a launch ends in one line, nothing is left, and no limit of the policy's is exceeded."""
    helper.policy('images = "any"\nloop_devices = 1\n')
    own = source(helper.own_image())
    fine, too_many = (helper.image_plan(one, dynamic=False) for one in (helper.roots_source(), own))
    process, _ = running(helper, own)
    limits, seen, end = attacker(helper), Counter(), time.monotonic() + SECONDS
    while time.monotonic() < end and seen.total() < LAUNCHES:
        for name, plan in (("fine", fine), ("too many", too_many)):
            launch = helper.start(plan, "true")
            low = 3 + random.randrange(30) if kind == "NOFILE" else random.randrange(3)
            which = getattr(resource, f"RLIMIT_{kind}")
            disturb(limits, launch, which, low, needed=1 + random.randrange(2), most_s=0.004)
            _, err = launch.communicate(timeout=60)
            seen[name, launch.returncode] += 1
            assert err.count("\n") == (launch.returncode == 125), err
    print(f"race: {request.node.name}: {seen.total()} launches, {seen}")
    limits.communicate()
    assert {code for name, code in seen if name == "too many"} <= {125}
    assert {code for name, code in seen if name == "fine"} <= {0, 125}
    process.communicate("\n")
    assert settled(helper) == []
