"""What the steps mount, and what the dead leave."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox import host
from sandbox.plan import Attach, Extract, Fuse, Image, Mkdir, Overlay, Scratch, Tmpfs, Tree
from sandbox.plan_types import Mode
from tests.native import only
from tests.support.launcher import MEMORY, TOP, at, below, memory_file, source, squashfs


@only("root", "userns", "root-userns")
def test_overlay_of_a_directory(native):
    steps = [
        Tree(1, 0, 1),
        Tmpfs(2, 1 << 24, 0, 0o700),
        Overlay(3, (1,), 2, 1 if native.mode == Mode.USERNS else 0),
        Mkdir(below("d"), 0o755),
        Attach(3, below("d"), 6),
        Attach(1, at(native.disk), 7),
    ]
    # A tmpfs that holds no user.* attributes has no marks for what is hidden: EIO.
    hides = native.mode != Mode.USERNS or host.probe().kernel >= host.TMPFS_USER_XATTR
    script = f"""cd $T/d && echo x >f && {"rm -r sub" if hides else "rm sub/*"} && ls && cat {native.disk}/f; ls -A $T
        grep -c layers /proc/self/mountinfo"""
    shown = "broken\nf\n" + ("" if hides else "sub\n") + "tool\n"
    native.check(native.plan(*steps, sources=(source(native.tree),)), script, f"{shown}hello\nd\n0\n", 1)
    assert (native.tree / "f").read_text() == "hello\n"


@only("root", "userns", "root-userns")
def test_many_layers(native):
    count = 25
    trees = [Tree(number, 0, 0) for number in range(1, count)]
    overlay = Overlay(100, tuple(range(1, count)), 0, 1 if native.mode == Mode.USERNS else 0)
    attach = (Mkdir(below("d"), 0o755), Attach(100, below("d"), 6))
    plan = native.plan(*trees, overlay, *attach, sources=(source(native.tree),))
    got, out, err = native.run(plan, "sh", "-c", "cat $T/d/f")
    assert (got, out) in ((0, "hello\n"), (125, "")), err  # overlay may refuse the same layer twice


@only("root", "userns", "root-userns")
def test_scratch_on_disk(native):
    steps = [Scratch(0, 1, 2), Attach(1, TOP, 6), Tree(3, 1, 0)]
    if native.mode == Mode.ROOT:
        steps += [Overlay(4, (3,), 2, 0), Mkdir(below("d"), 0o755), Attach(4, below("d"), 6)]
    plan = native.plan(*steps, sources=(source(native.disk), source(native.tree)))
    native.check(plan, f"echo x > $T/x; ls {native.disk} | cut -c1-8; mkdir -m 0 $T/shut", "sandbox-\n")
    assert os.listdir(native.disk) == []


def test_extract(native):
    archive = native.area / "a.tar"
    subprocess.run(["tar", "-cf", archive, "-C", native.tree, "."], check=True)
    argv = (b"/bin/sh", b"-c", b"exec tar -xf - -C /dev/fd/3")
    steps = [Tmpfs(1, 1 << 24, 0, 0o755), Extract(1, 0, argv), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
    native.check(native.plan(*steps, sources=(source(archive),)), "cat $T/t/f", "hello\n")
    steps[1] = Extract(1, 0, (b"/bin/sh", b"-c", b"echo no such thing; exit 3"))
    ended = native.run(native.plan(*steps, sources=(source(archive),)), "true")
    assert ended == (125, "", "sandbox: no such thing\n")
    steps[1] = Extract(1, 0, (b"/bin/sh", b"-c", b"echo half a line; kill -9 $$"))
    ended = native.run(native.plan(*steps, sources=(source(archive),)), "true")
    assert ended == (125, "", f"sandbox: cannot unpack {archive}: its program was killed by signal 9\n")


def test_handed_over(native):
    fd = memory_file(b"content")
    argv = (b"/bin/sh", b"-c", b"cat > /dev/fd/3/f")
    steps = [Tmpfs(1, 1 << 24, 0, 0o755), Extract(1, 0, argv), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
    native.check(native.plan(*steps, sources=(MEMORY,)), "cat $T/t/f", "content", fds={0: fd})
    native.refused(native.plan(*steps, sources=(MEMORY,)), "not handed over")
    os.close(fd)


def test_places_that_were_swapped(native):
    tree = source(native.tree)
    swapped = at(native.disk).replace(dev=tree.dev, ino=tree.ino)
    for place in (swapped, at(Path("/proc/self/fd/0/.."))):
        got, _, err = native.run(native.plan(Tree(1, 0, 0), Attach(1, place, 7), sources=(tree,)), "true")
        assert (got, err.startswith("sandbox: Attach: ")) == (125, True), err
    (native.tree / "f").write_text("changed\n")
    native.refused(native.plan(Tree(1, 0, 0), sources=(tree.replace(ino=tree.ino + 1),)), "is not what it was")


def test_guard(native):
    native.check(native.plan(), "touch $T/../x 2>&1 | grep -o Read-only", "Read-only\n")


@only("root", "userns", "root-userns")
def test_stale_runs_are_cleaned(native):
    plan = native.plan(Scratch(0, 1, 2), sources=(source(native.disk),), death=False)
    process = native.start(plan, "sh", "-c", "echo ready; exec sleep 1000")
    process.stdout.readline()
    command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.kill()
    process.wait()  # its orphan holds the other ends of the pipes
    assert len(os.listdir(native.home / "procdirs")) == 1
    assert len(os.listdir(native.disk)) == 1
    native.check(native.plan(), "true", "")
    assert os.listdir(native.disk) == []
    with contextlib.suppress(FileNotFoundError):
        assert "State:\tZ" in Path(f"/proc/{command}/status").read_text()


def test_records(native):
    process = native.start(native.plan(), "sh", "-c", "echo ready; exec sleep 1000", 'a\nb"\u00e9')
    process.stdout.readline()
    (name,) = os.listdir(native.home / "records")
    assert (name, os.listdir(native.home / "procdirs")) == (str(process.pid), [name])
    with open(native.home / "records" / name, "rb") as file:
        facts = json.loads(file.readline())  # the encoded plan follows
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert facts["command"][-1] == 'a\nb"\u00e9'
    assert (facts["pid"], facts["mode"], facts["scratch"]) == (process.pid, native.mode.name.lower(), [])
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[19]) <= facts["start_time"] <= time.clock_gettime(time.CLOCK_BOOTTIME) * 100
    native.check(native.plan(), "true", "")  # cleans nothing that lives
    assert os.listdir(native.home / "procdirs") == [name]
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_spare_procdirs(native):
    """The next run's procdir is the last one's directory; what else has the name of a spare one harms nobody."""
    spare = native.home / "spare-0"
    native.check(native.plan(), "true", "")
    first = spare.stat().st_ino
    process = native.start(native.plan(), "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    process.stdout.readline()
    (procdir,) = (native.home / "procdirs").iterdir()
    assert (procdir.stat().st_ino, spare.exists()) == (first, False)
    native.check(native.plan(), "true", "")  # it finds no spare one, and leaves one
    process.communicate("\n")
    assert [(native.home / f"spare-{number}").exists() for number in range(3)] == [True, True, False]
    for odd in (lambda: spare.write_text("x"), lambda: spare.symlink_to("/etc")):
        spare.unlink() if spare.is_file() else spare.rmdir()
        odd()
        native.check(native.plan(), "true", "")
    assert os.listdir(native.home / "procdirs") == []


def test_spare_records(native):
    """The next run's record is the last one's file, emptied; what is not that is no record, and keeps what it says."""
    spare, precious = native.home / "spare-record-0", native.area / "precious"
    native.check(native.plan(), "true", "")
    first = spare.stat()
    assert (first.st_size, first.st_nlink) == (0, 1)
    process = native.start(native.plan(), "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    process.stdout.readline()
    (record,) = (native.home / "records").iterdir()
    assert (record.stat().st_ino, spare.exists()) == (first.st_ino, False)
    process.communicate("\n")
    precious.write_text("x" * 99999)
    with open(spare) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        native.check(native.plan(), "true", "")
    for odd in (spare.symlink_to, spare.hardlink_to):
        spare.unlink()
        odd(precious)
        native.check(native.plan(), "true", "")
        assert (precious.read_text(), precious.stat().st_nlink) == ("x" * 99999, 1)
    assert (os.listdir(native.home / "records"), spare.stat().st_size) == ([], 0)


@only("root", "userns", "root-userns")
def test_names_that_are_taken(native):
    script = 'mkdir "$1/procdirs/$$"; exec "$2" run 9 - -- sh -c "echo \\${T##*/}" 9<"$3"'
    (native.area / "plan").write_bytes(native.plan())
    argv = ["sh", "-c", script, "sh", native.home, native.program, native.area / "plan"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **native.become())
    assert process.communicate()[0] == f"{process.pid}.1\n"
    os.rmdir(native.home / "procdirs" / str(process.pid))


@only("root")
def test_images_share_a_loop_device(native):
    steps = [
        Image(1, 0),
        Tmpfs(2, 1 << 24, 0, 0o700),
        Overlay(3, (1,), 2, 0),
        Mkdir(below("s"), 0o755),
        Attach(1, below("s"), 7),
        Mkdir(below("d"), 0o755),
        Attach(3, below("d"), 6),
    ]
    script = "cat $T/s/f; cd $T/d; echo x >f; cat f; grep -o '/dev/loop[0-9]*' /proc/self/mountinfo; read x"
    plan = native.plan(*steps, sources=(source(squashfs(native.tree, native.area / "tree.sfs")),))
    runs = [native.start(plan, "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(4)]
    devices = set()
    for run in runs:
        assert [run.stdout.readline() for _ in range(2)] == ["hello\n", "x\n"]
        devices.add(run.stdout.readline())
    for run in runs:
        run.communicate("\n")
    assert len(devices) == 1


@only("root")
def test_memory_image(native):
    fd = memory_file(squashfs(native.tree, native.area / "tree.sfs").read_bytes())
    plan = native.plan(Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7), sources=(MEMORY,))
    native.check(plan, "cat $T/s/f", "hello\n", fds={0: fd})
    os.close(fd)


@only("root", "root-userns")
def test_no_image(native):
    path = native.area / "bad.sfs"
    path.write_bytes(b"hsqs" + bytes(8192))
    native.refused(native.plan(Image(1, 0), sources=(source(path),)), f"sandbox: Image: {path}: cannot mount")


@only("root-userns")
def test_fuse(native):
    """A user namespace of root's, since /dev/fuse may be root's alone."""
    program = shutil.which("squashfuse_ll")
    if program is None:
        pytest.skip("squashfuse_ll is not installed")
    image = source(squashfs(native.tree, native.area / "tree.sfs"))
    steps = [Fuse(1, 0, program.encode()), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
    native.check(native.plan(*steps, sources=(image,)), "cat $T/s/f $T/s/sub/g", "hello\ng\n")
