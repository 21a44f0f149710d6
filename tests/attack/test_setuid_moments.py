"""Signals, death, tracing and swapping at a moment of the attacker's choice."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

from sandbox.setuid import HELPER
from tests.support.helper import WITH_BUILDER, settled
from tests.support.launcher import memory_file, source

# Attaches to, and reads, every process called sandbox-helper for three seconds; prints how often it tried and got in.
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
end = time.monotonic() + 3
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
    """Who stops a launch at a bad moment delays no other launch for long. One that stands still while it counts its
    user's loop devices is in the way of that same user's, who is told so; and no longer than it stands still.
    """
    plan = helper.image_plan(helper.roots_source())
    stopped = []
    for turn in range(30):
        process = helper.start(plan, "true", start_new_session=True)
        time.sleep(turn * 0.0002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        stopped.append(process)
        code, out, err = helper.run(plan, "sh", "-c", "echo ran")
        if "a stopped launch is in the way" in err:
            assert (code, out, err.count("\n")) == (125, "", 1), err
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            code, out, err = helper.run(plan, "sh", "-c", "echo ran")
        assert (code, out, err) == (0, "ran\n", "")
    for process in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=10)


# Starts the helper again and again, stops it at some moment of its setup, and tries to get hold of what stands still.
GRABBER = """
import ctypes, os, random, signal, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
chance = random.Random(4)
plan, env = int(sys.argv[2]), int(sys.argv[3])
tried = got = 0
for turn in range(150):
    process = subprocess.Popen([sys.argv[1], 'run', str(plan), str(env), '--', '/bin/true'], pass_fds=(plan, env))
    time.sleep(chance.random() * 0.004)
    os.kill(process.pid, signal.SIGSTOP)
    with open(f'/proc/{process.pid}/task/{process.pid}/children') as file:
        pids = [process.pid, *map(int, file.read().split())]
    for pid in pids:
        try: name = open(f'/proc/{pid}/comm').read()
        except OSError: continue
        if name != 'sandbox-helper\\n': continue
        if pid != process.pid: os.kill(pid, signal.SIGSTOP)
        tried += 1
        attached = libc.ptrace(0x4206, pid, 0, 0) == 0
        opened = 0
        for what in ('mem', 'environ', 'maps', 'fd', 'root/etc', 'cwd/.', 'ns/mnt'):
            try: opened += os.open(f'/proc/{pid}/{what}', os.O_RDONLY) > 0
            except OSError: pass
        # One that has ended in the meantime opens, and is empty; so does one that became the command.
        try: still = open(f'/proc/{pid}/comm').read() == name and 'VmSize' in open(f'/proc/{pid}/status').read()
        except OSError: still = False
        got += still and (attached or opened > 0)
    for pid in pids:
        try: os.kill(pid, signal.SIGCONT)
        except OSError: pass
    process.kill()
    process.wait()
print(tried, got)
"""


def test_stopped_and_grabbed(helper):
    """The caller may stop what has his uid, at any step: what stands still is as closed as what runs."""
    plan, env = memory_file(helper.image_plan(helper.roots_source())), memory_file(b"")
    words = ["/usr/bin/python3", "-c", GRABBER, HELPER, plan, env]
    spy = helper.as_user(*words, pass_fds=[plan, env], stdout=subprocess.PIPE)
    tried, got = map(int, spy.communicate(timeout=60)[0].split())
    os.close(plan)
    os.close(env)
    assert tried > 10
    assert got == 0
    helper.check(helper.plan(), "true", "")
    assert settled(helper) == []


@pytest.mark.parametrize("image", ["roots", "rebuilt"])
def test_killed_at_each_step(helper, image):
    """SIGKILL at every change of capabilities there is, in every process of a launch: nothing outlives the next one."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    helper.policy(WITH_BUILDER)
    file = helper.roots_source() if image == "roots" else source(helper.own_image())
    (helper.area / "plan").write_bytes(helper.image_plan(file))
    (helper.area / "env").write_bytes(b"PATH=/usr/bin:/bin\0")
    ids = ["setpriv", f"--reuid={helper.uid}", f"--regid={helper.gid}", f"--groups={helper.group}"]
    script = f'exec {HELPER} run 8 9 -- true 8<"{helper.area}/plan" 9<"{helper.area}/env"'
    survived = killed = 0
    for step in range(1, 100):
        # The first ones are those of setpriv: then the helper does not even start.
        inject = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=capset:signal=KILL:when={step}"]
        done = helper.private.root(*inject, *ids, "sh", "-c", script)
        killed += done.returncode != 0
        survived = survived + 1 if done.returncode == 0 else 0
        if survived == 3:
            break
        helper.check(helper.plan(), "true", "")
    assert killed > 10
    assert settled(helper) == []


NAMES = "HUP INT QUIT TERM SEGV ABRT ALRM PIPE USR1 TSTP TTIN XFSZ"
SIGNALS = [getattr(signal, f"SIG{name}") for name in NAMES.split()]


def test_any_signal_at_any_moment(helper):
    """It runs, dies of that signal or fails in one line; and leaves no core and nothing else."""
    chance = random.Random(5)
    plan = helper.image_plan(helper.roots_source())

    def unlimited():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    helper.disk.chmod(0o777)
    for turn in range(12 * len(SIGNALS)):
        number = SIGNALS[turn % len(SIGNALS)]
        process = helper.start(plan, "true", then=unlimited, cwd=helper.disk, start_new_session=True)
        time.sleep(chance.random() * 0.005)
        # Not send_signal, which waits: the status tells of a core.
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert not os.WCOREDUMP(status)
        assert process.returncode in (0, 125, -number), (number, process.returncode, process.stderr.read())
    assert os.listdir(helper.disk) == []
    helper.check(helper.plan(), "true", "")
    assert settled(helper) == []
