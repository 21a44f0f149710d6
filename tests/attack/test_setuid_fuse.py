"""Images on a FUSE mount of the user's: it shows any owner and any content, and the kernel's squashfs sees neither."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.plan_types import Source, SourceKind
from tests.support import fuse, fuse_server, modes
from tests.support.helper import TRUSTED, WITH_BUILDER
from tests.support.launcher import squashfs

PYTHON = "/usr/bin/python3"


@pytest.fixture(params=["like fusermount", "in a user namespace"])
def served(request, helper):
    """`served(FILE, ...)`: a context with the path of the image on such a mount."""
    if not fuse.possible():
        pytest.skip("there is no /dev/fuse")
    if request.param != "like fusermount" and not modes.userns_works(helper.who):
        pytest.skip("user namespaces are not allowed here")
    program = Path(shutil.copy(fuse_server.__file__, helper.area / "server.py"))
    point = helper.disk / "fuse"
    point.mkdir()
    os.chown(point, helper.uid, helper.gid)

    @contextlib.contextmanager
    def serve(*files):
        command = [PYTHON, program, point, helper.uid, *files]
        if request.param == "like fusermount":
            process = subprocess.Popen(
                [*map(str, command)], text=True, stdout=subprocess.PIPE, preexec_fn=helper.private.enter
            )
            image = point / "image"
        else:
            opened = 'mount --bind $1 /dev/fuse && exec setpriv --reuid $2 --regid $3 --clear-groups -- "${@:4}"'
            node = helper.area / "fuse-node"
            os.mknod(node, 0o666 | 0o020000, Path("/dev/fuse").stat().st_rdev)
            node.chmod(0o666)
            ids = [str(helper.uid), str(helper.gid)]
            words = ["unshare", "-m", "bash", "-c", opened, "bash", node, *ids, *command]
            process = subprocess.Popen(
                [*map(str, words)], text=True, stdout=subprocess.PIPE, preexec_fn=helper.private.enter
            )
            image = Path(f"/proc/{process.pid}/root{point}/image")
        try:
            assert process.stdout.readline() == "ready\n"
            yield image
        finally:
            if request.param == "like fusermount":
                helper.private.root("umount", "-l", point)
            process.kill()
            process.wait()
            process.stdout.close()

    return serve


def facts(helper, image):
    """The source as its user sees it; nobody else may look, root neither."""
    process = helper.as_user("stat", "-c", "%d %i %s %u %a", image, stdout=subprocess.PIPE)
    device, inode, size, owner, mode = process.communicate()[0].split()
    # In a user namespace without root the kernel does not even pass on that owner.
    assert (owner, mode) in (("0", "644"), ("65534", "644"))
    second = 10**9
    return Source(SourceKind.FILE, bytes(image), int(device), int(inode), int(size), second, second)


def test_a_mount_that_shows_an_image_of_roots(helper, served):
    # Every directory above is root's or trusted, so the type of the file system is all that tells.
    trusted = f'trusted_directories = ["{helper.area}", "/", "{helper.disk}"]\n'
    helper.disk.chmod(0o755)
    os.chown(helper.disk, 0, 0)
    image = squashfs(helper.tree, helper.area / "a.sfs")
    image.chmod(0o644)
    script = """n=$(sed -n 's,.*/dev/loop\\([0-9]*\\).*,\\1,p' /proc/self/mountinfo)
        cat $T/s/f; cat /sys/block/loop$n/loop/backing_file"""
    with served(image) as shown:
        plan = helper.image_plan(facts(helper, shown), dynamic=False)
        helper.policy(f'images = "trusted"\n{trusted}')
        helper.refused(plan, TRUSTED)
        helper.policy(f"{WITH_BUILDER}{trusted}")
        code, out, err = helper.run(plan, "sh", "-c", script)
        assert (code, err) == (0, "")
        assert out.startswith("hello\n")
        assert str(shown) not in out


def test_a_mount_that_changes_the_image_between_two_reads(helper, served):
    """What was read once is all that counts: it is rebuilt, or refused in one line."""
    image = squashfs(helper.tree, helper.area / "a.sfs")
    image.chmod(0o644)
    other = helper.area / "b.sfs"
    other.write_bytes(image.read_bytes()[::-1])
    other.chmod(0o644)
    with served(image, other) as shown:
        plan = helper.image_plan(facts(helper, shown), dynamic=False)
        helper.policy('images = "trusted"\n')
        helper.refused(plan, TRUSTED)
        helper.policy(WITH_BUILDER)
        for _ in range(10):
            got, _, err = helper.run(plan, "sh", "-c", "cat $T/s/f")
            assert (got, err.count("\n")) in ((0, 0), (125, 1)), err


def test_a_mount_that_dies_under_the_launch(helper, served):
    helper.policy(WITH_BUILDER)
    image = squashfs(helper.tree, helper.area / "a.sfs")
    image.chmod(0o644)
    with served(image) as shown:
        plan = helper.image_plan(facts(helper, shown), dynamic=False)
    helper.refused(plan)
