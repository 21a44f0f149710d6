"""A root of the run's own: hostile plans for the setuid helper, and roots whose author wants setup to leave them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.level_steps import Bind, Dev, File, NewRoot, Node, PivotRoot, Symlink
from sandbox.plan import Attach, Mkdir, SetPropagation, Tmpfs, Unshare
from sandbox.plan_types import Base, Place
from tests.support import jobs
from tests.support.launcher import NEWNS, at

START = (Unshare(NEWNS), SetPropagation(2))
ROOT = Tmpfs(0, 1 << 20, 0, 0o755)


def here(path: bytes) -> Place:
    """A place as it is on the host now."""
    status = os.stat(path)
    return Place(Base.ROOT, path, status.st_dev, status.st_ino)


def test_what_the_user_cannot_read_is_not_bound(helper):
    """The helper opens what it clones with the user's rights, by its path and through no link."""
    secret = helper.area / "secret"
    (secret / "inside").mkdir(parents=True)
    secret.chmod(0o700)
    os.chown(secret, 0, 0)
    helper.refused(helper.raw(*START, Bind(0, here(os.fsencode(secret / "inside")))), "Permission denied")
    link = helper.area / "link"
    link.symlink_to("/etc")
    helper.refused(helper.raw(*START, Bind(0, here(os.fsencode(link)))), "Too many levels of symbolic links")
    helper.refused(helper.raw(*START, Bind(0, here(b"/usr").replace(ino=1))), "not what it was")


def test_no_file_with_roots_rights(helper):
    """Files, links and directories are made with the user's rights: the host's own are out of reach."""
    for step in (
        File(at(b"/etc/forged"), 0o644, b"x"),
        Symlink(at(b"/etc/forged"), b"/x"),
        Mkdir(at(b"/etc/forged"), 0o755),
    ):
        helper.refused(helper.raw(*START, step), "Permission denied")
    assert not os.path.lexists("/etc/forged")


def test_no_privileges_on_a_root_of_the_users_choice(helper):
    """A setuid program would believe the /etc that it finds."""
    helper.policy("allow_new_privs = true\n")
    steps = (ROOT, NewRoot(0, 0), Mkdir(at(b"/usr"), 0o755), Bind(1, here(b"/usr")), Attach(1, at(b"/usr"), 0))
    for hostile in (steps, (*steps, PivotRoot(0))):
        helper.refused(helper.raw(*START, *hostile, flags=4), "--allow-new-privs")


def test_a_node_of_a_mount_without_devices_stays_closed(helper):
    """A stick with a device node on it is mounted nodev; a place in the sandbox's /dev does not change that."""
    private = helper.private
    make = "mkdir -p /run/stick && mount -t tmpfs -o nodev,mode=755 none /run/stick && mknod -m 666 /run/stick/z c 1 5"
    assert private.root("sh", "-c", make).returncode == 0
    try:
        dev, ino = map(int, private.root("stat", "-c", "%d %i", "/run/stick/z").stdout.split())
        node = Bind(1, Place(Base.ROOT, b"/run/stick/z", dev, ino))
        plan = helper.raw(*START, node, Dev(), Node(1, b"own"), Bind(2, here(b"/dev/zero")), Node(2, b"dri/zero"))
        script = "head -c 1 /dev/dri/zero | wc -c; head -c 1 /dev/own 2>&1 | grep -c denied; echo x > /dev/file || true"
        code, out, err = helper.run(plan, "sh", "-c", script)
        assert (code, out) == (0, "1\n1\n"), err
        assert "Read-only" in err
    finally:
        private.root("umount", "/run/stick")


# What an image's author may put where setup mounts or makes something, and what it would reach outside.
LINKS = {
    "etc": "{outside}",
    "home": "{outside}",
    "tmp": "/",
    "dev": "../../../../../../../../..{outside}",
    "proc": "/../../run",
    "run": "/proc/self/root{outside}",
}


def test_links_of_a_root_lead_nowhere_out_of_it(launch, area):
    """GHSA-pxhw-h44j-8pfx: setup ran with more rights than the image's author, and followed his links."""
    outside = area.path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    for name, target in LINKS.items():
        root = area.path / f"root-{name}"
        (root / "bin").mkdir(parents=True)
        shutil.copy2(shutil.which("busybox"), root / "bin" / "busybox")
        for other in {"etc", "dev", "proc", "tmp", "run", "home", "var"} - {name}:
            (root / other).mkdir()
        (root / name).symlink_to(target.format(outside=outside))
        done = launch(
            *("--isolation", "strict", "--root", root, "--file", "/etc/forged=x", "--tmpfs", "/home/made"),
            *("--symlink", "x:/run/forged", "--", "/bin/busybox", "ls", "-a", str(outside)),
        )
        assert done.stdout == "", "the host does not show"
        assert done.returncode in (1, 125, 126, 127), (name, done.stderr)
        assert len(done.stderr.splitlines()) == 1, (name, done.stderr)
        assert os.listdir(outside) == [], name
    for path in ("/forged", "/etc/forged", "/run/forged", "/home/made"):
        assert not os.path.lexists(path)


def test_mount_points_of_a_root_that_are_none(launch, area):
    """A file or a FIFO where setup mounts something: it is not opened, nobody waits, and nothing is left out."""
    jobs.spare_python(launch)
    for name, make in (("proc", Path.touch), ("dev", os.mkfifo), ("tmp", os.mkfifo), ("etc/resolv.conf", os.mkfifo)):
        root = area.path / f"root-{name.replace('/', '-')}"
        (root / "bin").mkdir(parents=True)
        shutil.copy2(shutil.which("busybox"), root / "bin" / "busybox")
        for other in {"etc", "dev", "proc", "tmp", "run", "var"} - {name}:
            (root / other).mkdir()
        make(root / name)
        os.chown(root / name, area.dir(launch.as_user).stat().st_uid, -1)
        words = ["--isolation", "strict", "--root", root, "--net", "host", "--", "/bin/busybox", "stat", "-c", "%F"]
        done = launch(*words, "/etc/resolv.conf")
        if done.returncode == 0:  # a FIFO is not copied into RAM, where that is done
            assert name != "proc"
            assert done.stdout == "regular file\n"
        else:
            assert name != "etc/resolv.conf", done.stderr
            assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), (name, done.stderr)
            assert f"/{name}" in done.stderr


def test_a_device_is_one_that_the_user_can_open(launch, area):
    """Not through a link either, which somebody may turn to another node."""
    if launch.as_user:
        done = launch("--device", "/dev/loop-control", "--", "true")
        assert (done.returncode, "Permission denied" in done.stderr) == (125, True), done.stderr
    link = area.dir(launch.as_user) / "null"
    link.symlink_to("/dev/null")
    done = launch("--device", link, "--", "true")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("engine", ["python", "native"])
def test_what_is_mounted_below_a_bind_is_read_only_with_it(engine, installed, area):
    bound = area.dir(False) / "bound"
    (bound / "sub").mkdir(parents=True)
    script = """mount -t tmpfs none "$1/sub" && echo x > "$1/sub/f" && exec "$2" run --mode root --engine "$3" \\
        --isolation strict --ro-bind "$1:/mnt" -- sh -c 'cat /mnt/sub/f; (echo y > /mnt/sub/f) 2>&1 | grep -c only'"""
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    env = {"PATH": os.environ["PATH"], "SANDBOX_HOME": str(area.home(False))}
    done = subprocess.run(
        [*unshare, "sh", bound, installed, engine], capture_output=True, text=True, env=env, check=False
    )
    assert (done.stdout, done.stderr) == ("x\n1\n", "")
