"""Every component of a path, swapped as fast as can be while setuid launches resolve it.

A second or so for each race; `make soak` gives each 20,000 launches or a minute, whatever comes first.
"""

import contextlib
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from sandbox.plan import Attach, Mkdir, Tree
from tests.support.helper import IMAGES, WITH_BUILDER
from tests.support.launcher import at, below, source, squashfs

SOAK = "SANDBOX_SOAK" in os.environ
SECONDS, LAUNCHES = (60.0, 20_000) if SOAK else (0.7, 300)

SWAP = """
import ctypes, sys
swap = ctypes.CDLL(None).renameat2
one, other = (path.encode() for path in sys.argv[1:])
while True:
    swap(-100, one, -100, other, 2)
"""
# Grows, shrinks, refills and replaces a file; its times are set back so that nothing of it shows.
REWRITE = """
import os, random, sys, time
path = sys.argv[1]
good = open(path, 'rb').read()
status = os.stat(path)
evil = open(sys.argv[2], 'rb').read()
while True:
    for data in (evil[:len(good)].ljust(len(good), b'x'), good[:4096], b'', good):
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, data, 0); os.ftruncate(fd, len(data)); os.close(fd)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    time.sleep(random.random() / 100)
"""


@contextlib.contextmanager
def beside(helper, program, *paths):
    """The attacker's own process, as fast as it can."""
    process = helper.as_user("/usr/bin/python3", "-c", program, *paths)
    try:
        time.sleep(0.1)
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()


def race(helper, plan, script, allowed, request):
    """Launch until the time is over. `plan` is called anew, with whatever it finds."""
    seen, end = Counter(), time.monotonic() + SECONDS
    while time.monotonic() < end and seen.total() < LAUNCHES:
        with contextlib.suppress(OSError):
            code, out, err = helper.run(plan(), "sh", "-c", script)
            seen[code, out] += 1
            assert err.count("\n") == (code == 125), err
    print(f"race: {request.node.name}: {seen.total()} launches, {dict(seen)}")
    assert seen.keys() <= set(allowed)
    return seen


def theirs(helper, *paths):
    for path in paths:
        os.chown(path, helper.uid, helper.gid, follow_symlinks=False)


def secret_tree(helper):
    """What the user cannot reach: the very names that he can choose, below a directory of mode 0700."""
    secret = helper.area / "secret"
    (secret / "x").mkdir(parents=True)
    (secret / "x/f").write_text("secret\n")
    (secret / "f").write_text("secret\n")
    secret.chmod(0o700)
    return secret


TREE = (Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7))


@pytest.mark.parametrize("part", ["the directory", "its parent"])
def test_the_source_of_a_tree(helper, request, part):
    secret, play = secret_tree(helper), helper.disk
    (play / "a/x").mkdir(parents=True)
    (play / "a/x/f").write_text("mine\n")
    (play / "link").symlink_to(secret if part == "its parent" else secret / "x")
    theirs(helper, play / "a", play / "a/x", play / "link")
    plan = helper.plan(*TREE, sources=(source(play / "a/x"),))
    swapped = play / "a" if part == "its parent" else play / "a/x"
    with beside(helper, SWAP, swapped, play / "link"):
        race(helper, lambda: plan, "cat $T/t/f", [(0, "mine\n"), (125, "")], request)


@pytest.mark.parametrize("checked", [False, True], ids=["any", "by identity"])
def test_the_target_of_a_bind(helper, request, checked):
    """The mount lands on one of the user's own two directories or, unchecked, where the link leads: never beyond what
    he could cover anyway, and only in his own namespace."""
    play = helper.disk
    (play / "mount").mkdir()
    (play / "link").symlink_to(helper.area)
    theirs(helper, play / "mount", play / "link")
    there = source(play / "mount")
    place = at(play / "mount")
    if checked:
        place = place.replace(dev=there.dev, ino=there.ino)
    plan = helper.plan(Tree(1, 0, 1), Attach(1, place, 7), sources=(source(helper.tree),))
    script = f"test -e {helper.area}/home && echo reachable || echo covered"
    allowed = [(0, "reachable\n"), (125, "")] + ([] if checked else [(0, "covered\n")])
    with beside(helper, SWAP, play / "mount", play / "link"):
        race(helper, lambda: plan, script, allowed, request)
    assert (helper.area / "home").is_dir()


@pytest.mark.parametrize("part", ["home", "procdirs", "records"])
def test_the_home(helper, request, part):
    """A procdir that becomes a link to /etc, so that the user's own tmpfs would cover it."""
    foreign = helper.area / "foreign"
    for directory in (foreign, foreign / "procdirs", foreign / "records"):
        directory.mkdir(mode=0o755)
    home = helper.disk / "home"
    for directory in (home, home / "procdirs", home / "records"):
        directory.mkdir(mode=0o700)
    link = helper.disk / "link"
    link.symlink_to({"home": foreign, "procdirs": "/etc", "records": foreign / "records"}[part])
    theirs(helper, home, home / "procdirs", home / "records", link)
    helper.home = home
    plan = helper.plan(Mkdir(below("x"), 0o755))
    script = "test -e /etc/passwd && echo kept"
    name = home if part == "home" else home / part
    with beside(helper, SWAP, name, link):
        race(helper, lambda: plan, script, [(0, "kept\n"), (125, "")], request)
    assert os.listdir(foreign / "procdirs") == os.listdir(foreign / "records") == []
    if name.is_symlink():  # the swapper ended on an odd turn
        name.unlink()
        link.rename(name)
    helper.check(helper.plan(), "true", "")


@pytest.mark.parametrize("part", ["the file", "its directory"])
def test_the_path_of_an_image(helper, request, part):
    """An image of the user's and the name of root's: what is mounted as it is, is root's."""
    helper.policy('images = "trusted"\n')
    roots = helper.roots_image()
    evil_tree = helper.area / "evil"
    evil_tree.mkdir()
    (evil_tree / "f").write_text("evil\n")
    play = helper.disk / "play"
    play.mkdir()
    squashfs(evil_tree, play / "root.sfs")
    theirs(helper, play, play / "root.sfs")
    link = helper.disk / "link"
    link.symlink_to(IMAGES / "root.sfs" if part == "the file" else IMAGES)
    theirs(helper, link)
    named = helper.source(roots).replace(path=bytes(play / "root.sfs"))
    plan = helper.image_plan(named, dynamic=False)
    with beside(helper, SWAP, play / "root.sfs" if part == "the file" else play, link):
        race(helper, lambda: plan, "cat $T/s/f", [(0, "hello\n"), (125, "")], request)


def test_an_image_that_only_root_may_read(helper, request):
    helper.policy(WITH_BUILDER)
    hidden = secret_tree(helper)
    squashfs(hidden, hidden / "a.sfs")
    play = helper.disk / "play"
    play.mkdir()
    image = Path(shutil.copy(helper.own_image(), play / "a.sfs"))
    (helper.disk / "link").symlink_to(hidden)
    theirs(helper, play, image, helper.disk / "link")
    plan = helper.image_plan(source(image), dynamic=False)
    with beside(helper, SWAP, play, helper.disk / "link"):
        race(helper, lambda: plan, "cat $T/s/f", [(0, "hello\n"), (125, "")], request)


def test_an_image_that_is_rewritten_and_truncated(helper, request):
    """Whatever is copied, it is rebuilt from a copy that stands still, or refused in one line."""
    helper.policy(WITH_BUILDER)
    image = helper.own_image()
    evil = Path(shutil.copy(image, helper.area / "evil.sfs"))
    evil.write_bytes(bytes(96) + evil.read_bytes()[96:][::-1])
    evil.chmod(0o644)

    def plan():
        return helper.image_plan(source(image), dynamic=False)

    # What such an image shows is the user's own business.
    with beside(helper, REWRITE, image, evil):
        race(helper, plan, "head -c 9 $T/s/f >/dev/null 2>&1; true", [(0, ""), (125, "")], request)


def test_an_image_that_is_truncated_while_it_is_mounted(helper):
    helper.policy(WITH_BUILDER)
    image = helper.own_image()
    fd = os.open(image, os.O_RDWR)
    process = helper.start(
        helper.image_plan(source(image), dynamic=False), "sh", "-c", "echo ready; read x; cat $T/s/f", stdin=-1
    )
    assert process.stdout.readline() == "ready\n"
    os.pwrite(fd, b"x" * os.fstat(fd).st_size, 0)
    os.ftruncate(fd, 10)
    os.close(fd)
    assert process.communicate("\n") == ("hello\n", "")


def test_a_plan_that_changes_while_it_is_read(helper):
    """Read once: what is judged is what is done."""
    good = helper.plan()
    bad = helper.raw(*helper.start_steps()[1:])
    fd = os.memfd_create("plan")
    os.write(fd, good)
    flip = """
import os, sys
fd, good, bad = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
while True:
    os.pwrite(fd, bad, 0); os.ftruncate(fd, len(bad)); os.pwrite(fd, good, 0); os.ftruncate(fd, len(good))
"""
    process = helper.as_user("/usr/bin/python3", "-c", flip, fd, good.hex(), bad.hex(), pass_fds=[fd])
    env = os.memfd_create("env")
    codes, end = Counter(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        got, err = helper.attempt(["x", "run", str(fd), str(env), "--", "/bin/true"], pass_fds=[fd, env])
        codes[got] += 1
        assert err.count("\n") == (got == 125), err
    process.kill()
    assert set(codes) == {0, 125}
    os.close(env)
    os.close(fd)
