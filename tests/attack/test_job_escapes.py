"""What a hostile command at level job tries against the host, by engine and mode. Each probe says what it got."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import escapes

KILL_ALL = """
import os
import shutil
try: os.kill(-1, 9)
except ProcessLookupError: print('nobody')
"""

CLOSED = """
import os, sys
def is_open(fd):
    try: return os.fstat(fd) is not None
    except OSError: return False
os._exit(7 if not any(map(is_open, map(int, sys.argv[1:]))) else 1)
"""

CATCH = """
import signal, sys, time
signal.signal(NUMBER, lambda *_: sys.exit(7))
print('ready', flush=True)
# pause() would miss a signal that comes just before it.
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("level", ["job", "strict"])
def test_nothing_of_the_host_is_within_reach(launch, level, identities):
    """Every probe fails, and none of them could have been meant for something that is not there on the host."""
    with escapes.targets(identities[True].home) as words:
        _, _, _, _, shown, *fds = words
        given = {"pass_fds": list(map(int, fds)), "env": {"CI_JOB_TOKEN": "token"}}
        options = ["--isolation", level, "--ro-bind", shown]
        done = launch(*options, "--", "/usr/bin/python3", "-c", escapes.PROBE, *words, **given)
    assert done.returncode == 0, done.stderr
    escapes.check(done.stdout)


def test_kill_of_everybody_reaches_nobody_outside(launch):
    """kill(0) and kill(-1) end with the namespace: the launcher, which started the command, tells of it."""
    assert launch("--", "sh", "-c", "kill -KILL 0").returncode == -signal.SIGKILL
    done = launch("--", "/usr/bin/python3", "-c", KILL_ALL)
    assert done.stdout == "nobody\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_reach_the_command(launch, number):
    script = CATCH.replace("NUMBER", str(int(number)))
    process = launch("--", "/usr/bin/python3", "-c", script, popen=True, stdout=-1)
    assert process.stdout.readline() == "ready\n"
    os.kill(_launcher(process.pid), number)
    assert process.wait(30) == 7


def _launcher(pid):
    """Below what enters the helper's own mount namespace, if anything does."""
    while True:
        name = Path(f"/proc/{pid}/comm").read_text()
        if name.startswith(("sandbox", "python")):
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return pid
        pid = int(children[0])


def test_it_dies_with_its_launcher(launch):
    """kill -9 of the supervisor leaves nothing of the job."""
    process = launch("--", "sh", "-c", "echo ready; sleep 1000", popen=True, stdout=-1)
    assert process.stdout.readline() == "ready\n"
    os.kill(_launcher(process.pid), signal.SIGKILL)
    process.wait(30)
    assert process.stdout.read() == "", "the end of the last writer"
    launch("--", "true")  # which cleans up behind it


def test_no_directory_among_the_descriptors(launch, area):
    """Below a directory that was open before lies all of the host, writable, as it was mounted there."""
    fd = os.open("/", os.O_RDONLY)
    where = os.fsencode(area.dir(launch.as_user) / "written")
    script = ["sh", "-c", f"echo x > /proc/self/fd/$0{os.fsdecode(where)}"]
    refused = launch("--pass-fd", str(fd), "--", *script, str(fd), pass_fds=[fd])
    assert (refused.returncode, "is a directory" in refused.stderr) == (125, True), refused.stderr
    # The second time it is started without Python, which would not start with such a one.
    assert launch("--", *script, "0").returncode == 2
    for _ in range(2):
        refused = launch("--", *script, "0", stdin=fd)
        assert (refused.returncode, "directory" in refused.stderr) == (125, True), refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    os.close(fd)
    assert not os.path.exists(where)


def test_closed_standard_descriptors(launch):
    """What opens a file does not get their numbers, and the command finds them closed."""
    for numbers in ((0,), (0, 1, 2)):
        words = ["--", "/usr/bin/python3", "-c", CLOSED, *map(str, numbers)]
        done = launch(*words, preexec_fn=lambda numbers=numbers: [os.close(fd) for fd in numbers])
        assert done.returncode == 7, done.stderr


WRITE = """
import os, sys
for path in sys.argv[1:]:
    try: os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), b'of the job')
    except OSError: pass
print('done')
"""


@pytest.fixture(name="fifos")
def _fifos(launch, area, identities):
    """Two of a service of the caller's, writable for everybody, and what reads them: descriptors by path."""
    where, who = area.dir(launch.as_user), identities[launch.as_user]
    readers = {}
    for name in ("a pipe", "another"):
        os.mkfifo(where / name)
        os.chmod(where / name, 0o622)
        readers[f"{where}/{name}"] = os.open(where / name, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen(["sleep", "1000"], pass_fds=readers.values(), cwd="/", **who.popen_options()) as service:
        yield readers
        service.kill()
    for fd in readers.values():
        os.close(fd)


def test_a_fifo_of_the_host(launch, area, fifos):
    """A read-only mount stops nobody at a FIFO, as at a path socket: --explain names those that show, and all that
    takes one away does: an overlay, --hide, a fence.
    """
    where, names, read_only = area.dir(launch.as_user), list(fifos), ["--workspace", "ro"]
    for options, is_open, listed in (
        (read_only, names, names),
        ([*read_only, "--hide", names[0]], names[1:], names[1:]),
        ([*read_only, "--allow-write", "/tmp"], [], names),
        (["--workspace", "overlay"], [], []),
    ):
        done = launch(*options, "--", "/usr/bin/python3", "-c", WRITE, *names, cwd=where)
        assert done.stdout == "done\n", done.stderr
        assert [name for name, fd in fifos.items() if os.read(fd, 100)] == is_open, options
        lines = launch(*options, "--explain", "--", "true", cwd=where).stdout.splitlines()
        said = [f"fifo     {name} can be written to" for name in listed]
        assert [line for line in lines if line.startswith("fifo")] == said, options


# Of root's, of the user's account, and a home that is where HOME says.
SECRETS = (
    "/etc/ssh/ssh_host_sbx_key",
    "/etc/gitlab-runner/config.toml",
    "/var/lib/runner/.docker/config.json",
    "/var/lib/elsewhere/.ssh/id_ed25519",
    "/var/lib/elsewhere/.netrc",
)
READ_ALL = """
for file in "$@"; do cat "$file" && echo "read $file"; done 2>/dev/null
/var/lib/shell -p -c 'id -un; cat /etc/ssh/ssh_host_sbx_key /etc/shadow' 2>/dev/null
echo x 2>/dev/null > /var/lib/shown/inner/file && echo 'wrote below a bind'
env | grep -i secret
echo done
"""


def test_no_secret_of_the_system_and_no_privilege(launch, run_sandbox, setuid_system, user):
    """Host keys, tokens of runners, keys in homes wherever they are, setuid programs, what is mounted below a bind."""
    private = setuid_system.private
    run_sandbox.system = setuid_system
    who = run_sandbox.identities[launch.as_user]
    for name in SECRETS:
        file = private.inside(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("secret\n")
        file.chmod(0o600)
    assert private.root("chown", "-R", str(who.uid), "/var/lib/runner", "/var/lib/elsewhere").returncode == 0
    accounts = private.inside("/etc/passwd")
    before = accounts.read_text()
    accounts.write_text(before.replace(f":{who.home}:", ":/var/lib/runner:"))
    shutil.copy("/bin/dash", private.inside("/var/lib/shell"))
    private.inside("/var/lib/shell").chmod(0o4755)
    mounted = "mkdir -p /var/lib/shown/inner && mount -t tmpfs -o mode=777 sbx-tests /var/lib/shown/inner"
    assert private.root("sh", "-c", mounted).returncode == 0
    words = ["--ro-bind", "/var/lib/shown", "--", "sh", "-c", READ_ALL, "sh", *SECRETS]
    done = launch(*words, env={"HOME": "/var/lib/elsewhere", "RUNNER_SECRET": "secret"}, cwd="/")
    assert private.root("umount", "/var/lib/shown/inner").returncode == 0
    accounts.write_text(before)
    printed = done.stdout.splitlines()
    assert printed.pop() == "done", done.stderr
    assert printed in ([], ["sandbox-job"], [user.name]), "the setuid program is nobody else"
    for top in ("/etc/gitlab-runner", "/var/lib/runner", "/var/lib/elsewhere", "/var/lib/shown"):
        shutil.rmtree(private.inside(top))
    private.inside("/var/lib/shell").unlink()
    private.inside(SECRETS[0]).unlink()
