"""`sandbox image` as a user types it."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import archives, no_tmpfile
from tests.support.archives import Entry
from tests.support.runner import Area, Runner
from tests.support.setuid import SetuidSystem
from tests.support.users import Identity


def source(area: Area, who: Identity, content: bytes, name: str = "s.tar") -> str:
    path = archives.make_tar(area.dir(who.as_user) / name, [Entry("f", content), Entry.symlink("out", "/etc/passwd")])
    os.chown(path, who.uid, who.gid)
    return name


ENGINES = ["python", "native"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_name_is_built_run_switched_and_rolled_back(
    run_sandbox: Runner, who: Identity, area: Area, engine: str
) -> None:
    def seen(option: str = "-s") -> str:
        where = "STATIC" if option == "-s" else "DYNAMIC"
        args = ["run", "--engine", engine, option, "t:@tool", "--", "sh", "-c", f'cat "$SANDBOX_{where}/t/f"']
        return run_sandbox(args, as_user=who.as_user, check=True).stdout

    for content in (b"one", b"two"):
        args = ["image", "build", source(area, who, content), "-t", "tool"]
        digest = run_sandbox(args, as_user=who.as_user, check=True).stdout.strip()
        assert (seen(), seen("-d")) == (content.decode(), content.decode())
    assert run_sandbox(["image", "rollback", "tool"], as_user=who.as_user, check=True).stdout.strip() != digest
    assert seen() == "one"
    whole = run_sandbox(["run", "-s", f"t:@{digest}", "--", "true"], as_user=who.as_user)
    assert whole.returncode == 0, whole.stderr
    default = run_sandbox(["run", "-s", "@tool", "--", "ls", "-d", "static"], as_user=who.as_user)
    assert default.returncode != 125, default.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_a_running_sandbox_keeps_its_image(run_sandbox: Runner, who: Identity, area: Area, engine: str) -> None:
    """Through a switch, removal of the name, and a budget of nothing; the image itself goes when the run has ended."""
    run_sandbox(["image", "build", source(area, who, b"one"), "-t", "tool"], as_user=who.as_user, check=True)
    script = 'echo ready; read -r _; cat "$SANDBOX_STATIC/tool/f"'
    args = ["run", "--engine", engine, "-s", "@tool", "--", "sh", "-c", script]
    running = run_sandbox.popen(args, as_user=who.as_user, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    run_sandbox(["image", "build", source(area, who, b"two"), "-t", "tool"], as_user=who.as_user, check=True)
    done = run_sandbox(["image", "rm", "tool"], as_user=who.as_user, check=True)
    kept = list(area.home(who.as_user).glob("cache/*.sfs"))
    # In a user namespace without FUSE the run has a copy by now, and the image may go.
    if not who.as_user or kept:
        assert "a sandbox is using it" in done.stderr
    running.stdin.write("\n")
    running.stdin.close()
    assert running.stdout.read() == "one"
    assert running.wait() == 0
    for image in kept:
        run_sandbox(["image", "rm", f"sha256:{image.stem}"], as_user=who.as_user, check=True)
    assert not list(area.home(who.as_user).glob("cache/*.sfs"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_kept_tree_stays_while_a_sandbox_uses_it(
    run_sandbox: Runner, identities: dict[bool, Identity], area: Area, engine: str
) -> None:
    """In a user namespace without FUSE the cache keeps trees."""
    name = source(area, identities[True], b"one")
    script = 'echo ready; read -r _; cat "$SANDBOX_DYNAMIC/t/f"'
    args = ["run", "--engine", engine, "--mode", "userns", "--cache", "-d", f"t:{name}", "--", "sh", "-c", script]
    running = run_sandbox.popen(args, as_user=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    done = run_sandbox(["cache", "rm", "--all"], as_user=True)
    assert "a sandbox is using it" in done.stderr
    running.stdin.close()
    assert running.stdout.read() == "one"
    assert running.wait() == 0
    run_sandbox(["cache", "rm", "--all"], as_user=True, check=True)


def test_listings_as_json(run_sandbox: Runner, who: Identity, area: Area) -> None:
    def told(*args: str) -> list[dict[str, object]]:
        found = json.loads(run_sandbox(["image", *args, "--json"], as_user=who.as_user, check=True).stdout)
        return found if isinstance(found, list) else [found]

    run_sandbox(["image", "build", source(area, who, b"one"), "-t", "a"], as_user=who.as_user, check=True)
    run_sandbox(["image", "build", "@a", "--compress", "small", "-t", "b"], as_user=who.as_user, check=True)
    assert [(image["names"], image["compression"]) for image in told("ls")] == [(["a"], "lz4"), (["b"], "zstd")]
    (image,) = told("inspect", "a")
    assert (image["files"], image["source"], image["kept"]) == (3, "s.tar", True)
    assert str(image["created"]).endswith("Z")
    assert image == told("ls")[0]
    data = next(area.home(who.as_user).glob(f"cache/{image['digest']}.sfs")).read_bytes()
    assert hashlib.sha256(data).hexdigest() == image["digest"]
    assert [entry["name"] for entry in told("ls", "a")] == ["f", "out"]
    assert [generation["current"] for generation in told("history", "a")] == [True]
    assert [verdict["problem"] for verdict in told("verify", "--all")] == ["", ""]


def test_looking_inside(run_sandbox: Runner, who: Identity, area: Area) -> None:
    run_sandbox(["image", "build", source(area, who, b"one"), "-t", "a"], as_user=who.as_user, check=True)
    assert run_sandbox(["image", "cat", "a", "f"], as_user=who.as_user, check=True).stdout == "one"
    done = run_sandbox(["image", "cat", "@a", "out"], as_user=who.as_user)
    assert (done.returncode, done.stdout) == (125, "")
    assert "links are not followed" in done.stderr
    assert "/etc/passwd" in run_sandbox(["image", "ls", "a", "/"], as_user=who.as_user, check=True).stdout


def test_export_and_import(run_sandbox: Runner, who: Identity, area: Area) -> None:
    run_sandbox(["image", "build", source(area, who, b"one"), "-t", "a"], as_user=who.as_user, check=True)
    run_sandbox(["image", "export", "a", "a.sfs"], as_user=who.as_user, check=True)
    elsewhere = {"SANDBOX_HOME": str(area.dir(who.as_user) / "elsewhere")}
    args = ["image", "import", "a.sfs", "-t", "b"]
    run_sandbox(args, as_user=who.as_user, env=elsewhere, check=True)
    args = ["run", "-s", "@b", "--", "sh", "-c", 'cat "$SANDBOX_STATIC/b/f"']
    assert run_sandbox(args, as_user=who.as_user, env=elsewhere, check=True).stdout == "one"
    # Any squashfs tool reads it.
    args = ["run", "-s", "t:a.sfs", "--", "sh", "-c", 'cat "$SANDBOX_STATIC/t/f"']
    assert run_sandbox(args, as_user=who.as_user, check=True).stdout == "one"


def test_a_damaged_image(run_sandbox: Runner, who: Identity, area: Area) -> None:
    name = source(area, who, b"one")
    run_sandbox(["image", "build", name, "-t", "a"], as_user=who.as_user, check=True)
    (image,) = area.home(who.as_user).glob("cache/*.sfs")
    data = image.read_bytes()
    with image.open("r+b") as file:
        file.seek(150)
        file.write(bytes([data[150] ^ 1]))
    for args in (["run", "-s", "@a", "--", "true"], ["image", "cat", "a", "f"]):
        done = run_sandbox(args, as_user=who.as_user)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "is damaged" in done.stderr
    assert run_sandbox(["image", "verify", "a"], as_user=who.as_user).returncode == 1
    done = run_sandbox(["run", "--cache", "-s", f"a:{name}", "--", "true"], as_user=who.as_user)
    if image.read_bytes() != data:  # where there is no FUSE, a run with --cache keeps a tree, and builds no image
        done = run_sandbox(["image", "build", name], as_user=who.as_user, check=True)
    assert "is damaged: it is made anew" in done.stderr
    assert image.read_bytes() == data
    run_sandbox(["run", "-s", "@a", "--", "true"], as_user=who.as_user, check=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "-s", "@none", "--", "true"], "there is no image @none"),
        (["run", "-s", "x:@sha256:beef", "--", "true"], "there is no image @sha256:beef"),
        (["run", "-s", "@a/b", "--", "true"], "cannot be the name of an image"),
        (["image", "build", "nothing.tar", "-t", "x"], "cannot open nothing.tar"),
        (["image", "build", "/etc/passwd"], "cannot use"),
        (["image", "build", "@none"], "there is no image"),
        (["image", "tag", "none", "x"], "there is no image"),
        (["image", "rollback", "none"], "there is no image"),
        (["image", "rm", "none"], "there is no image"),
        (["image", "export", "none", "x"], "there is no image"),
        (["image", "import", "none"], "cannot import none"),
        (["image", "verify"], "nothing to verify"),
    ],
)
def test_bad_input_is_one_line(run_sandbox: Runner, who: Identity, args: list[str], words: str) -> None:
    done = run_sandbox(args, as_user=who.as_user)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert words in done.stderr


# -- file systems that lack something -------------------------------------------------------------------------------


def mounted(area: Area, options: str, script: str, sandbox: Path) -> subprocess.CompletedProcess[str]:
    """A script whose home is /mnt, a file system of its own in a mount namespace of its own."""
    environment = {"PATH": os.environ["PATH"], "SANDBOX_HOME": "/mnt/home", "S": str(sandbox), "LANG": "C.UTF-8"}
    command = ["unshare", "-m", "sh", "-c", f"mount {options} /mnt && {script}"]
    return subprocess.run(command, env=environment, cwd=area.dir(False), capture_output=True, text=True, timeout=60)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@root_only
def test_a_full_disk_leaves_the_store_intact(run_sandbox: Runner, area: Area) -> None:
    archives.make_tar(area.dir(False) / "small.tar", [Entry("f", b"one")])
    archives.make_tar(area.dir(False) / "big.tar", [Entry("f", os.urandom(6 << 20))], compression="gzip")
    archives.make_tar(area.dir(False) / "zeros.tar", [Entry("f", os.urandom(1 << 20) * 6)], compression="xz")
    script = """
$S image build small.tar -t a; $S image build big.tar -t b; $S image build zeros.tar -t a
$S image verify --all; $S image ls; ls -A /mnt/home/cache | grep -c .tmp"""
    done = mounted(area, "-t tmpfs -o size=3m tmpfs", script, run_sandbox.command)
    full = [line for line in done.stderr.splitlines() if "cannot cache" in line]
    assert len(full) == 2, done.stderr
    assert "needs about" in full[0]
    assert "needs more than" in full[1]
    assert all("iB" in line and "free" in line for line in full)
    assert "--cache" not in done.stderr
    *_, verdict, listed, drafts = done.stdout.splitlines()
    assert verdict.endswith("ok")
    assert listed.startswith("a\t")
    assert drafts == "0"


@root_only
def test_the_hint_about_a_full_disk_makes_room(run_sandbox: Runner, area: Area) -> None:
    for name in ("one", "two"):
        archives.make_tar(area.dir(False) / f"{name}.tar", [Entry("f", os.urandom(3 << 20))])
    script = """
$S run --cache -s one.tar -- true; $S image build two.tar -t b; echo $?
$S cache rm --all; $S image build two.tar -t b; echo $?"""
    done = mounted(area, "-t tmpfs -o size=6m tmpfs", script, run_sandbox.command)
    assert "(free some with: sandbox cache rm --all, or sandbox image rm NAME" in done.stderr
    codes = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert codes == ["125", "0"], (done.stdout, done.stderr)


@root_only
@pytest.mark.parametrize("uid", [0, 12345])
def test_a_quota_is_told_apart_from_a_full_disk(run_sandbox: Runner, area: Area, uid: int) -> None:
    """A subvolume of btrfs with a limit: there is room, but not for it. Others' quotas need what kernels may lack."""
    if shutil.which("mkfs.btrfs") is None or "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this machine has no btrfs, whose quotas need nothing else")
    where = area.dir(False)
    archives.make_tar(where / "zeros.tar", [Entry("f", os.urandom(1 << 20) * 12)], compression="xz")
    archives.make_tar(where / "small.tar", [Entry("f", b"one")])
    (where / "disk").touch()
    os.truncate(where / "disk", 256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", where / "disk"], check=True, stdout=subprocess.DEVNULL)
    setup = "btrfs quota enable /mnt && btrfs subvolume create /mnt/home && btrfs qgroup limit 6M /mnt/home"
    script = f"""{setup} && chown {uid} /mnt/home && chmod 700 /mnt/home
    image() {{ setpriv --reuid {uid} --regid {uid} --clear-groups $S image "$@" -q; }}
    image build small.tar -t a; image build zeros.tar -t b; image build small.tar -t c; image verify --all --json
    ls -A /mnt/home/cache | grep -c .tmp; umount /mnt"""
    done = mounted(area, f"-o loop {where}/disk", script, run_sandbox.command)
    (line,) = done.stderr.splitlines()
    assert "cannot cache zeros.tar: its image needs more than" in line
    assert "your disk quota is used up" in line
    assert "iB free" in line
    assert '"problem": ""' in done.stdout
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize(("call", "error"), [("flock", "ENOLCK"), ("flock", "EOPNOTSUPP"), ("symlinkat", "EPERM")])
def test_a_file_system_without_locks_or_symlinks_is_refused(
    run_sandbox: Runner, who: Identity, area: Area, call: str, error: str
) -> None:
    """As NFS without its lock service, and vfat, answer. Nothing is named, and what is there stays whole."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is missing: it gives the answers of other file systems")
    run_sandbox(["image", "build", source(area, who, b"one"), "-t", "a"], as_user=who.as_user, check=True)
    inject = [strace, "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    for args in (["tag", "a", "b"], ["rm", "a"]):
        done = subprocess.run(
            [*inject, run_sandbox.command, "image", *args],
            env=run_sandbox.environment(who.as_user),
            cwd=area.dir(who.as_user),
            capture_output=True,
            text=True,
            **who.popen_options(),  # type: ignore[call-overload]
        )
        if call == "flock" or args[0] == "tag":
            assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
            assert "no locks or no symlinks" in done.stderr
            assert "SANDBOX_HOME" in done.stderr
    left = [image["names"] for image in json.loads(run_sandbox(["image", "ls", "--json"], as_user=who.as_user).stdout)]
    assert left == ([["a"]] if call == "flock" else [])
    run_sandbox(["image", "verify", "--all"] if left else ["image", "ls"], as_user=who.as_user, check=True)


def rot(area: Area, who: Identity, image: Path, at: int) -> None:
    """One bit, as a disk loses it: the file's times say nothing. Written here, they are what the store remembers."""
    where = image.stat()
    memory = area.home(who.as_user) / f"digests/{where.st_dev}-{where.st_ino}-image"
    with image.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    now = image.stat()
    state, rest = memory.read_bytes().split(b"\n", 1)
    version, _, _, _, checksum = state.split()
    memory.write_bytes(b"%s %d %d %d %s\n" % (version, now.st_size, now.st_mtime_ns, now.st_ctime_ns, checksum) + rest)


@pytest.mark.parametrize("damage", [0, 13, 20, 38, 41, 70, "root inode", "truncated"])
def test_rot_is_noticed_at_mount(run_sandbox: Runner, who: Identity, area: Area, damage: int | str) -> None:
    name = source(area, who, b"one")
    run_sandbox(["image", "build", name, "-t", "a"], as_user=who.as_user, check=True)
    (image,) = area.home(who.as_user).glob("cache/*.sfs")
    data = image.read_bytes()
    if damage == "truncated":
        os.truncate(image, len(data) // 2)
    else:
        tables = int.from_bytes(data[64:72], "little")
        rot(area, who, image, damage if isinstance(damage, int) else tables + 10)
    for engine in ENGINES:
        done = run_sandbox(["run", "--engine", engine, "-s", "t:@a", "--", "true"], as_user=who.as_user)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
        assert "the image of @a is damaged" in done.stderr
    done = run_sandbox(["run", "--cache", "-s", f"t:{name}", "--", "true"], as_user=who.as_user)
    if image.read_bytes() != data:  # where there is no FUSE, a run with --cache keeps a tree, and builds no image
        done = run_sandbox(["image", "build", name], as_user=who.as_user, check=True)
    assert done.stderr.count("is damaged: it is made anew") == 1
    assert image.read_bytes() == data
    again = run_sandbox(["image", "build", name], as_user=who.as_user, check=True)
    assert again.stderr == ""
    run_sandbox(["run", "-s", "t:@a", "--", "true"], as_user=who.as_user, check=True)


def test_a_damaged_image_is_made_anew_in_setuid_mode(
    run_sandbox: Runner, identities: dict[bool, Identity], area: Area, setuid_system: SetuidSystem
) -> None:
    """Once, with a warning; what the helper remembers of the damaged file it does not show."""
    run_sandbox.system = setuid_system
    name = source(area, identities[True], b"one")
    script = 'cat "$SANDBOX_STATIC/t/f"'
    args = ["run", "--mode", "setuid", "--cache", "-s", f"t:{name}", "--", "sh", "-c", script]
    assert run_sandbox(args, as_user=True, check=True).stdout == "one"
    (image,) = area.home(True).glob("cache/*.sfs")
    data = image.read_bytes()
    for damaged in (data[:150] + bytes([data[150] ^ 1]) + data[151:], data[: len(data) // 2]):
        image.write_bytes(damaged)
        done = run_sandbox(args, as_user=True, check=True)
        assert (done.stdout, done.stderr.count("is damaged: it is made anew")) == ("one", 1)
        assert image.read_bytes() == data
        again = run_sandbox(args, as_user=True, check=True)
        assert (again.stdout, again.stderr) == ("one", "")


@pytest.mark.parametrize("missing", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_home_without_locks(run_sandbox: Runner, who: Identity, area: Area, missing: int) -> None:
    """As on NFS without a lock service: two hosts could not tell each other anything, so nothing is changed."""
    name = source(area, who, b"one")
    run_sandbox(["image", "build", name, "-t", "a"], as_user=who.as_user, check=True)
    other = source(area, who, b"two", "o.tar")
    home = area.home(who.as_user)
    changing = [["image", *words] for words in (["build", other, "-t", "a"], ["tag", "a", "b"], ["rollback", "a"])]
    changing += [["image", "rm", "a"], ["cache", "clean", "--now"]]
    changing += [["run", "--engine", engine, "--cache", "-s", f"t:{other}", "--", "true"] for engine in ENGINES]
    before = {path: os.lstat(path).st_ino for path in home.glob("[chkn]*/*")}
    for args in changing:
        done = run_sandbox(args, as_user=who.as_user, preexec_fn=lambda: no_tmpfile.forbid_locks(missing))
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), (args, done.stderr)
        assert "lock" in done.stderr
        assert "a local file system" in done.stderr
    assert {path: os.lstat(path).st_ino for path in home.glob("[chkn]*/*")} == before
    for args in (["image", "ls"], ["image", "verify", "a"], ["image", "cat", "a", "f"]):  # what only reads goes on
        run_sandbox(args, as_user=who.as_user, check=True, preexec_fn=lambda: no_tmpfile.forbid_locks(missing))


def test_a_home_without_unnamed_files(run_sandbox: Runner, who: Identity, area: Area) -> None:
    """As on NFS: no O_TMPFILE. Everything works, through temporary names of which none is left."""
    commands = [["image", "build", source(area, who, b"one"), "-t", "a"], ["image", "tag", "a", "b"]]
    commands += [["image", "build", source(area, who, b"two", "o.tar"), "-t", "a"], ["image", "rollback", "a"]]
    commands += [["image", "rm", "b"], ["image", "verify", "--all"], ["cache", "clean", "--now"]]
    commands += [["run", "--engine", engine, "--cache", "-s", "t:s.tar", "--", "true"] for engine in ENGINES]
    for args in commands:
        run_sandbox(args, as_user=who.as_user, check=True, preexec_fn=no_tmpfile.forbid)
    assert not list(area.home(who.as_user).rglob(".tmp-*"))
