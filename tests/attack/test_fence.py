"""What a hostile command tries to get past a Landlock fence, and what no fence stops (docs/security.md)."""

import os
import socket
import textwrap

import pytest

from sandbox.engine.syscalls import landlock_abi
from tests.support import modes
from tests.support.modes import native_engine

COMBINATIONS = [
    (engine, mode, level)
    for level in ("none", "job")
    for engine, mode in (
        ("python", "root"),
        ("native", "root"),
        ("python", "userns"),
        ("native", "userns"),
        ("native", "setuid"),
    )
]
COMBINATIONS += [(engine, f"landlock as {who}", "none") for engine in ("python", "native") for who in ("root", "user")]

PROBE = textwrap.dedent("""
    import errno, os, socket, sys
    victim, name = sys.argv[1:]
    def attempt(what, try_it):
        try: got = try_it()
        except OSError as error: got = errno.errorcode[error.errno]
        print(what, got)
    def write(path, how):
        with open(path, how) as file: return file.write('x')
    def connect(address):
        with socket.socket(socket.AF_UNIX) as one: return one.connect(address) or 'done'
    def link():
        os.symlink('../closed/secret', 'open/link')
        try: return open('open/link').read()
        finally: os.unlink('open/link')
    attempt('allowed', lambda: write('open/f', 'w') and os.rename('open/f', 'open/g') or os.unlink('open/g') or 'done')
    attempt('read', lambda: open('closed/secret').read())
    attempt('list', lambda: os.listdir('closed') and 'done')
    attempt('write', lambda: write('closed/secret', 'r+'))
    attempt('append', lambda: write('closed/secret', 'a'))
    attempt('make', lambda: write('closed/new', 'w'))
    attempt('truncate', lambda: os.truncate('closed/secret', 0) or 'done')
    attempt('remove', lambda: os.unlink('closed/secret') or 'done')
    attempt('directory', lambda: os.mkdir('closed/d') or 'done')
    attempt('fifo', lambda: os.mkfifo('closed/p') or 'done')
    attempt('symlink there', lambda: os.symlink('/', 'closed/l') or 'done')
    attempt('hard link', lambda: os.link('closed/secret', 'open/h') or 'done')
    attempt('rename out', lambda: os.rename('closed/secret', 'open/r') or 'done')
    attempt('rename in', lambda: write('open/s', 'w') and os.rename('open/s', 'closed/s') or 'done')
    attempt('through a link', link)
    attempt('through /proc/self/root', lambda: open('/proc/self/root' + os.getcwd() + '/closed/secret').read())
    attempt('through /proc/self/cwd', lambda: open('/proc/self/cwd/closed/secret').read())
    attempt('beneath', lambda: open('open/../closed/secret').read())
    attempt('abstract', lambda: connect('\\0' + name))
    attempt('signal', lambda: os.kill(int(victim), 0) or 'done')
    attempt('path socket', lambda: connect('closed/socket'))
""")
# What an older ABI lets pass, as a person is told.
GAPS = {3: {"truncate"}, 6: {"abstract", "signal"}}
REFUSED = {"EACCES", "EPERM", "EXDEV", "ECONNREFUSED", "ESRCH", "EROFS"}


@pytest.mark.parametrize(("engine", "mode", "level"), COMBINATIONS, ids=lambda value: value.replace(" ", "-"))
def test_nothing_passes(engine, mode, level, run_sandbox, identities, area, request):
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    if os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    as_user = mode not in ("root", "landlock as root")
    where, who = area.dir(as_user), identities[as_user]
    for name in ("open", "closed"):
        (where / name).mkdir()
    (where / "closed" / "secret").write_text("secret")
    fence = ["--allow-read", "/proc", "--allow-write", "open"]
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as path:
        name = f"sandbox-test-{os.getpid()}"
        abstract.bind("\0" + name)
        path.bind(str(where / "closed" / "socket"))
        for at in (where / "open", where / "closed", *(where / "closed").iterdir()):
            os.chown(at, who.uid, who.gid)
        for one in (abstract, path):
            one.listen()
        command = ["run", "--engine", engine, "--mode", mode.split()[0], "--isolation", level, *fence]
        workspace = ["--workspace", "rw"] if level == "job" else []
        words = ["/usr/bin/python3", "-c", PROBE, str(os.getpid()), name]
        done = run_sandbox([*command, *workspace, "--", *words], as_user=as_user)
    assert done.returncode == 0, done.stderr
    got = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(got) == 21
    assert got.pop("allowed") == "done"
    assert got.pop("path socket") == "done", "no ABI up to 7 stops it, and docs/security.md says so"
    passed = {what for what, answer in got.items() if answer not in REFUSED}
    assert passed <= {what for since, gaps in GAPS.items() if landlock_abi() < since for what in gaps}, got
    assert sorted(os.listdir(where / "closed")) == ["secret", "socket"]
    assert (where / "closed" / "secret").read_text() == ("" if "truncate" in passed else "secret")


@pytest.mark.parametrize(("engine", "mode"), [("python", "userns"), ("native", "userns"), ("native", "setuid")])
def test_a_copy_of_the_workspace_is_no_own_place(engine, mode, run_sandbox, area, identities, request):
    """A job has one of somebody else's directory, and before Linux 6.6 in a user namespace of the user's own."""
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    else:
        modes.require(engine, mode, identities[True])
    where = area.path / "foreign"
    for name in ("open", "closed"):
        (where / name).mkdir(parents=True)
    script = "echo > made; echo > closed/x; echo > open/x; find . -type f"
    head = ["run", "--engine", engine, "--mode", mode, "--isolation", "job"]
    plain = run_sandbox([*head, "--", "sh", "-c", script], as_user=True, cwd=where)
    fence = ["--allow-read", "/", "--allow-write", "open"]
    done = run_sandbox([*head, *fence, "--", "sh", "-c", script], as_user=True, cwd=where)
    assert sorted(plain.stdout.split()) == ["./closed/x", "./made", "./open/x"], plain.stderr
    assert done.stdout.split() == ["./open/x"], done.stderr


@pytest.mark.parametrize("engine", ["python", "native"])
def test_mode_landlock_says_what_it_is(engine, run_sandbox, who, area):
    """It makes no namespace, tells a person so, and refuses what it cannot do."""
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    head = ["run", "--engine", engine, "--mode", "landlock"]
    same = ["sh", "-c", "readlink /proc/self/ns/mnt /proc/self/ns/net; echo ${SANDBOX_TMPDIR-none}; touch made"]
    done = run_sandbox([*head, "-v", "--", *same], as_user=who.as_user)
    assert done.stdout.splitlines() == [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")] + ["none"]
    assert done.returncode == 1
    assert "a fence around files and nothing else" in done.stderr
    explained = run_sandbox([*head, "--explain", "--", "true"], as_user=who.as_user).stdout
    assert "no namespace, no mount" in explained
    assert "Landlock fence" in explained
    refused = {"-s": "/etc", "--isolation": "job", "--net": "none", "--scratch": "/tmp", "--run": "a/b"}
    for option, value in refused.items():
        done = run_sandbox([*head, option, value, "--", "true"], as_user=who.as_user)
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
        assert f"{'--static, --dynamic' if option == '-s' else option}: mode landlock" in done.stderr
