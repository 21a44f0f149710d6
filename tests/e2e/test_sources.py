"""Real sources, big and odd, and what must be refused: through the command, as root and as an ordinary user."""

import os
import subprocess
import zipfile

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine

ENGINES = ["python", *(["native"] if native_engine() else [])]
TREE = [Entry("f", b"hello\n"), Entry("sub/g", b"g\n")]


@pytest.mark.big
@pytest.mark.timeout(1800)
def test_a_compiler_from_a_wheel(run_sandbox, who, area, zig_wheel, zig_cache):
    """Static: it compiles. Dynamic: it may be taken apart, and the next run sees it whole."""
    where = area.dir(who.as_user)
    (where / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hi"); return 0; }\n')
    args = ["run", "--cache", "-s", f"zig:{zig_wheel}", "--run", "zig/ziglang/zig", "cc", "-o", "hello", "hello.c"]
    run_sandbox(args, as_user=who.as_user, env=zig_cache, check=True, timeout=900)
    assert subprocess.run([where / "hello"], capture_output=True, text=True).stdout == "hi\n"
    script = 'cd "$SANDBOX_DYNAMIC/zig" && rm -r ziglang/lib && echo x > ziglang/zig && cat ziglang/zig && ls ziglang'
    args = ["run", "--cache", "-d", f"zig:{zig_wheel}", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=who.as_user, check=True, timeout=400)
    assert done.stdout.startswith("x\n")
    assert "lib" not in done.stdout.split()
    args = ["run", "--cache", "-d", f"zig:{zig_wheel}", "--run", "zig/ziglang/zig", "version"]
    assert run_sandbox(args, as_user=who.as_user, check=True, timeout=400).stdout.startswith("0.")


@pytest.mark.big
def test_without_cache_nothing_of_an_archive_reaches_the_home(run_sandbox, who, area):
    where = area.dir(who.as_user)
    secret = os.urandom(200_000).hex().encode()
    archives.make_zip(where / "secret.zip", [Entry("secret", secret)])
    script = "wc -c < $SANDBOX_STATIC/secret/secret"
    done = run_sandbox(["run", "-s", "secret.zip", "--", "sh", "-c", script], as_user=who.as_user, check=True)
    assert int(done.stdout) == 400_000
    sizes = [p.stat().st_size for p in area.home(who.as_user).rglob("*") if p.is_file()]
    assert sum(sizes) < 4096


def test_setuid_and_devices_in_archives_and_images_give_nothing(run_sandbox, who, area):
    where = area.dir(who.as_user)
    entries = [
        Entry("su", b"#!/bin/sh\nid -u\n", mode=0o4755),
        Entry("disk", kind="blockdev", device=(7, 0), mode=0o666),
        Entry("null", kind="chardev", device=(1, 3), mode=0o666),
    ]
    archives.make_squashfs(where / "i.sfs", entries)
    archives.make_tar(where / "a.tar", entries)
    script = """for t in i a; do cd $SANDBOX_STATIC/$t; test -u su && echo setuid $t; for d in disk null; do
    if [ -e $d ]; then cat $d 2>/dev/null && echo readable $t/$d; fi; done; done
    grep -c 'nosuid,nodev' /proc/self/mountinfo"""
    args = ["run", "-s", "i.sfs", "-s", "a.tar", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=who.as_user, check=True)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("readable")]
    # A kernel-mounted image shows the bit and ignores it (nosuid); what we convert has lost it.
    assert "setuid a" not in lines
    assert int(lines[-1]) >= 3


@pytest.mark.parametrize("option", ["-s", "-d"])
@pytest.mark.parametrize("cache", [[], ["--cache"]])
def test_a_link_to_shadow_changes_nothing(run_sandbox, who, area, option, cache):
    where = area.dir(who.as_user)
    target = where / "target"
    target.write_text("untouched\n")
    os.chown(target, 0, 0) if os.geteuid() == 0 else None
    before = (target.stat().st_mode, target.stat().st_uid, target.stat().st_mtime_ns, target.read_text())
    links = [Entry.symlink("x", str(target)), Entry.symlink("d", str(where)), Entry("f", b"x")]
    archives.make_tar(where / "a.tar", links)
    args = ["run", *cache, option, "a.tar", "--", "true"]
    run_sandbox(args, as_user=who.as_user, check=True)
    assert (target.stat().st_mode, target.stat().st_uid, target.stat().st_mtime_ns, target.read_text()) == before


def _refused(where, name):
    match name:
        case "traversal":
            return archives.make_tar(where / "a.tar", [Entry("../x", b"x")])
        case "absolute":
            return archives.make_tar(where / "a.tar", [Entry("/abs", b"x")])
        case "through a link":
            return archives.make_tar(where / "a.tar", [Entry.symlink("l", "/tmp"), Entry("l/x", b"x")])
        case "hard link out":
            return archives.make_tar(where / "a.tar", [Entry.hardlink("x", "/etc/passwd")])
        case "truncated":
            path = archives.make_tar(where / "a.tar", [Entry("x", os.urandom(100_000))], compression="gzip")
            path.write_bytes(path.read_bytes()[:50_000])
            return path
        case "file and directory":
            return archives.make_tar(where / "a.tar", [Entry("x", b"x"), Entry("x/y", b"y")])
        case "garbage in text":
            path = archives.make_text(where / "a.txt", archives.make_zip(where / "a.zip", TREE))
            path.write_text(path.read_text()[:60] + "!!garbage!!\n" + path.read_text()[60:])
            return path
        case "bomb":
            path = where / "a.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("big", "w") as file:
                for _ in range(64):
                    file.write(bytes(1 << 20))
            return path
    raise AssertionError(name)


NAMES = [
    "traversal",
    "absolute",
    "through a link",
    "hard link out",
    "truncated",
    "file and directory",
    "garbage in text",
    "bomb",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", [[], ["--cache"]], ids=["", "cached"])
def test_hostile_archives_are_refused(run_sandbox, who, area, name, cache):
    where = area.dir(who.as_user)
    source = _refused(where, name)
    args = ["run", "--max-unpacked", "32M", *cache, "-s", f"a:{source}", "--", "true"]
    done = run_sandbox(args, as_user=who.as_user)
    assert done.returncode == 125, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert source.name in done.stderr
    home = area.home(who.as_user)
    assert not [p for p in home.glob("cache/*") if p.suffix != ".lock"], "nothing half-built stays"


def test_both_engines_say_once_what_is_wrong_with_an_archive(run_sandbox, user, area):
    """This user cannot open /dev/fuse: the archive is unpacked within the launch."""
    archives.make_tar(area.dir(as_user=True) / "up.tar", [Entry("../f", b"x")])
    for engine in ENGINES:
        done = run_sandbox(["run", "--mode", "userns", "--engine", engine, "-s", "up.tar", "--", "true"], as_user=True)
        said = "sandbox: cannot unpack up.tar: entry '../f' would leave the tree with '..'\n"
        assert (done.returncode, done.stderr) == (125, said)


def test_a_tmpfs_that_is_too_small_is_said_before(run_sandbox, user, area):
    where = area.dir(as_user=True)
    archives.make_zip(where / "a.zip", [Entry("big", bytes(8 << 20))])
    done = run_sandbox(["run", "--mode", "userns", "--tmpfs-size", "4M", "-d", "a.zip", "--", "true"], as_user=True)
    assert done.returncode == 125
    assert "--tmpfs-size" in done.stderr
    archives.make_tar(where / "b.tar", [Entry("big", os.urandom(8 << 20))], compression="gzip")
    done = run_sandbox(
        ["run", "--mode", "userns", "--tmpfs-size", "4M", "-d", "b.tar.gz:b.tar", "--", "true"], as_user=True
    )
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_full_disk_while_caching(run_sandbox, who, area):
    """The home on a small tmpfs of a private mount namespace; what is in the cache already survives."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    where = area.dir(who.as_user)
    archives.make_zip(where / "small.zip", TREE)
    archives.make_tar(where / "big.tar", [Entry("big", os.urandom(12 << 20))])
    (where / "disk").mkdir()
    become = f"setpriv --reuid {who.uid} --regid {who.gid} --clear-groups" if who.as_user else "env"
    sb = f"{become} {run_sandbox.command} run --cache"
    script = f"""mount -t tmpfs -o size=6M,mode=755,uid={who.uid},gid={who.gid} none disk
    {sb} -s small.zip -- true || exit 1
    {sb} -s big.tar -- true; echo "code $?"; ls -A disk/home/cache | grep -v -e json -e uses | wc -l
    {sb} -s small.zip -- sh -c 'cat $SANDBOX_STATIC/small/f'"""
    env = run_sandbox.environment(who.as_user, {"SANDBOX_HOME": str(where / "disk/home")})
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=env, cwd=where, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["code 125", "1", "hello"], (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("damage", ["empty", "truncated", "noise"])
def test_a_damaged_cached_image_is_made_anew(run_sandbox, area, damage):
    if os.geteuid() != 0:
        pytest.skip("as root the cache holds images")
    where = area.dir(as_user=False)
    archives.make_zip(where / "a.zip", [*TREE, Entry("noise", os.urandom(300_000))])
    args = ["run", "--cache", "-s", "a.zip", "--", "sh", "-c", "cat $SANDBOX_STATIC/a/f"]
    run_sandbox(args, as_user=False, check=True)
    (image,) = area.home(as_user=False).glob("cache/*.sfs")
    image.chmod(0o600)
    data = {"empty": b"", "truncated": image.read_bytes()[:100_000], "noise": os.urandom(400_000)}[damage]
    image.write_bytes(data)
    done = run_sandbox(args, as_user=False)
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr


def test_a_directory_that_cannot_be_copied_is_one_line(run_sandbox, area):
    """What belongs to others is copied in a user namespace; what cannot be read stops that, clearly."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a directory of somebody else's")
    tree = archives.make_tree(area.path / "theirs", [*TREE, Entry("secret", b"x", mode=0o600)])
    args = ["run", "--mode", "userns", "-d", f"t:{tree}", "--", "true"]
    for engine in ENGINES:
        done = run_sandbox([*args[:1], "--engine", engine, *args[1:]], as_user=True)
        assert done.returncode == 125
        assert "secret" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    done = run_sandbox(["run", "--mode", "userns", "-d", "r:/", "--", "true"], as_user=True, timeout=250)
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1, done.stderr
