"""Which images the kernel is shown, and what becomes of all others."""

import os
import random
import shutil
import subprocess
from pathlib import Path

from sandbox.plan import Attach, Image
from sandbox.plan_types import Base, Place
from tests.support.helper import BUILDER, IMAGES, TRUSTED, USE, USED, WITH_BUILDER
from tests.support.launcher import MEMORY, source, squashfs


def test_image_of_roots(helper):
    helper.check(helper.image_plan(helper.roots_source()), USE, USED)


def test_images_of_roots_share_a_loop_device(helper):
    plan = helper.image_plan(helper.roots_source(), dynamic=False)
    script = "grep -o '/dev/loop[0-9]*' /proc/self/mountinfo; read x"
    runs = [helper.start(plan, "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(6)]
    assert len({run.stdout.readline() for run in runs}) == 1
    for run in runs:
        run.communicate("\n")


def test_image_is_rebuilt(helper):
    helper.policy(WITH_BUILDER)
    image = helper.own_image()
    helper.check(helper.image_plan(source(image)), USE, USED)
    image.chmod(0o600)  # the builder needs no right to the original
    helper.check(helper.image_plan(source(image)), USE, USED)
    fd = os.open(image, os.O_RDONLY)
    helper.check(helper.image_plan(MEMORY), USE, USED, fds={0: fd})
    os.close(fd)


def test_rebuilding_changes_the_bytes(helper):
    helper.policy(WITH_BUILDER)
    image = helper.own_image("-comp", "gzip")
    script = """n=$(sed -n 's,.*/dev/loop\\([0-9]*\\).*,\\1,p' /proc/self/mountinfo)
        cat /sys/block/loop$n/loop/backing_file"""
    helper.check(helper.image_plan(source(image), dynamic=False), script, "/memfd:sandbox-image (deleted)\n")


def test_any_and_trusted(helper):
    image = source(helper.own_image())
    helper.refused(helper.image_plan(image), "names no builder")
    helper.policy('images = "trusted"\n' + WITH_BUILDER)
    helper.refused(helper.image_plan(image), TRUSTED)
    helper.policy('images = "any"\n')
    helper.check(helper.image_plan(image, dynamic=False), "cat $T/s/f", "hello\n")
    helper.refused(helper.image_plan(image), "an option that is not allowed")


def test_limits(helper):
    helper.policy(WITH_BUILDER + "image_bytes = 100\n")
    helper.refused(helper.image_plan(source(helper.own_image())), "longer than the policy allows (100 bytes)")
    helper.policy("[limits]\ntmpfs_bytes = 1048576\n")
    helper.check(helper.plan(), "head -c 2000000 /dev/zero >$T/x 2>/dev/null || echo full", "full\n")


def test_what_is_not_trusted(helper):
    helper.policy('images = "trusted"\n')
    image = helper.roots_image()
    helper.check(helper.image_plan(helper.source(image), dynamic=False), "cat $T/s/f", "hello\n")
    image.chmod(0o664)
    helper.refused(helper.image_plan(helper.source(image)), TRUSTED)
    image.chmod(0o644)
    os.chown(image, helper.uid, 0)
    helper.refused(helper.image_plan(helper.source(image)), TRUSTED)
    os.chown(image, 0, 0)
    # Root's, in a directory in which the user can put anything in its place.
    for directory, mode, owner in (("theirs", 0o755, helper.uid), ("open", 0o777, 0), ("sticky", 0o1777, 0)):
        place = helper.roots_place(directory)
        copy = Path(shutil.copy(image, place / "a.sfs"))
        os.chown(place, owner, 0)
        place.chmod(mode)
        helper.refused(helper.image_plan(helper.source(copy)), TRUSTED)
        place.chmod(0o755)
        os.chown(place, 0, 0)
        helper.check(helper.image_plan(helper.source(copy), dynamic=False), "cat $T/s/f", "hello\n")
    # A link of the user's to an image of root's is only a name.
    link = helper.disk / "link.sfs"
    link.symlink_to(IMAGES / image.name)
    named = helper.source(image).replace(path=bytes(link))
    helper.check(helper.image_plan(named, dynamic=False), "cat $T/s/f", "hello\n")


def test_trusted_directories(helper):
    """Among them CVE-2026-48785: a path limit of `/scratch` that also matched `/scratch2`."""
    trusted, prefix = helper.area / "img", helper.area / "img2"  # beneath /var/tmp, where anybody can make things
    for directory in (trusted, prefix):
        directory.mkdir()
        squashfs(helper.tree, directory / "a.sfs").chmod(0o644)
    helper.policy(f'images = "trusted"\ntrusted_directories = ["{trusted}"]\n')
    helper.check(helper.image_plan(source(trusted / "a.sfs"), dynamic=False), "cat $T/s/f", "hello\n")
    helper.refused(helper.image_plan(source(prefix / "a.sfs")), TRUSTED)
    around = source(prefix / "a.sfs").replace(path=bytes(trusted) + b"/../img2/a.sfs")
    helper.refused(helper.image_plan(around), TRUSTED)
    theirs = trusted / "user"
    theirs.mkdir()
    os.chown(theirs, helper.uid, helper.gid)
    os.link(trusted / "a.sfs", theirs / "a.sfs")
    helper.refused(helper.image_plan(source(theirs / "a.sfs")), TRUSTED)


def test_image_inside_an_image_is_not_trusted(helper):
    """Owner and directories are root's there, and the content is the user's."""
    helper.policy(f'{WITH_BUILDER}images = "rebuild"\ntrusted_directories = ["{IMAGES}"]\n')
    inner = squashfs(helper.tree, helper.area / "inner.sfs")
    box = helper.area / "box"
    box.mkdir()
    shutil.copy(inner, box / "evil.sfs")
    outer = squashfs(box, helper.area / "outer.sfs", "-all-root")
    place = IMAGES / helper.roots_place("mnt").name
    steps = [Image(1, 0), Attach(1, Place(Base.ROOT, bytes(place)), 7)]
    plan = helper.plan(*steps, sources=(source(outer),))
    process = helper.start(plan, "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n", process.poll() and process.stderr.read()
    command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    inside = Path(f"/proc/{command}/root{place}/evil.sfs")
    assert (inside.stat().st_uid, inside.read_bytes()) == (0, inner.read_bytes())
    helper.policy(f'images = "trusted"\ntrusted_directories = ["{IMAGES}", "/"]\n')
    helper.refused(helper.image_plan(source(inside)), TRUSTED)
    process.communicate("\n")


def test_replaced_after_the_check(helper):
    helper.policy(WITH_BUILDER)
    image = helper.own_image()
    plan = helper.image_plan(source(image))
    os.rename(image, f"{image}.old")
    shutil.copy(f"{image}.old", image)
    helper.refused(plan, "is not what it was when the plan was made")


def test_crafted_images(helper):
    helper.policy(WITH_BUILDER)
    good = helper.own_image().read_bytes()
    bad = helper.area / "bad.sfs"
    chance = random.Random(1)
    ran = 0
    for turn in range(60):
        data = bytearray(good)
        places = range(96) if turn % 2 else range(len(data) // 2, len(data))
        for _ in range(1 + turn % 4):
            data[chance.choice(places)] = chance.randrange(256)
        bad.write_bytes(data if turn % 5 else data[: chance.randrange(len(data))])
        got, _, err = helper.run(helper.image_plan(source(bad), dynamic=False), "true")
        assert (got, err.count("\n")) in ((0, 0), (125, 1)), err
        ran += got == 0
    assert ran < 60


def test_setuid_programs_and_devices_in_images(helper):
    helper.policy(WITH_BUILDER)
    box = helper.area / "box"
    box.mkdir()
    shutil.copy("/usr/bin/id", box / "id")
    (box / "id").chmod(0o4755)
    for name, kind, number in (("null", 0o020000, os.makedev(1, 3)), ("disk", 0o060000, Path("/").stat().st_dev)):
        os.mknod(box / name, 0o666 | kind, number)
        (box / name).chmod(0o666)
    image = squashfs(box, helper.area / "box.sfs")
    script = "$T/s/id -u; cat $T/s/null; head -c1 $T/d/disk; $T/d/id -u"
    got, out, err = helper.run(helper.image_plan(source(image)), "sh", "-c", script)
    assert (got, out, err.count("Permission denied")) == (0, f"{helper.uid}\n{helper.uid}\n", 2), err


def test_builder_of_a_package(helper):
    """Whom a directory of root's belongs to, where the policy names nobody; the policy wins over it."""
    image = source(helper.own_image())
    directory = helper.private.inside("/var/lib/sandbox/builder")
    directory.mkdir()
    try:
        for uid, gid in ((0, BUILDER), (BUILDER, 0), (helper.uid, BUILDER)):
            os.chown(directory, uid, gid)
            helper.refused(helper.image_plan(image), "names no builder")
        os.chown(directory, BUILDER, BUILDER)
        helper.check(helper.image_plan(image), USE, USED)
        helper.policy(f"builder_uid = {BUILDER}\n")
        helper.refused(helper.image_plan(image), "names no builder")
        helper.policy("")
        directory.parent.chmod(0o777)
        helper.refused(helper.image_plan(image), "could be changed by somebody else than root")
    finally:
        directory.parent.chmod(0o755)
        directory.rmdir()
