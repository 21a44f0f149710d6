"""Mistakes of other launchers of this kind, each made impossible here."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.plan import Attach, Image, Mkdir, Overlay, Tmpfs, Tree
from sandbox.setuid import HELPER
from tests.support import modes
from tests.support.helper import WITH_BUILDER
from tests.support.launcher import at, below, source, squashfs

# Tries to push a character into the terminal's input, and to paste (a console's ioctl); prints what the kernel says.
TERMINAL = """
import fcntl, os
for request, argument in ((0x5412, b'x'), (0x541C, b'\\3'), (0xF00005412, b'x')):
    try: fcntl.ioctl(0, request & 0xFFFFFFFF, argument); print('done')
    except OSError as error: print(error.errno)
"""


@pytest.mark.parametrize("covered", ["/", "/etc", "/usr", "/usr/libexec", "/var", "home", "its parent"])
def test_setuid_programs_believe_no_doctored_system(helper, covered):
    """Whatever the user covers, a setuid program in there gives him nothing."""
    root = helper.area / "root"
    for name in ("etc/pam.d", "etc/sandbox", "usr/libexec/sandbox", "libexec/sandbox"):
        (root / name).mkdir(parents=True)
    permit = "".join(f"{kind} sufficient pam_permit.so\n" for kind in ("auth", "account", "session", "password"))
    for name, text in (
        ("passwd", "root::0:0:root:/root:/bin/sh\n"),
        ("shadow", "root::1::::::\n"),
        ("group", "root:x:0:\n"),
        ("pam.d/su", permit),
        ("pam.d/other", permit),
        ("sudoers", "ALL ALL=(ALL) NOPASSWD: ALL\n"),
        ("sandbox/policy.toml", 'images = "any"\n'),
    ):
        (root / "etc" / name).write_text(text)
    shutil.copytree(root / "etc", root, dirs_exist_ok=True)
    for path in (root, *root.rglob("*")):
        os.chown(path, helper.uid, helper.gid)
    assert "uid=0" in su_beneath(helper, root / "etc"), "such an /etc gives nobody root: the test tests nothing"
    target = {"home": helper.home, "its parent": helper.area}.get(covered, Path(covered))
    if covered == "/":
        # The whole old system stays reachable beneath, as an attacker would want it.
        steps = [Tree(1, 0, 1), Attach(1, at(Path("/etc")), 6), Tree(2, 1, 1), Attach(2, at(Path("/")), 6)]
        plan = helper.plan(*steps, sources=(source(root / "etc"), source(Path("/"))))
    else:
        plan = helper.plan(Tree(1, 0, 1), Attach(1, at(target), 6), sources=(source(root),))
    script = f"""for program in 'su -c id' 'sudo id' 'mount -t tmpfs none /mnt' '{HELPER} version'
        do $program 2>&1; done; grep -Ec '^Cap(Prm|Eff):.*[1-9a-f]' /proc/self/status; id -u"""
    # /usr/bin may be covered, too: then there is no shell, and nothing runs.
    got, out, err = helper.run(plan, "/bin/sh", "-c", script)
    assert "uid=0" not in out
    assert (got, out.splitlines()[-2:]) == (0, ["0", str(helper.uid)]) or got in (125, 126, 127), (got, out, err)


def su_beneath(helper, etc):
    """What su says to the user where root himself has covered /etc, and no_new_privs is not set."""
    script = 'mount --bind "$1" /etc && exec setpriv --reuid "$2" --regid "$2" --clear-groups su -c id'
    done = helper.private.root("unshare", "-m", "sh", "-c", script, "sh", etc, str(helper.uid))
    return done.stdout + done.stderr


def test_nobody_joins_a_run(helper):
    """CVE-2022-31214 (firejail --join): a process without no_new_privs in the run's mount namespace would believe
    what it covered. A run is not joined, not even from a user namespace."""
    process = helper.start(helper.plan(), "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    attempts = [["nsenter", f"--mount=/proc/{command}/ns/mnt", "id"], ["chroot", f"/proc/{command}/root", "id"]]
    if modes.userns_works(helper.who):
        attempts.append(["unshare", "-r", *attempts[0]])
    for argv in attempts:
        other = helper.as_user(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = other.communicate()
        assert (other.returncode != 0, out) == (True, ""), err
        assert "ermitted" in err or "ermission" in err, err
    process.communicate("\n")


def test_links_in_a_new_tree_lead_nowhere(helper):
    """GHSA-pxhw-h44j-8pfx: bubblewrap's setup followed links of the new root out of it."""
    helper.policy(WITH_BUILDER)
    victim = helper.disk / "victim"
    victim.mkdir()
    os.chown(victim, helper.uid, helper.gid)
    for name, to in (
        ("absolute", victim),
        ("up", "../../../../../../.." + str(victim)),
        ("proc", "/proc/self/root/etc"),
    ):
        (helper.tree / name).symlink_to(to)
    image, tree = source(helper.own_image()), source(helper.tree)
    writable = [Image(1, 0), Tmpfs(2, 1 << 24, 0, 0o700), Overlay(3, (1,), 2, 0), Mkdir(below("d"), 0o755)]
    for name in ("absolute", "up", "proc"):
        for more in (
            [Mkdir(below(f"d/{name}/made"), 0o755)],
            [Tree(4, 1, 1), Attach(4, below(f"d/{name}"), 6)],
            [Tree(4, 1, 1), Mkdir(below(f"d/{name}"), 0o755), Attach(4, below(f"d/{name}"), 6)],
        ):
            helper.refused(helper.plan(*writable, Attach(3, below("d"), 6), *more, sources=(image, tree)))
    assert os.listdir(victim) == []


def test_layers_of_an_overlay_are_out_of_reach(helper):
    """CVE-2021-26910: firejail's overlay directories could be swapped. These are attached nowhere when it matters."""
    helper.policy(WITH_BUILDER)
    script = "cut -d' ' -f5 /proc/self/mountinfo | grep -c layers; ls -A $T; ls $T/d; ls -x /proc/self/fd"
    got, out, _ = helper.run(helper.image_plan(source(helper.own_image())), "sh", "-c", script)
    mounted, *rest = out.splitlines()
    assert (got, rest[:2]) == (0, ["d", "s"])
    assert mounted == "0"
    assert rest[-1].split()[:3] == ["0", "1", "2"]


def test_builder_programs_are_not_looked_for(helper):
    """A builder that is found through the user's $PATH."""
    helper.policy(WITH_BUILDER)
    evil = helper.disk / "bin"
    evil.mkdir()
    for name in ("sqfs2tar", "tar2sqfs", "sh", "env"):
        (evil / name).write_text(f"#!/bin/bash\ntouch {helper.disk}/ran\n")
        (evil / name).chmod(0o755)
    os.chown(helper.disk, helper.uid, helper.gid)
    helper.disk.chmod(0o777)
    plan = helper.image_plan(source(helper.own_image()))
    env = f"PATH={evil}\0LD_PRELOAD={evil}/x.so\0".encode()
    here = {"PATH": str(evil), "BASH_ENV": str(evil / "sh"), "ENV": str(evil / "sh")}
    got = helper.run(plan, "/bin/cat", str(helper.tree / "f"), env=env, program_env=here, cwd=evil)
    assert got[:2] == (0, "hello\n")
    assert not (helper.disk / "ran").exists()


def test_liveness_is_the_lock(helper):
    """EPERM of kill(pid, 0) taken for dead, and a dead run's pid that somebody else has now."""
    facts = {"id": "0" * 32, "host": os.uname().nodename, "boot_id": "x", "pid_namespace": 1, "start_time": 1}
    facts |= {"command": ["x"], "mode": "setuid", "scratch": []}
    # A live run whose pid is gone: only its lock speaks for it. A dead one whose pid is root's: EPERM for this user.
    for name, pid in (("4000001", 4000001), ("1", 1)):
        record = helper.home / "records" / name
        record.write_text(json.dumps({**facts, "pid": pid}) + "\n")
        (helper.home / "procdirs" / name).mkdir(mode=0o700)
        for path in (record, helper.home / "procdirs" / name):
            os.chown(path, helper.uid, helper.gid)
    with open(helper.home / "records/4000001") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        helper.check(helper.plan(), "true", "")
        assert os.listdir(helper.home / "records") == os.listdir(helper.home / "procdirs") == ["4000001"]
    helper.check(helper.plan(), "true", "")
    assert os.listdir(helper.home / "records") == os.listdir(helper.home / "procdirs") == []


def test_cleaning_has_no_rights_of_roots(helper):
    """A record of the user's that names what is not his: a reaper that is root would remove it."""
    victim = helper.area / f"sandbox-{'0' * 32}"
    (victim / "procdir").mkdir(parents=True)
    (victim / "precious").write_text("x")
    facts = {"id": "0" * 32, "host": os.uname().nodename, "boot_id": "x", "pid_namespace": 1, "start_time": 1, "pid": 1}
    for number, path in enumerate((victim, "/etc", "/proc/self/root/etc", f"{helper.disk}/../sandbox-{'0' * 32}")):
        record = helper.home / f"records/{4000000 + number}"
        record.write_text(json.dumps({**facts, "command": [], "mode": "setuid", "scratch": [str(path)]}) + "\n")
        os.chown(record, helper.uid, helper.gid)
        (helper.home / f"procdirs/{4000000 + number}").symlink_to("/etc" if number else victim)
    helper.check(helper.plan(), "test -e /etc/passwd", "")
    assert (victim / "precious").exists()
    for directory in ("records", "procdirs"):
        for entry in (helper.home / directory).iterdir():
            entry.unlink()


def test_the_terminal_is_the_callers(helper):
    """CVE-2017-5226, CVE-2023-28100, CVE-2019-10063. Level none shares the terminal and says so; what the kernel lets
    the command do to it is what it lets the caller do, and nothing of the helper's rights is added."""
    main, terminal = os.openpty()
    python = "/usr/bin/python3"
    try:
        alone = helper.as_user(python, "-c", TERMINAL, stdin=terminal, stdout=subprocess.PIPE, start_new_session=True)
        expected = alone.communicate()[0]
        process = helper.start(helper.plan(), python, "-c", TERMINAL, stdin=terminal, start_new_session=True)
        assert process.communicate()[0] == expected
    finally:
        os.close(main)
        os.close(terminal)


NAMES = [b"../../../../up", b"/tmp/absolute/", b"..", b"a/../../../../../x"]


@pytest.mark.parametrize("evil", NAMES, ids=lambda name: name.decode().replace("/", "_"))
def test_names_in_an_image_lead_nowhere(helper, evil):
    """CVE-2021-40153 and CVE-2021-41072: unsquashfs wrote where a name or a link of the image led."""
    helper.policy(WITH_BUILDER)
    placeholder = b"N" * len(evil)
    tree = helper.area / "names"
    tree.mkdir()
    (tree / placeholder.decode()).write_text("evil\n")
    image = squashfs(tree, helper.area / "evil.sfs", "-noI", "-noD", "-noF", "-noX")
    data = image.read_bytes()
    assert data.count(placeholder) == 1
    image.write_bytes(data.replace(placeholder, evil))
    before = sorted(path for path in helper.area.rglob("*"))
    got, out, err = helper.run(helper.image_plan(source(image), dynamic=False), "sh", "-c", "cd $T/s && find . -type f")
    assert (got, err.count("\n")) in ((0, 0), (125, 1)), err
    assert ".." not in out
    assert sorted(path for path in helper.area.rglob("*")) == before
    assert not Path("/tmp/absolute").exists()


def test_the_same_name_twice_leads_nowhere(helper):
    """The other half of CVE-2021-41072: a link, then a directory of the same name with a file beneath it."""
    helper.policy(WITH_BUILDER)
    victim = helper.disk / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    helper.disk.chmod(0o777)
    tree = helper.area / "names"
    (tree / "AAAB").mkdir(parents=True)
    (tree / "AAAA").symlink_to(victim)
    (tree / "AAAB/file").write_text("evil\n")
    image = squashfs(tree, helper.area / "evil.sfs", "-noI", "-noD", "-noF", "-noX")
    image.write_bytes(image.read_bytes().replace(b"AAAB", b"AAAA"))
    got, _, err = helper.run(helper.image_plan(source(image), dynamic=False), "true")
    assert (got, err.count("\n")) in ((0, 0), (125, 1)), err
    assert os.listdir(victim) == []


@pytest.mark.parametrize("home", ["link", "foreign", "/", "/proc/self/fd/0", "/proc/1/root", "/dev/null", "/etc"])
def test_homes_of_the_command_line(run_sandbox, setuid_system, user, area, home):
    """$SANDBOX_HOME as a user would set it: his own directory, by whatever name, or one line."""
    if setuid_system.private is None:
        pytest.skip("needs root, to make somebody else's directory")
    run_sandbox.system = setuid_system
    (area.path / "foreign").mkdir(mode=0o777)
    (area.dir(True) / "link").symlink_to("/etc")
    value = {"link": area.dir(True) / "link", "foreign": area.path / "foreign"}.get(home, home)
    done = run_sandbox(["run", "--mode", "setuid", "--", "echo", "ran"], as_user=True, env={"SANDBOX_HOME": str(value)})
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (125, "", 1), done.stderr
    assert os.listdir(area.path / "foreign") == []
