"""The layers of an overlay, upper and work directory above all: out of the user's reach also while they are attached.

Kernels before 6.15 take no layer that is attached nowhere. On those the first two show all there is; on newer ones the
last one makes the kernel refuse.
"""

import pytest

from sandbox.plan import Attach, Chdir, Extract, Image, Mkdir, Overlay, Stack, Tmpfs
from tests.support.helper import settled
from tests.support.launcher import below

PYTHON = b"/usr/bin/python3"
LAYERS = [Image(1, 0), Tmpfs(2, 1 << 24, 0, 0o700), Overlay(3, (1,), 2, 0)]
PLACES = ["", "/1", "/2", "/2/3", "/2/3/upper", "/2/3/work"]

# Every mount that there is, and what of an overlay's layers can be found in it.
LOOK = """
import os, sys
for line in open('/proc/self/mountinfo'):
    place = line.split()[4]
    for name in ('', '1', '2', '2/3', '3'):
        for part in ('upper', 'work', 'sub/g'):
            path = os.path.join(place, name, part)
            if 'layer' in place and os.path.lexists(path):
                print(path, file=open(sys.argv[1], 'a'))
print('looked', file=open(sys.argv[1], 'a'))
"""

# A limit goes by ids alone (prlimit(2)): the helper's child has no descriptor left until a moment later.
LOWER = """
import contextlib, os, resource, sys, time
helper, number = os.getppid(), resource.RLIMIT_NOFILE
before = resource.prlimit(helper, number)
resource.prlimit(helper, number, (int(sys.argv[1]), before[1]))
if os.fork():
    os._exit(0)
time.sleep(float(sys.argv[2]))
with contextlib.suppress(ProcessLookupError):
    resource.prlimit(helper, number, before)
"""


def program(slot, text, *words):
    """A program of the user's as a step, in the middle of the others."""
    words = tuple(str(word).encode() for word in words)
    return [Tmpfs(slot, 1 << 20, 0, 0o700), Extract(slot, 1, (PYTHON, b"-c", text.encode(), *words))]


def sources(helper):
    image, other = helper.roots_source(), helper.source(helper.roots_image("other.sfs"))
    return [image, image, other]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place or "top")
def test_no_step_leads_to_them(helper, place):
    steps = [*LAYERS, Mkdir(below("d"), 0o755), Attach(3, below("d"), 6), Chdir(below(f".sandbox-layers{place}"))]
    helper.refused(helper.plan(*steps, sources=sources(helper)), "Chdir: ")


def test_no_program_of_the_user_finds_them(helper):
    """Not while others are made either."""
    looked = helper.disk / "looked"
    steps = [*LAYERS, *program(4, LOOK, looked), Image(5, 0), Overlay(6, (5,), 2, 0), *program(7, LOOK, looked)]
    steps += [Image(8, 2), Stack(9, (1, 8), 0), *program(10, LOOK, looked)]
    steps += [Mkdir(below("d"), 0o755), Attach(3, below("d"), 6), *program(11, LOOK, looked)]
    script = "cd $T/d && cat f && mv sub other && cat other/g && rm -r other && ls"
    helper.check(helper.plan(*steps, sources=sources(helper)), script, "hello\ng\nbroken\nf\ntool\n", 0)
    assert looked.read_text() == "looked\n" * 4
    assert settled(helper) == []


def test_no_want_of_descriptors_leads_to_them(helper):
    """What fails for another reason than the kernel's own rule is not tried in another way."""
    given = sources(helper)

    def launch(limit, delay):
        steps = [*LAYERS[:2], *program(4, LOWER, limit, delay), LAYERS[2], Chdir(below(".sandbox-layers/2/3/work"))]
        return helper.run(helper.plan(*steps, sources=given), "sh", "-c", "ls -a; pwd")

    # Enough to make the directories, and not to mount an overlay on them.
    passed = ("keep the upper", "make upper", "Chdir: ")
    limits = [limit for limit in range(8, 40) if not any(words in launch(limit, 0.2)[2] for words in passed)]
    assert limits, "the limit is never too low for the overlay alone: the test tests nothing"
    for limit in limits:
        for step in range(60):
            code, out, err = launch(limit, step * 0.0002)
            assert (code, out, err.count("\n")) == (125, "", 1), (limit, step, out, err)
    assert settled(helper) == []
