"""`sandbox run` as a person types it, as root and as an ordinary user: what must hold after and during any run."""

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.fuse import with_open_fuse
from tests.support.modes import native_engine

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to set the scene")
TREE = [Entry("f", b"hello\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")]


ENGINES = ["python", *(["native"] if native_engine() else [])]


# -- exit codes and complaints --------------------------------------------------------------------------------


def test_a_command_without_the_dashes(run_sandbox, who):
    done = run_sandbox(["run", "echo", "-n", "--", "x"], as_user=who.as_user)
    assert (done.stdout, done.returncode) == ("-- x", 0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--no-such-option", "true"], "--no-such-option"),
        (["run"], "no command"),
        (["run", "-s", "missing.zip", "true"], "missing.zip"),
        (["run", "-s", "there:sub/none", "true"], "sub/none"),
        (["run", "-s", "tree.zip:there", "true"], "--static there:tree.zip"),
        (["run", "-s", "a/b:tree.zip", "true"], "'a/b'"),
        (["run", "-s", "tree.zip", "-d", "tree.zip", "true"], "NAME:"),
        (["run", "-s", "/etc/hostname", "true"], "hostname"),
        (["run", "-s", "/dev/null", "true"], "/dev/null"),
        (["run", "--tmpfs-size", "much", "true"], "much"),
        (["run", "-e", "NOT_SET_ANYWHERE", "true"], "NOT_SET_ANYWHERE"),
        (["run", "--env-file", "missing", "true"], "missing"),
        (["run", "--symlinks", "x=deny", "true"], "'x'"),
        (["run", "--scratch", "/nowhere", "true"], "/nowhere"),
        (["run", "--mode", "root", "true"], "may not mount"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_125(run_sandbox, who, area, args, words):
    if args[1:2] == ["--mode"] and not who.as_user:
        pytest.skip("root may mount")
    archives.make_zip(area.dir(who.as_user) / "tree.zip", TREE)
    done = run_sandbox(args, as_user=who.as_user)
    assert done.returncode == 125, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_by_a_signal_kills_the_launcher_without_a_core(run_sandbox, who, area):
    done = run_sandbox(["run", "--", "sh", "-c", "kill -SEGV $$"], as_user=who.as_user)
    assert done.returncode == -signal.SIGSEGV
    assert not list(area.dir(who.as_user).glob("core*"))


def test_a_terminal_gets_one_hint_about_cache(run_sandbox, who, area):
    """A conversion that took a while is worth keeping; said on a terminal, and only there."""
    where = area.dir(who.as_user)
    archives.make_tar(where / "t.tar", [Entry(f"f{n}", os.urandom(1 << 20)) for n in range(64)], compression="gzip")
    args = ["run", "--mode", "root" if not who.as_user else "userns", "-s", "t.tar", "--", "true"]
    leader, follower = pty.openpty()
    done = run_sandbox(args, as_user=who.as_user, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    text = b""
    with contextlib.suppress(OSError), contextlib.closing(os.fdopen(leader, "rb", buffering=0)) as stream:
        while chunk := stream.read(4096):
            text += chunk
    assert done.returncode == 0
    if not who.as_user:
        assert text.count(b"--cache keeps the result") == 1, text
    assert "--cache" not in run_sandbox(args, as_user=who.as_user).stderr


def test_explain_runs_nothing(run_sandbox, who, area):
    archives.make_zip(area.dir(who.as_user) / "tree.zip", TREE)
    args = ["run", "--explain", "-s", "tree.zip", "-d", "w:tree.zip", "--cache", "--", "touch", "ran"]
    done = run_sandbox(args, as_user=who.as_user)
    assert done.returncode == 0, done.stderr
    assert "tree.zip" in done.stdout
    assert "touch ran" in done.stdout
    assert not (area.dir(who.as_user) / "ran").exists()
    assert not list((area.home(as_user=who.as_user)).glob("cache/*"))


def test_a_file_whose_name_holds_a_colon(run_sandbox, who, area):
    archives.make_zip(area.dir(who.as_user) / "a:b.zip", TREE)
    done = run_sandbox(["run", "-s", "a:b.zip", "--", "sh", "-c", "ls $SANDBOX_STATIC"], as_user=who.as_user)
    assert done.stdout == "a:b\n", done.stderr


def test_names_are_bytes(run_sandbox, who, area):
    name = b"na\xffme \n'\"$"
    directory = os.fsencode(area.dir(who.as_user)) + b"/dir\xfe"
    os.mkdir(directory, 0o755)
    Path(os.fsdecode(directory), "f").write_text("x\n")
    script = 'cd "$SANDBOX_STATIC" && ls | od -An -c | head -1 && cat */f'
    done = run_sandbox([b"run", b"-s", name + b":" + directory, "--", "sh", "-c", script], as_user=who.as_user)
    assert done.returncode == 0, done.stderr
    assert "377" in done.stdout
    assert done.stdout.endswith("x\n")


# -- what reaches the command ---------------------------------------------------------------------------------


def test_inherited_descriptors_reach_the_command(run_sandbox, who):
    reader, writer = os.pipe()
    with contextlib.closing(os.fdopen(reader)) as stream:
        script = f"echo through >&{writer}; ls /proc/self/fd | wc -l"
        done = run_sandbox(["run", "--", "bash", "-c", script], as_user=who.as_user, pass_fds=(writer,))
        os.close(writer)
        assert stream.read() == "through\n"
    # 0, 1, 2, the pipe, and what ls opens: nothing of the launcher's.
    assert done.stdout == "5\n"


def test_closed_standard_descriptors_stay_closed(run_sandbox, who, area):
    archives.make_squashfs(area.dir(who.as_user) / "t.sfs", TREE)
    out = area.dir(who.as_user) / "out"
    # Of builtins, which open nothing before the answer is complete.
    script = 'for n in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$n ] || open="$open $n"; done; echo "open:$open" > '
    command = f"exec {run_sandbox.command} run -s t.sfs -- sh -c '{script}{out}' <&- >&- 2>&-"
    subprocess.run(
        ["sh", "-c", command],
        **who.popen_options(),
        env=run_sandbox.environment(who.as_user),
        cwd=area.dir(who.as_user),
        check=True,
    )
    assert out.read_text() == "open:\n"


@pytest.mark.parametrize("ignored", ["", "HUP", "INT"])
def test_signal_mask_and_dispositions_are_the_callers(run_sandbox, who, ignored):
    """As without sandbox, also under nohup: Python's own SIGPIPE and SIGXFSZ are undone."""
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    trap = f"trap '' {ignored}; " if ignored else ""
    bare = subprocess.run(["sh", "-c", f"{trap}{script}"], capture_output=True, text=True)
    options = {**who.popen_options(), "env": run_sandbox.environment(who.as_user), "cwd": "/"}
    for engine in ENGINES:
        inner = f"{trap}exec {run_sandbox.command} run --engine {engine} -- {script}"
        done = subprocess.run(["sh", "-c", inner], capture_output=True, text=True, **options)
        assert (done.stdout, done.stderr) == (bare.stdout, "")


def test_supplementary_groups_still_grant_access(run_sandbox, user, area):
    directory = area.dir(as_user=True) / "group"
    directory.mkdir()
    (directory / "f").write_text("x\n")
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory to a group")
    os.chown(directory, 0, user.groups[0])
    directory.chmod(0o050)
    assert run_sandbox(["run", "--", "cat", str(directory / "f")], as_user=True).stdout == "x\n"


@ROOT_ONLY
def test_setuid_programs_work_in_root_mode_without_isolation(run_sandbox):
    done = run_sandbox(["run", "--", "grep", "NoNewPrivs", "/proc/self/status"], as_user=False)
    assert done.stdout.split() == ["NoNewPrivs:", "0"]
    done = run_sandbox(["run", "--", "sudo", "-n", "-u", "nobody", "id", "-un"], as_user=False)
    assert done.stdout == "nobody\n", done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_the_environment_is_the_callers(run_sandbox, who, engine):
    """Python in a C locale adds LC_CTYPE to its own environment; the command must not see that."""
    env = dict.fromkeys(run_sandbox.environment(who.as_user)) | {"LANG": None, "ODD": "a b\tc"}
    env |= {"SANDBOX_HOME": str(run_sandbox.area.home(who.as_user)), "PATH": "/usr/bin:/bin"}
    done = run_sandbox(["run", "--engine", engine, "--", "env", "-0"], as_user=who.as_user, env=env)
    names = {item.partition("=")[0] for item in done.stdout.split("\0") if item}
    assert names == {"ODD", "SANDBOX_HOME", "PATH", "SANDBOX_TMPDIR"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("umask", [0o777, 0o027])
def test_the_umask_is_the_callers_and_harms_nothing(run_sandbox, who, area, engine, umask):
    where = area.dir(who.as_user)
    archives.make_zip(where / "t.zip", TREE)
    script = "umask; cd $SANDBOX_DYNAMIC/t && cat f && cat $SANDBOX_STATIC/t2/f && ls $SANDBOX_TMPDIR"
    args = ["run", "--engine", engine, "-d", "t.zip", "-s", "t2:t.zip", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=who.as_user, umask=umask)
    assert (done.stdout, done.returncode) == (f"{umask:04o}\nhello\nhello\n", 0), done.stderr


def test_a_working_directory_that_was_deleted(run_sandbox, who, area):
    gone = area.dir(who.as_user) / "gone"
    script = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {run_sandbox.command} run -- echo here"
    options = {**who.popen_options(), "env": run_sandbox.environment(who.as_user)}
    done = subprocess.run(["sh", "-c", script], cwd="/", capture_output=True, text=True, **options)
    assert (done.stdout, done.returncode) == ("here\n", 0), done.stderr


@pytest.mark.parametrize("limit", ["-n 12", "-f 0"])
def test_limits_that_are_too_low_are_one_line(run_sandbox, who, area, limit):
    where = area.dir(who.as_user)
    archives.make_squashfs(where / "t.sfs", TREE)
    trees = " ".join(f"-s t{number}:t.sfs" for number in range(8))
    script = f"ulimit {limit}; exec {run_sandbox.command} run --engine python {trees} -- true"
    options = {**who.popen_options(), "env": run_sandbox.environment(who.as_user)}
    done = subprocess.run(["bash", "-c", script], cwd=where, capture_output=True, text=True, **options)
    assert done.returncode == 125, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_scratch_variable_that_outlived_its_run_means_nothing(run_sandbox, who, area):
    stale = area.dir(who.as_user) / "stale"
    env = {"SANDBOX_TMPDIR": str(stale / "tmp")}
    assert run_sandbox(["run", "--", "true"], as_user=who.as_user, env=env).returncode == 0
    assert not stale.exists()


def test_output_that_cannot_be_encoded_or_written(run_sandbox, who):
    odd = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = run_sandbox(["run", "--explain", "--", "caf\u00e9"], as_user=who.as_user, env=odd)
    assert done.returncode == 0, done.stderr
    with open("/dev/full", "w") as full:
        done = run_sandbox(["doctor"], as_user=who.as_user, stdout=full, stderr=subprocess.PIPE)
    assert "Traceback" not in done.stderr


# -- homes and hosts that cannot be used ----------------------------------------------------------------------


def test_a_home_that_is_a_dangling_link(run_sandbox, who, area):
    home = area.home(who.as_user)
    home.symlink_to("nowhere/at/all")
    done = run_sandbox(["run", "true"], as_user=who.as_user)
    assert done.returncode == 125
    assert "dangling link" in done.stderr
    home.unlink()


@ROOT_ONLY
def test_a_home_that_takes_no_file(run_sandbox, area):
    """Without an inode left, and read-only: each line says so, and what to do."""
    home = area.path / "full"
    home.mkdir(mode=0o700)
    env = {**run_sandbox.environment(False), "SANDBOX_HOME": str(home)}
    runs = "".join(f'"$2" run --engine {engine} true 2>&1;' for engine in ENGINES)
    script = f'''mount -t tmpfs -o mode=700,nr_inodes=3 sbx-tests "$1"; {runs}
        "$2" image build -q "$3" 2>&1; mount -o remount,ro "$1"; {runs} "$2" doctor 2>&1 | grep -A1 "home "'''
    (source := area.path / "source").mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", home, run_sandbox.command, source]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    full, only_read = lines[: len(ENGINES)], lines[len(ENGINES) + 1 : -2]
    assert all("No space left on device (" in line and "SANDBOX_HOME" in line for line in full), lines
    assert "no inode is left" in lines[len(ENGINES)]
    assert len(only_read) == len(ENGINES)
    assert all("Read-only file system (" in line and "SANDBOX_HOME" in line for line in only_read), lines
    assert "its file system is read-only" in lines[-2]
    home.rmdir()


@ROOT_ONLY
def test_a_read_only_home_can_be_looked_at(run_sandbox, area):
    """Also one in which nothing was ever stored."""
    home = area.path / "only-read"
    home.mkdir(mode=0o700)
    env = {**run_sandbox.environment(False), "SANDBOX_HOME": str(home)}
    looks = (
        "for words in 'image ls' 'cache ls' 'image verify --all' ps cleanup; do $1 $words >>\"$2/../out\" || exit; done"
    )
    script = f"""mount -t tmpfs -o mode=700 sbx-tests "$2"; $1 ps; mount -o remount,ro "$2"; {looks}
        mount -o remount,rw "$2"; $1 image build -q "$3"; mount -o remount,ro "$2"; {looks}"""
    (source := area.path / "source").mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", run_sandbox.command, home, source]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (area.path / "out").read_text().splitlines()
    assert lines[0] == "the cache is empty"
    assert sum(str(source) in line for line in lines) == 2
    home.rmdir()


@ROOT_ONLY
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", ["--report r", "--trace r", "--log r", "--log l --report r"])
def test_a_disk_that_is_full_is_told_of_once(run_sandbox, area, engine, more):
    """The launch is what failed: nothing is said of a command that never was, nor of a log with nothing to hold."""
    home = area.path / "full"
    home.mkdir(mode=0o700)
    env = {**run_sandbox.environment(False), "SANDBOX_HOME": str(home / "home")}
    script = f"""mount -t tmpfs -o mode=700,size=1M sbx-tests "$1"; cd "$1"; "$2" run true
        cat /dev/zero >fill 2>/dev/null; "$2" run --engine {engine} {more} -- true"""
    command = ["unshare", "-m", "sh", "-c", script, "sh", home, run_sandbox.command]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
    assert "a run record in" in done.stderr
    home.rmdir()


@ROOT_ONLY
def test_a_home_of_somebody_else(run_sandbox, area, user):
    home = area.dir(as_user=True) / "theirs"
    home.mkdir()
    os.chown(home, user.uid, user.gid)
    done = run_sandbox(["run", "true"], as_user=False, env={"SANDBOX_HOME": str(home)})
    assert done.returncode == 125
    assert f"belongs to uid {user.uid}" in done.stderr
    assert not list(home.iterdir())
    done = run_sandbox(["run", "true"], as_user=True, env={"SANDBOX_HOME": str(area.dir(as_user=False))})
    assert done.returncode == 125
    assert "belongs to uid 0" in done.stderr


def test_a_home_that_others_may_write_to(run_sandbox, who, area):
    home = area.home(who.as_user)
    home.mkdir()
    os.chown(home, who.uid, who.gid)
    # What is sticky is everybody's, as /tmp is: nobody is told to take it from them.
    for mode, advised in ((0o777, True), (0o1777, False)):
        home.chmod(mode)
        done = run_sandbox(["run", "true"], as_user=who.as_user)
        assert done.returncode == 125
        assert "others may write" in done.stderr
        assert ("chmod 700" in done.stderr) == advised


def test_a_home_that_cannot_be_written(run_sandbox, user, area):
    done = run_sandbox(["run", "true"], as_user=True, env={"SANDBOX_HOME": "/proc/nothing"})
    assert done.returncode == 125
    assert "/proc/nothing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@ROOT_ONLY
def test_root_with_a_foreign_home_uses_its_own(run_sandbox, user):
    env = {"SANDBOX_HOME": None, "HOME": str(user.home)}
    done = run_sandbox(["run", "-v", "--", "sh", "-c", "echo $SANDBOX_TMPDIR"], as_user=False, env=env)
    assert done.stdout.startswith("/root/.sandbox/procdirs/")
    assert "is not root's" in done.stderr


@ROOT_ONLY
def test_no_loop_control(run_sandbox, area):
    where = area.dir(as_user=False)
    archives.make_squashfs(where / "t.sfs", TREE)
    script = f"mount -t tmpfs none /dev && {run_sandbox.command} run -s t.sfs -- true"
    env = run_sandbox.environment(as_user=False)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=env, cwd=where, capture_output=True, text=True)
    assert done.returncode == 125, done.stderr


def test_a_sandbox_inside_a_sandbox(run_sandbox, who, area):
    where = area.dir(who.as_user)
    archives.make_zip(where / "t.zip", TREE)
    inner = [run_sandbox.command, "run", "-s", "in:t.zip", "--", "sh", "-c", "cat $SANDBOX_STATIC/in/f"]
    done = run_sandbox(["run", "-s", "t.zip", "--", *inner], as_user=who.as_user)
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr


# -- modes ----------------------------------------------------------------------------------------------------


@ROOT_ONLY
def test_fuse_in_a_user_namespace(run_sandbox, area):
    """Root may open /dev/fuse here: `userns` mode serves the image through squashfuse_ll."""
    where = area.dir(as_user=False)
    archives.make_squashfs(where / "t.sfs", TREE)
    archives.make_zip(where / "z.zip", TREE)
    script = "cat $SANDBOX_STATIC/t/f; grep -c ' fuse' /proc/self/mountinfo; cd $SANDBOX_DYNAMIC/z; rm -r sub; ls"
    args = ["run", "--mode", "userns", "--cache", "-s", "t.sfs", "-d", "z.zip", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=False)
    assert (done.stdout, done.returncode) == ("hello\n1\nf\n", 0), done.stderr


@ROOT_ONLY
@pytest.mark.parametrize("engine", ENGINES)
def test_a_user_with_fuse(run_sandbox, user, area, engine):
    """The usual case on a distribution: /dev/fuse is open to all, nothing is unpacked, and nothing keeps running."""
    where = area.dir(as_user=True)
    archives.make_squashfs(where / "t.sfs", TREE)
    archives.make_zip(where / "z.zip", TREE)
    script = """cat $SANDBOX_STATIC/t/f $SANDBOX_STATIC/z/f; grep -c ' fuse' /proc/self/mountinfo
    touch $SANDBOX_STATIC/z/x 2>/dev/null || echo read-only; cd $SANDBOX_DYNAMIC/w && rm -r sub && ls"""
    args = [
        "run",
        "--engine",
        engine,
        "--cache",
        "-s",
        "t.sfs",
        "-s",
        "z.zip",
        "-d",
        "w:z.zip",
        "--",
        "sh",
        "-c",
        script,
    ]
    command = with_open_fuse(user, [str(run_sandbox.command), *args])
    env = run_sandbox.environment(as_user=True)
    done = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("hello\nhello\n2\nread-only\nf\n", 0), done.stderr


def test_the_user_is_the_user(run_sandbox, user):
    done = run_sandbox(["run", "--mode", "userns", "--", "sh", "-c", "id -u; id -un; id -g; whoami"], as_user=True)
    assert done.stdout.split() == [str(user.uid), user.name, str(user.gid), user.name]
    done = run_sandbox(["run", "--mode", "userns", "--", "grep", "NoNewPrivs", "/proc/self/status"], as_user=True)
    assert done.stdout.split()[1] == "1"


def test_user_namespaces_forbidden(run_sandbox, area):
    """In a user namespace of its own a limit of 0 forbids more, as `user.max_user_namespaces=0` does on a host."""
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {run_sandbox.command} run --mode userns -- true"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--user", "sh", "-c", script],
        **run_sandbox.identities[True].popen_options(),
        env=run_sandbox.environment(as_user=True),
        cwd=area.dir(as_user=True),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 125, done.stderr
    assert "max_user_namespaces" in done.stderr
    assert "setuid" in done.stderr
