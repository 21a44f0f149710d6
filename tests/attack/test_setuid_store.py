"""Rebuilt images that are kept (`--cache`), and what a user may have at once."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox.codec import decode, encode
from sandbox.plan import Attach, Extract, Fuse, Image, Mkdir, Tmpfs, Tree
from sandbox.plan_types import PlanFlag
from sandbox.policy import STORE
from tests.support.helper import BUILDER, WITH_BUILDER, Helper, can_raise_limits, settled
from tests.support.launcher import at, below, source, squashfs
from tests.support.users import Identity, processes_of

BACKING = """n=$(sed -n 's,.*/dev/loop\\([0-9]*\\) .*,\\1,p' /proc/self/mountinfo | head -n1)
    cat /sys/block/loop$n/loop/backing_file"""


def flagged(plan, flag):
    plan = decode(plan)
    return encode(plan.replace(flags=plan.flags | flag))


def kept(helper, image, **options):
    return flagged(helper.image_plan(source(image), **{"dynamic": False, **options}), PlanFlag.KEEP_IMAGES)


def images(helper):
    """What this user has in the store, by name."""
    with contextlib.suppress(FileNotFoundError):
        return {entry.name: entry for entry in helper.private.inside(f"{STORE}/{helper.uid}").iterdir()}
    return {}


def image_of(helper, name, text, size=0):
    """An image of the user's with `text` in f."""
    tree = helper.area / f"tree-{name}"
    tree.mkdir(exist_ok=True)
    (tree / "f").write_text(text)
    (tree / "pad").write_bytes(random.Random(name).randbytes(size))
    path = squashfs(tree, helper.disk / f"{name}.sfs", "-noappend", "-root-mode", "0755")
    os.chown(path, helper.uid, helper.gid)
    return path


@pytest.fixture(autouse=True)
def _empty(helper):
    helper.policy(WITH_BUILDER)
    yield
    assert settled(helper) == []
    for path in images(helper).values():
        path.unlink()


# -- what is kept ---------------------------------------------------------------------------------------------


def test_later_launches_share_what_the_first_made(helper):
    image = helper.own_image()
    plan = kept(helper, image)
    helper.check(plan, "cat $T/s/f", "hello\n")
    ((name, path),) = images(helper).items()
    assert name.startswith("rebuilt-")
    for what, mode in ((path, 0o100400), (path.parent, 0o40700)):
        assert (what.stat().st_uid, what.stat().st_mode) == (0, mode)
    made = path.stat().st_ino
    helper.policy("")  # nobody could build it any more
    runs = [helper.start(plan, "sh", "-c", f"{BACKING}; echo $n; read x", stdin=subprocess.PIPE) for _ in range(4)]
    seen = {run.stdout.readline() + run.stdout.readline() for run in runs}
    assert len(seen) == 1
    assert seen.pop().startswith(f"{STORE}/{helper.uid}/{name}\n")
    for run in runs:
        run.communicate("\n")
    helper.check(kept(helper, image, dynamic=True), "cat $T/d/f; echo x >$T/d/f; cat $T/d/f", "hello\nx\n")
    assert images(helper)[name].stat().st_ino == made


def test_two_at_once_build_it_once(helper):
    plan = kept(helper, image_of(helper, "twice", "twice\n", 4 << 20))
    runs = [helper.start(plan, "sh", "-c", f"{BACKING}; read x", stdin=subprocess.PIPE) for _ in range(3)]
    assert len({run.stdout.readline() for run in runs}) == 1
    for run in runs:
        run.communicate("\n")
    assert len(images(helper)) == 1


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_a_changed_original_is_rebuilt(helper, place):
    """Same name, same size, same mtime, often the same inode: its ctime tells."""
    image = image_of(helper, "changing", "0\n")
    if place == "tmpfs":
        path = Path(f"/dev/shm/{helper.area.parent.name}-{helper.area.name}.sfs")
        path.write_bytes(image.read_bytes())
        os.chown(path, helper.uid, helper.gid)
    else:
        path = image
    try:
        for turn in range(6):
            content = image_of(helper, "other", f"{turn}\n").read_bytes()
            if turn % 2:
                path.unlink()
            path.write_bytes(content)
            os.utime(path, ns=(10**18, 10**18))
            os.chown(path, helper.uid, helper.gid)
            for _ in range(2):
                helper.check(kept(helper, path), "cat $T/s/f", f"{turn}\n")
    finally:
        path.unlink()


def test_other_names_of_the_original(helper):
    image = image_of(helper, "names", "names\n")
    for change in ("ln -s names.sfs link.sfs", "ln names.sfs hard.sfs", "mv names.sfs moved.sfs"):
        helper.check(kept(helper, image), "cat $T/s/f", "names\n")
        subprocess.run(["sh", "-ec", change], cwd=helper.disk, check=True)
        if change.startswith("mv"):
            image = helper.disk / "moved.sfs"
    (helper.disk / "link.sfs").unlink()
    (helper.disk / "link.sfs").symlink_to(image)
    helper.check(kept(helper, helper.disk / "link.sfs"), "cat $T/s/f", "names\n")
    helper.check(kept(helper, image), "cat $T/s/f", "names\n")
    assert len(images(helper)) == 1, "older states of an original go"


def test_original_that_changes_all_the_time(helper):
    """What the kernel parses was written by the builder, whatever happens to the original meanwhile."""
    image = image_of(helper, "busy", "busy\n", 1 << 20)
    good = image.read_bytes()
    script = (
        f"import os\nf=os.open('{image}',2)\nwhile 1:\n for n in (0,40,96,{len(good)}-90): os.pwrite(f,os.urandom(4),n)"
    )
    changer = helper.as_user("/usr/bin/python3", "-c", f"{script}\n os.truncate(f,{len(good)})")
    for _ in range(20):
        got, _, err = helper.run(kept(helper, image), "true")
        assert got in (0, 125), err
        assert err.count("\n") == (got == 125)
    changer.kill()
    changer.wait()
    image.write_bytes(good)
    helper.check(kept(helper, image), "cat $T/s/f", "busy\n")


def test_copies_of_a_trusting_policy_are_not_for_a_strict_one(helper):
    image = helper.own_image()
    helper.policy('images = "any"\n')
    helper.check(kept(helper, image), "cat $T/s/f", "hello\n")
    (copy,) = images(helper)
    assert copy.startswith("copy-")
    helper.policy("")
    helper.refused(kept(helper, image), "names no builder")
    helper.policy(WITH_BUILDER)
    helper.check(kept(helper, image), BACKING, f"{STORE}/{helper.uid}/{copy.replace('copy', 'rebuilt')}\n")


# -- who gets at it -------------------------------------------------------------------------------------------


def test_nobody_but_root_reaches_the_store(helper):
    plan = kept(helper, helper.own_image())
    helper.check(plan, "true", "")
    ((name, path),) = images(helper).items()
    inside = f"{STORE}/{helper.uid}"
    file = f"{inside}/{name}"
    tries = [f"ls {inside}", f"cat {file}", f"ln {file} x", f"touch {inside}/x", f"rm {file}", f"chmod 777 {inside}"]
    for script in (*tries, f"mv {inside} {STORE}/x", "ls /run/sandbox/locks", f"ls /run/sandbox/{helper.uid}"):
        helper.check(plan, f"cd $T; {script} 2>/dev/null || echo no", "no\n")
        outside = helper.as_user("sh", "-c", script, stderr=subprocess.DEVNULL)
        assert outside.wait(timeout=10) != 0, script
    directory = source(path.parent, seen_at=Path(inside))
    bound = helper.plan(Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7), sources=(directory,))
    helper.check(bound, f"ls $T/t/ 2>/dev/null || cat $T/t/{name} 2>/dev/null || echo no", "no\n")
    direct = helper.image_plan(source(path, seen_at=Path(inside, name)), dynamic=False)
    helper.refused(direct, "Permission denied")
    # In a sandbox that shows it nothing of the helper's is open.
    helper.check(plan, "ls -x /proc/$$/fd", "0  1  2\n")


def test_two_users_with_one_image(helper, helper_system, area):
    image = helper.own_image()
    image.chmod(0o644)
    other_area = area.path / "other"
    other_area.mkdir(mode=0o755)
    other = Helper(helper_system, Identity("other", helper.uid + 1_000_000, helper.gid, (), other_area), other_area)
    other.policy(WITH_BUILDER)
    try:
        for who in (helper, other):
            who.check(kept(who, image), "true", "")
            (name,) = images(who)
            who.check(kept(who, image), BACKING, f"{STORE}/{who.uid}/{name}\n")
        assert images(helper).keys() == images(other).keys()
        other.refused(
            other.image_plan(source(next(iter(images(helper).values())), seen_at=Path(STORE, str(helper.uid), "x"))),
            "Permission denied",
        )
    finally:
        for path in images(other).values():
            path.unlink()
        other.finish()


def test_what_somebody_else_put_there_is_not_used(helper):
    """As after a mistake of the administrator: a file of a user's, or one that others can write to."""
    image = helper.own_image()
    helper.check(kept(helper, image), "true", "")
    ((_, path),) = images(helper).items()
    evil = image_of(helper, "evil", "evil\n").read_bytes()
    for owner, mode in ((helper.uid, 0o400), (0, 0o666)):
        path.unlink()
        path.write_bytes(evil)
        os.chown(path, owner, 0)
        path.chmod(mode)
        got, out, err = helper.run(kept(helper, image), "sh", "-c", "cat $T/s/f")
        assert (got, out) == (0, "hello\n"), err
    directory = path.parent
    directory.chmod(0o755)
    got, out, err = helper.run(kept(helper, image), "sh", "-c", "cat $T/s/f")
    assert (got, out, err.count("\n")) == (0, "hello\n", 1)
    assert "could be changed by somebody else" in err
    directory.chmod(0o700)


# -- its size -------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first_and_never_what_is_in_use(helper):
    helper.policy(f"{WITH_BUILDER}store_bytes = {2 << 20}\n")
    made = [image_of(helper, f"lru{number}", f"{number}\n") for number in range(4)]
    helper.check(kept(helper, made[0]), "true", "")
    (first,) = images(helper)
    running = helper.start(kept(helper, made[0]), "sh", "-c", "echo; read x; cat $T/s/f", stdin=subprocess.PIPE)
    running.stdout.readline()
    for number in (1, 2, 3):
        helper.check(kept(helper, made[number]), "cat $T/s/f", f"{number}\n")
        assert first in images(helper)
        assert len(images(helper)) == 2
    helper.policy(f"{WITH_BUILDER}store_bytes = {1 << 20}\n")
    got, _, err = helper.run(kept(helper, made[1]), "true")
    assert (got, err.count("\n")) == (0, 1)
    assert "what is in use there leaves no room" in err
    assert running.communicate("\n")[0] == "0\n"
    assert settled(helper) == []
    helper.check(kept(helper, made[2]), "true", "")
    assert first not in images(helper)


def test_no_program_unlocks_what_is_in_use(helper):
    """Who has the descriptor that holds the lock can let go of it: then a mounted image is evicted, and takes room on
    the disk that is counted no more. So it is given to no program of the user's.
    """
    helper.policy(f"{WITH_BUILDER}store_bytes = {2 << 20}\n")
    made = [image_of(helper, f"held{number}", f"{number}\n") for number in range(3)]
    helper.check(kept(helper, made[0]), "true", "")
    (first,) = images(helper)
    unlock = Extract(4, 0, (b"/usr/bin/python3", b"-c", b"import fcntl; fcntl.flock(0, fcntl.LOCK_UN)"))
    steps = {"after": [Image(1, 0), Tmpfs(4, 1 << 20, 0, 0o700), unlock]}
    steps["before"] = [*steps["after"][1:], Image(1, 0)]
    steps["served"] = [Image(1, 0), Fuse(4, 0, b"/usr/bin/squashfuse_ll")]
    for given in steps.values():
        more = [*given, Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
        plan = flagged(helper.plan(*more, sources=(source(made[0]),)), PlanFlag.KEEP_IMAGES)
        running = helper.start(plan, "sh", "-c", "echo; read x; cat $T/s/f", stdin=subprocess.PIPE)
        if running.stdout.readline():
            for number in (1, 2):
                helper.check(kept(helper, made[number]), "true", "")
            assert first in images(helper)
        assert "the image of a mount is given to no program" in running.communicate("\n")[1]
    # The same file by another descriptor is the user's own.
    other = [Tmpfs(4, 1 << 20, 0, 0o700), unlock.replace(source=1)]
    more = [Image(1, 0), *other, Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
    plan = flagged(helper.plan(*more, sources=(source(made[0]),) * 2), PlanFlag.KEEP_IMAGES)
    running = helper.start(plan, "sh", "-c", "echo; read x; cat $T/s/f", stdin=subprocess.PIPE)
    assert running.stdout.readline() == "\n"
    for number in (1, 2):
        helper.check(kept(helper, made[number]), "true", "")
    assert first in images(helper)
    assert running.communicate("\n")[0] == "0\n"


def test_a_full_disk(helper):
    """The launch goes on in memory, with one line; what is in the store stays."""
    place = f"/var/lib/sbx-full-{helper.uid}"
    assert (
        helper.private.root("sh", "-ec", f"mkdir {place}; mount -t tmpfs -o size=512k,mode=755 x {place}").returncode
        == 0
    )
    helper.policy(f'{WITH_BUILDER}store = "{place}"\n')
    try:
        small, large = image_of(helper, "small", "small\n"), image_of(helper, "large", "large\n", 4 << 20)
        helper.check(kept(helper, small), "true", "")
        before = helper.private.root("ls", "-lR", place).stdout
        got, out, err = helper.run(kept(helper, large), "sh", "-c", "cat $T/s/f")
        assert (got, out, err.count("\n")) == (0, "large\n", 1)
        assert "is not kept, but stays in memory: cannot write to the store: No space left on device" in err
        assert helper.private.root("ls", "-lR", place).stdout == before
        helper.check(kept(helper, small), "cat $T/s/f", "small\n")
        assert settled(helper) == []
    finally:
        helper.policy("")
        assert helper.private.root("sh", "-ec", f"umount {place}; rmdir {place}").returncode == 0


def test_killed_at_any_moment(helper):
    """Nothing half is ever seen, and nothing stays behind it."""
    chance = random.Random(5)
    image = image_of(helper, "killed", "killed\n", 2 << 20)
    for turn in range(30):
        os.utime(image)  # another state of it
        process = helper.start(kept(helper, image), "true", start_new_session=True)
        time.sleep(chance.random() * 0.12)
        process.kill()
        process.communicate()
        if turn % 5 == 4:
            helper.check(kept(helper, image), "cat $T/s/f", "killed\n")
    assert [line for line in settled(helper) if not line.startswith("/")] == []
    helper.check(kept(helper, image), "cat $T/s/f", "killed\n")
    assert [re.match(r"rebuilt-[0-9a-f.-]+$", name) is not None for name in images(helper)] == [True]


# -- what a user may have at once -----------------------------------------------------------------------------


def test_loop_devices_of_a_user(helper):
    helper.policy(f"{WITH_BUILDER}loop_devices = 2\n")
    plans = [kept(helper, image_of(helper, f"loop{number}", f"{number}\n")) for number in range(3)]
    for plan in plans:
        helper.check(plan, "true", "")
    wait = ("sh", "-c", "echo; read x")
    runs = [helper.start(plan, *wait, stdin=subprocess.PIPE) for plan in (*plans[:2], plans[0], plans[1])]
    for run in runs:
        assert run.stdout.readline() == "\n"
    helper.refused(plans[2], "you have all 2 loop devices that the policy allows")
    helper.check(helper.image_plan(helper.roots_source(), dynamic=False), "cat $T/s/f", "hello\n")
    for run in runs:
        run.communicate("\n")
    assert settled(helper) == []
    helper.check(plans[2], "true", "")


THREADS = """import threading, sys
for _ in range(600):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.read()"""


def test_builders_of_others_take_nobodys_place(helper):
    """The kernel counts the processes of a uid on the whole machine, and all builders have the same."""
    others = subprocess.Popen(
        ["/usr/bin/python3", "-c", THREADS], user=BUILDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    )
    try:
        assert others.stdout.readline() == b"\n"
        helper.check(kept(helper, image_of(helper, "beside", "beside\n")), "cat $T/s/f", "beside\n")
    finally:
        others.communicate()


@pytest.mark.skipif(not os.environ.get("SANDBOX_SOAK"), reason="waits for half a minute: make soak")
def test_a_stopped_builder_is_not_waited_for_for_ever(helper):
    helper.policy(f"{WITH_BUILDER}builders = 1\n")
    image = image_of(helper, "stopped", "stopped\n", 8 << 20)
    stopped = helper.start(kept(helper, image), "true", start_new_session=True)
    while not processes_of(BUILDER):
        time.sleep(0.001)
    os.killpg(stopped.pid, signal.SIGSTOP)
    helper.refused(kept(helper, image), "all 1 builders that the policy allows you are at work")
    helper.policy(f"{WITH_BUILDER}builders = 2\n")
    helper.check(kept(helper, image), "cat $T/s/f", "stopped\n")
    os.killpg(stopped.pid, signal.SIGCONT)
    assert stopped.communicate(timeout=60)[1] == ""
    helper.check(kept(helper, image), "cat $T/s/f", "stopped\n")


def low(name, limit):
    """Hard, too, where root can raise it again."""
    number = getattr(resource, f"RLIMIT_{name}")
    hard = limit if can_raise_limits() else resource.getrlimit(number)[1]
    return {"then": lambda: resource.setrlimit(number, (limit, hard))}


@pytest.mark.parametrize(
    ("name", "limit", "shown"),
    [
        ("FSIZE", 0, "0"),
        ("NOFILE", 12, "12"),
        ("STACK", 1 << 18, "256"),
        ("DATA", 1 << 22, "4096"),
        ("AS", 1 << 26, "65536"),
    ],
)
def test_limits_too_low_for_the_helper(helper, name, limit, shown):
    """They do not keep it from working, and are the command's as ever."""
    letter = {"FSIZE": "f", "NOFILE": "n", "STACK": "s", "DATA": "d", "AS": "v"}[name]
    for plan in (kept(helper, helper.own_image()), helper.image_plan(helper.roots_source())):
        helper.check(plan, f"ulimit -S{letter}; cat $T/s/f", f"{shown}\nhello\n", **low(name, limit))


def test_a_file_size_of_nothing(helper):
    plan = helper.image_plan(source(helper.own_image()))
    script = "exec 2>/dev/null; (echo x >$T/x); test -s $T/x || echo nothing"
    helper.check(plan, script, "nothing\n", **low("FSIZE", 0))
    got, _, err = helper.run(plan, "true", then=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert (got, err.count("\n")) == ((0, 0) if can_raise_limits() else (125, 1)), err


# -- privileges -----------------------------------------------------------------------------------------------


def test_new_privileges_only_where_the_policy_allows(helper):
    script = "grep NoNewPrivs /proc/self/status"
    plan = flagged(helper.image_plan(helper.roots_source()), PlanFlag.ALLOW_NEW_PRIVS)
    helper.refused(plan, "the policy allows no command to gain privileges")
    helper.policy(f"{WITH_BUILDER}allow_new_privs = true\n")
    helper.check(plan, script, "NoNewPrivs:\t0\n")
    helper.check(helper.plan(), script, "NoNewPrivs:\t1\n")
    rebuilt = flagged(kept(helper, helper.own_image()), PlanFlag.ALLOW_NEW_PRIVS)
    helper.check(rebuilt, f"{script}; cat $T/s/f", "NoNewPrivs:\t0\nhello\n")
    over = helper.plan(Image(1, 0), Attach(1, at(helper.disk), 7), sources=(helper.roots_source(),))
    helper.check(over, script, "NoNewPrivs:\t1\n")
    helper.refused(flagged(over, PlanFlag.ALLOW_NEW_PRIVS), "nothing is mounted over the host's own directories")
