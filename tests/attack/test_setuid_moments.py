"""Signals, death, tracing and swapping at a moment of the attacker's choice."""

import contextlib
import os
import random
import signal
import subprocess
import time

from sandbox.plan import Attach, Mkdir, Tree
from tests.support.helper import WITH_BUILDER, settled
from tests.support.launcher import below, source

# Attaches to, and reads, every process called sandbox-helper for four seconds; prints how often it tried and got in.
TRACER = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
print('go', flush=True); got = tried = 0
def helpers():
    for pid in [int(p) for p in os.listdir('/proc') if p.isdigit()]:
        try:
            if open(f'/proc/{pid}/comm').read() == 'sandbox-helper\\n': yield pid
        except OSError: pass
def is_helper(pid):
    try: return os.readlink(f'/proc/{pid}/exe').endswith('sandbox-helper')
    except OSError: return False
end = time.monotonic() + 4
while time.monotonic() < end:
    for pid in helpers():
        tried += 1
        if libc.ptrace(0x4206, pid, 0, 0) == 0: got += is_helper(pid)
    try:
        while os.waitpid(-1, 0x40000001)[0]: pass
    except OSError: pass
    for pid in helpers():
        for name in ('mem', 'environ', 'fd/0', 'maps'):
            try: os.close(os.open(f'/proc/{pid}/{name}', os.O_RDONLY))
            except OSError: continue
            got += is_helper(pid)
print(tried, got)
"""


def test_tracing(helper):
    """CVE-2026-41163: a dumpable half of bubblewrap. Nobody reads or steers the helper while it sets up."""
    helper.policy(WITH_BUILDER)
    spy = helper.as_user("/usr/bin/python3", "-c", TRACER, stdout=subprocess.PIPE)
    spy.stdout.readline()
    plan = helper.image_plan(source(helper.own_image()))
    while spy.poll() is None:
        helper.run(plan, "true")
    tried, got = map(int, spy.communicate(timeout=5)[0].split())
    assert tried > 10
    assert got == 0


def test_killed_at_any_moment(helper):
    helper.policy(WITH_BUILDER)
    chance = random.Random(3)
    plans = [helper.image_plan(helper.roots_source()), helper.image_plan(source(helper.own_image()))]
    for turn in range(80):
        process = helper.start(plans[turn % 2], "true")
        time.sleep(chance.random() * (0.004 if turn % 2 == 0 else 0.06))
        process.kill()
        process.communicate()
    assert [line for line in settled(helper) if not line.startswith("/")] == []
    helper.check(helper.plan(), "true", "")  # cleans up after the dead
    assert settled(helper) == []


def test_stopped_while_it_sets_up(helper):
    """Who stops a launch at a bad moment delays nobody else for long."""
    plan = helper.image_plan(helper.roots_source())
    stopped = []
    for turn in range(30):
        process = helper.start(plan, "true", start_new_session=True)
        time.sleep(turn * 0.0002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        stopped.append(process)
        helper.check(plan, "echo ran", "ran\n")
    for process in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=10)


def test_tree_swapped_while_launching(helper):
    """A directory that becomes a link to what the user cannot reach is never mounted."""
    secret = helper.area / "secret"
    (secret / "x").mkdir(parents=True)
    (secret / "x/f").write_text("secret\n")
    secret.chmod(0o700)
    play = helper.area / "play"
    (play / "a/x").mkdir(parents=True)
    (play / "a/x/f").write_text("mine\n")
    for path in (play, play / "a", play / "a/x"):
        os.chown(path, helper.uid, helper.gid)
    (play / "l").symlink_to(secret)
    swap = f"import ctypes; r = ctypes.CDLL(None).renameat2\nwhile 1: r(-100, b'{play}/a', -100, b'{play}/l', 2)"
    steps = [Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
    plan = helper.plan(*steps, sources=(source(play / "a/x"),))
    swapper = helper.as_user("/usr/bin/python3", "-c", swap)
    end, seen = time.monotonic() + 5, set()
    while time.monotonic() < end:
        seen.add(helper.run(plan, "sh", "-c", "cat $T/t/f")[:2])
    swapper.kill()
    assert seen <= {(0, "mine\n"), (125, "")}
