"""What a reading of the helper found, each tried by a user without any privilege."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.level_steps import Hide, Loopback
from sandbox.plan import Attach, Image, Mkdir, Tmpfs, Tree, Unshare
from sandbox.plan_types import PlanFlag, Source, SourceKind
from sandbox.setuid import HELPER
from tests.support.helper import IMAGES, TRUSTED, WITH_BUILDER, settled
from tests.support.launcher import NEWNS, at, below, source, squashfs

NEWNET = 0x40000000


@pytest.mark.parametrize("cover", ["mount", "hide"])
def test_a_covered_sys_hides_no_loop_device(helper, cover):
    """How many devices a user has was counted in the /sys that his own plan had made."""
    helper.policy('images = "any"\nloop_devices = 1\n')
    own, roots = source(helper.own_image()), helper.roots_source()
    plans = [helper.image_plan(image, dynamic=False) for image in (own, roots)]
    runs = [helper.start(plan, "sh", "-c", "echo; read x", stdin=subprocess.PIPE) for plan in plans]
    assert [run.stdout.readline() for run in runs] == ["\n"] * 2
    empty = [Tmpfs(9, 1 << 16, 0, 0o755), Attach(9, at(Path("/sys")), 0)] if cover == "mount" else [Hide(b"/sys/block")]
    image = (Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7))
    helper.refused(helper.plan(*empty, *image, sources=(own,)), "all 1 loop devices")
    # One that is there is found and shared, whatever covers it.
    helper.check(helper.plan(*empty, *image, sources=(roots,)), "cat $T/s/f", "hello\n")
    for run in runs:
        run.communicate("\n")
    assert settled(helper) == []


@pytest.mark.parametrize("way", ["trusted", "itself"])
def test_a_clone_of_roots_directories_is_not_trusted(helper, way):
    """With --allow-new-privs a sandbox can start the helper again, where the user has mounted an image of his into a
    clone of a trusted directory, or into a clone of a directory inside that directory, which looks like a root
    directory: its own parent. What is in the image is root's, and so is every directory up to there."""
    directory, lifted = helper.roots_place("dir"), f"{WITH_BUILDER}allow_new_privs = true\n"
    (directory / "mnt").mkdir()
    inside = IMAGES / directory.name
    strict = f'{lifted}images = "trusted"\ntrusted_directories = {[str(inside)] if way == "trusted" else []}\n'
    helper.policy(lifted)
    (helper.area / "box").mkdir()
    squashfs(helper.tree, helper.area / "box/evil.sfs")
    outer = squashfs(helper.area / "box", helper.area / "outer.sfs", "-all-root")
    clones = [Tree(2, 1, 1), Tree(3, 1, 1), Mkdir(below("x"), 0o755), Attach(2, below("x"), 0)]
    where = "x/mnt"
    if way == "itself":
        clones.append(Attach(3, below(where), 0))
        where = "x/mnt/mnt"
    sources = (source(outer), source(directory, seen_at=inside))
    plan = helper.plan(
        Image(1, 0), *clones, Attach(1, below(where), 7), sources=sources, flags=PlanFlag.ALLOW_NEW_PRIVS
    )
    home = helper.area / "inner"
    for made in (home, home / "procdirs", home / "records"):
        made.mkdir(mode=0o700)
        os.chown(made, helper.uid, helper.gid)
    again = f"exec 3<{helper.disk}/plan 4</proc/self/environ; exec {HELPER} run 3 4 -- echo mounted"
    process = helper.start(plan, "sh", "-c", f"echo ready; read x; {again}", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    helper.policy(strict.replace("'", '"'))
    command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    evil = helper.home / "procdirs" / str(process.pid) / where / "evil.sfs"
    seen = source(Path(f"/proc/{command}/root{evil}"), seen_at=evil)
    inner = helper.raw(*helper.start_steps(), Image(1, 0), sources=(seen,), home=source(home))
    (helper.disk / "plan").write_bytes(inner)
    out, err = process.communicate("\n")
    assert (process.returncode, out) == (125, "")
    assert TRUSTED in err


def test_messages_do_not_go_to_files_of_roots(helper):
    """Descriptor 2, handed over as a source, was closed with it, and its number went to a lock of root's."""
    place = f"/var/lib/sbx-deep-{helper.uid}"
    assert helper.private.root("mkdir", "-p", f"{place}/store").returncode == 0
    helper.policy(f'{WITH_BUILDER}store = "{place}/store"\nstore_bytes = 1\n')
    images = [helper.own_image(), Path(shutil.copy(helper.area / "own.sfs", helper.area / "other.sfs"))]
    plan = helper.plan(
        *(Image(number + 1, number) for number in range(2)),
        sources=[source(image) for image in images],
        flags=PlanFlag.KEEP_IMAGES,
    )
    (helper.disk / "plan").write_bytes(plan)
    (helper.disk / "env").write_bytes(b"")
    script = f"exec 3<{helper.disk}/plan 4<{helper.disk}/env 2<{images[0]}; exec {HELPER} run 3 4 0=2 -- /bin/true"
    started = helper.as_user("sh", "-c", script)
    assert started.wait(timeout=60) == 0
    locks = helper.private.inside(f"/run/sandbox/{helper.uid}").glob("builder-*")
    assert {lock.read_bytes() for lock in locks} == {b""}
    assert helper.private.root("rm", "-r", place).returncode == 0


def test_only_what_was_handed_over_is_taken(helper):
    """A number that was not open may be one that the helper has opened itself by then."""
    (helper.disk / "env").write_bytes(b"")
    memory = Source(SourceKind.MEMORY, b"")
    for kind in (memory, source(helper.tree)):
        (helper.disk / "plan").write_bytes(helper.plan(sources=(kind,)))
        for number in (*range(3), *range(5, 10)):
            script = (
                f"exec 3<{helper.disk}/plan 4<{helper.disk}/env {number}<&-; exec {HELPER} run 3 4 0={number} -- id"
            )
            got = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={}, **helper.become())
            assert (got.returncode, got.stdout) == (125, "")
            assert number == 2 or "Bad file descriptor" in got.stderr


def test_where_capabilities_are_withheld(helper):
    """As a container does. Without the right to configure a network only what needs one fails, and says so."""
    (helper.disk / "env").write_bytes(b"PATH=/usr/bin:/bin\0")
    networked = [Unshare(NEWNS | NEWNET), *helper.start_steps()[1:], Loopback()]
    for plan, withheld, expected in (
        (helper.plan(), "net_admin", ""),
        (helper.raw(*networked), "net_admin", "sandbox: Loopback: cannot bring up the loopback device"),
        (helper.plan(), "sys_admin", "sandbox: cannot keep the capabilities that mounting needs"),
    ):
        (helper.disk / "plan").write_bytes(plan)
        script = f"exec 3<{helper.disk}/plan 4<{helper.disk}/env; exec {HELPER} run 3 4 -- id -u"
        enter = helper.private.command(["sh", "-c", script], who=helper.who, groups=(helper.group,))
        at_last = enter.index("setpriv")
        enter[at_last + 1 : at_last + 1] = ["--bounding-set", f"-{withheld}"]
        got = subprocess.run(enter, capture_output=True, text=True, timeout=60)
        assert got.stderr.startswith(expected)
        assert (got.returncode, got.stdout) == ((125, "") if expected else (0, f"{helper.uid}\n")), got.stderr


def test_a_name_cannot_make_a_line_of_its_own(helper):
    """The line for the user is the one for the system's log."""
    helper.policy('images = "trusted"\n')
    evil = helper.disk / "a\n<82>b\x1b[2J\u2028c\u202ed\u200be.sfs"
    os.rename(helper.own_image(), evil)
    helper.refused(helper.image_plan(source(evil)), r"a\n<82>b\u{1b}[2J\u{2028}c\u{202e}d\u{200b}e.sfs")
