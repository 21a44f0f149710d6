"""The Python API in a program whose handlers of signals raise, at any moment of a launch."""

import os
import subprocess
import sys

import pytest

INTERRUPTED = """
import contextlib, os, signal, sys, threading
import sandbox
class Interrupted(Exception): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGALRM, interrupt)
def children():
    tasks = os.listdir("/proc/self/task")
    return [pid for task in tasks for pid in open(f"/proc/self/task/{task}/children").read().split()]
def fds(): return len(os.listdir("/proc/self/fd"))
count = 0
with sandbox.prepare() as box:
    box.run(["true"])
    before = fds()
    for step in range(1, 150):
        signal.setitimer(signal.ITIMER_REAL, 0.00004 * step)
        try:
            box.run(["sleep", "1000"], capture_output=True, input=b"x")
        except Interrupted:
            count += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print(count, fds() - before, children())
"""

MASKS = """
import signal, threading
import sandbox
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def mask(): return sandbox.run(["grep", "SigBlk", "/proc/self/status"], text=True, capture_output=True).stdout
found = [mask()]
thread = threading.Thread(target=lambda: found.append(mask()))
thread.start()
thread.join()
print(len(found), {int(line.split()[1], 16) for line in found} == {1 << signal.SIGUSR1 - 1})
"""


@pytest.fixture
def python(run_sandbox, area):
    """What a program prints that uses the API."""

    def run(program: str) -> str:
        env = {**os.environ, "SANDBOX_HOME": str(area.home(as_user=False))}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_an_exception_in_the_middle_of_a_launch_leaves_nothing(python):
    assert python(INTERRUPTED) == "149 0 []\n"


def test_the_command_has_the_signal_mask_of_who_starts_it(python):
    assert python(MASKS) == "2 True\n"
