"""sandbox exec: what it joins, and that nobody gets more by it than what runs there has (CVE-2022-31214).

All of it is tried with both programs that join: the native front, which leaves to Python what it is in doubt of, and
Python alone.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from sandbox import processes
from sandbox.engine import native
from tests.support import living, modes
from tests.support.living import Living, wait_for

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
JOINABLE = [pair for pair in living.COMBINATIONS if pair[1] != "setuid"]
ALL = pytest.mark.parametrize("pair", JOINABLE, ids="-".join)
SOME = pytest.mark.parametrize("pair", [("python", "userns"), ("native", "root")], ids="-".join)
# What a process is: everything that joining could get wrong.
FACTS = (
    "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status;"
    "for n in mnt cgroup uts ipc user pid net; do readlink /proc/self/ns/$n; done;"
    "cat /proc/self/limits /proc/self/cgroup; pwd; echo $SANDBOX_TMPDIR;"
    "env | grep ^MINE; nice; ls -l /proc/self/fd | wc -l"
)


def is_running(pid):
    """Neither gone, nor a zombie, nor about to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Client:
    """Who joins. `asked` are the lines that came to Python."""

    def __init__(self, kind: str, run_sandbox, area) -> None:
        python = run_sandbox.command.with_name("sandbox-python")
        self.native, self.log = kind == "front", area.path / "asked"
        self.log.touch()
        self.log.chmod(0o666)
        program = python
        if self.native:
            program = area.path / "client" / "sandbox"
            program.parent.mkdir()
            shutil.copy(run_sandbox.command, program)
            beside = program.with_name("sandbox-python")
            beside.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\nexec {python} "$@"\n')
            beside.chmod(0o755)
        run_sandbox.instead["exec"] = self.program = program

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(params=["front", "python"])
def client(request, run_sandbox, area):
    if not native.available():
        pytest.skip("the native programs were not built here (no cargo): sandbox is Python alone")
    return Client(request.param, run_sandbox, area)


@pytest.fixture
def live(pair, run_sandbox, identities, client):
    modes.require(*pair, identities[True])
    return Living(run_sandbox, *pair)


def facts_of_the_command(live: Living) -> str:
    return (live.area / "facts").read_text()


@pytest.mark.parametrize(
    ("pair", "level"),
    [
        (("python", "root"), "strict"),
        (("python", "userns"), "job"),
        (("python", "userns"), "none"),
        (("native", "root"), "none"),
        (("native", "root"), "job"),
        (("native", "userns"), "strict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_it_is_what_the_command_is(live, level, client):
    options = ["--name", "one", "-e", "MINE=1", "--nofile", "77", "--nice", "19"]
    options += ["--isolation", level] if level != "none" else []
    process = live.start(*options, script=f"umask 027; ({FACTS}) > {live.area}/facts 2>&1")
    umask = os.umask(0o77)
    try:
        joined = live("exec", "one", "--", "sh", "-c", FACTS, cwd="/")
    finally:
        os.umask(umask)
    assert joined.returncode == 0, joined.stderr
    assert joined.stdout.splitlines() == facts_of_the_command(live).splitlines()
    assert live("exec", "one", "sh", "-c", "exit 42").returncode == 42
    assert live("exec", "one", "sh", "-c", "kill -TERM $$").returncode == -15
    missing = live("exec", "one", "no-such-command")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (127, 1)
    number = live.own()[0]["id"]
    assert live("exec", number[:5], "--", "cat", input="in\n").stdout == "in\n"
    # It was the native one that did it.
    assert client.asked == []
    assert live("exec", "-e", "A=b", "one", "sh", "-c", "echo $A; cat", input="in\n").stdout == "b\nin\n"
    assert client.asked == (["exec -e A=b one sh -c echo $A; cat"] if client.native else [])
    assert live("kill", "one").returncode == 0
    process.wait(20)


@ALL
def test_it_ends_with_the_sandbox(live):
    """Also at level none, where no namespace of processes ends it, and what it started in the background."""
    process = live.start("--name", "one", "--scratch", str(live.area))
    script = "(setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' &); sleep 1000"
    client = live.run.popen(["exec", "one", "sh", "-c", script], as_user=live.as_user, stdout=subprocess.PIPE)
    left = int(client.stdout.readline())
    client.kill()
    client.wait(20)
    # The client's own command dies with it; what that put into the background is the sandbox's.
    assert Path(f"/proc/{left}").exists()
    assert live("kill", "one").returncode == 0
    process.wait(20)
    wait_for(lambda: not is_running(left))
    assert not [
        path for path in live.area.iterdir() if path.name.startswith("sandbox-") and path.name != "sandbox-home"
    ]


@SOME
def test_what_an_ordinary_end_leaves_is_ended(live):
    process = live.start("--name", "one")
    assert live("exec", "one", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &").returncode == 0
    assert "sleep 1000" not in " ".join(" ".join(p["command"]) for p in live.json("inspect", "one")["processes"])
    live("kill", "one")
    process.wait(20)


@pytest.mark.parametrize("pair", [("native", "setuid")], ids="-".join)
@pytest.mark.usefixtures("client")
def test_mode_setuid_is_refused(pair, run_sandbox, request):
    run_sandbox.system = request.getfixturevalue("setuid_system")
    live = Living(run_sandbox, *pair)
    process = live.start("--name", "one")
    refused = live("exec", "one", "true")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (125, 1)
    assert "mode setuid: the kernel lets nobody but root" in refused.stderr
    live("kill", "one")
    process.wait(20)


@SOME
def test_a_fence_is_refused(live):
    process = live.start("--name", "one", "--allow-write", str(live.area))
    refused = live("exec", "one", "true")
    assert (refused.returncode, "Landlock" in refused.stderr) == (125, True)
    live("kill", "one")
    process.wait(20)


@SOME
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["exec", "one"], "no command to run"),
        (["exec", "two", "true"], "no running sandbox is called 'two'"),
        (["exec", "-e", "A", "one", "true"], "is not NAME=VALUE"),
    ],
)
def test_mistakes(live, words, says):
    process = live.start("--name", "one")
    refused = live(*words)
    assert (refused.returncode, len(refused.stderr.splitlines()), says in refused.stderr) == (125, 1, True)
    live("kill", "one")
    process.wait(20)


# -- attacks ----------------------------------------------------------------------------------------------------


@ROOT_ONLY
@pytest.mark.usefixtures("client")
def test_another_user_cannot_join(run_sandbox, identities, area):
    """Neither by a name, nor by copying the record into a home of their own and locking it."""
    owner = Living(run_sandbox, "native", "root")
    process = owner.start("--name", "secret", "--isolation", "job")
    assert run_sandbox(["exec", "secret", "id"], as_user=True).returncode == 125
    run_sandbox(["run", "true"], as_user=True, check=True)
    record = (area.home(False) / "records" / "secret").read_bytes()
    user = identities[True]
    for uid in (0, user.uid):
        # With the plan as it is, and with one that says it is theirs.
        data = record.replace(b'"name": "secret"', b'"name": "stolen"')
        line, _, plan = data.partition(b"\n")
        plan = plan[:12] + uid.to_bytes(4, "little") + (user.gid if uid else 0).to_bytes(4, "little") + plan[20:]
        (area.home(True) / "records" / "stolen").write_bytes(line + b"\n" + plan)
        os.chown(area.home(True) / "records" / "stolen", user.uid, user.gid)
        with holding(area.home(True) / "records" / "stolen", user):
            done = run_sandbox(["exec", "stolen", "id"], as_user=True)
            assert (done.returncode, done.stdout) == (125, ""), done
            assert len(done.stderr.splitlines()) == 1
        (area.home(True) / "records" / "stolen").unlink()
    # Root does not enter what a user says either.
    theirs = Living(run_sandbox, "native", "userns")
    other = theirs.start("--name", "lure")
    assert run_sandbox(["exec", "lure", "id"], as_user=False).returncode == 125
    for one, live in ((process, owner), (other, theirs)):
        live("kill", "--all")
        one.wait(20)


class holding:  # noqa: N801
    """A process of this user's that holds the lock on a record."""

    def __init__(self, path: Path, who) -> None:
        script = f"import fcntl, time; f = open('{path}'); fcntl.flock(f, 2); print('up', flush=True); time.sleep(1000)"
        python = "/usr/bin/python3"
        self.process = subprocess.Popen(
            [python, "-c", script], stdout=subprocess.PIPE, text=True, **who.popen_options()
        )

    def __enter__(self):
        assert self.process.stdout.readline() == "up\n"

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.leaves_procdirs
def test_a_record_that_means_a_process_outside(run_sandbox, who, area):
    """A forged record whose supervisor is an ordinary shell: its child has no namespaces to join, and nothing runs."""
    from sandbox import records

    live = Living(run_sandbox, "native", "root" if not who.as_user else "userns")
    process = live.start("--name", "real", "--isolation", "job")
    record = (area.home(who.as_user) / "records" / "real").read_bytes()
    facts = json.loads(record.partition(b"\n")[0])
    outer = subprocess.Popen(["sh", "-c", "sleep 1000; true"], **who.popen_options())
    wait_for(lambda: processes.below(outer.pid))
    facts |= {"name": "forged", "id": "cd" * 16, "pid": outer.pid, "start_time": processes.start_of(outer.pid)}
    facts["boot_id"] = records.boot_id()
    path = area.home(who.as_user) / "records" / "forged"
    path.write_bytes(json.dumps(facts).encode() + b"\n" + record.partition(b"\n")[2])
    os.chown(path, who.uid, who.gid)
    with holding(path, who):
        # Both at once: they wait a while for a command to start.
        programs = [run_sandbox.command, run_sandbox.command.with_name("sandbox-python")]
        clients = []
        for run_sandbox.instead["exec"] in filter(Path.exists, programs):
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            clients.append(run_sandbox.popen(["exec", "forged", "id"], as_user=who.as_user, **pipes))
        for client in clients:
            out, err = client.communicate(timeout=60)
            assert (client.returncode, out, len(err.splitlines())) == (125, "", 1)
    for pid in [*processes.below(outer.pid), outer.pid]:
        os.kill(pid, signal.SIGKILL)
    outer.wait()
    live("kill", "real")
    process.wait(20)


@SOME
def test_from_inside_one_on_another(live, client):
    """At level job there is neither the home nor the process; at level none of userns the kernel refuses."""
    victim = live.start("--name", "victim")
    inside = ["run", *live.options, "-e", f"SANDBOX_HOME={live.run.area.home(live.as_user)}"]
    command = [str(client.program), "exec", "victim", "sh", "-c", "echo joined"]
    job = live(*inside, "--isolation", "job", "--", *command)
    assert "joined" not in job.stdout
    assert job.returncode != 0
    none = live(*inside, "--unset-env", "SANDBOX_HOME", "-e", "SANDBOX_TMPDIR_=x", "--", *command)
    assert "joined" not in none.stdout
    live("kill", "victim")
    victim.wait(20)


@SOME
def test_what_the_command_gave_up_is_not_joined(live):
    """A filter of its own, a root of its own: whoever joined would have more."""
    script = (
        "python3 -c 'import ctypes, os, time; c = ctypes.CDLL(None); c.prctl(38, 1, 0, 0, 0);"
        "b = ctypes.create_string_buffer(bytes([6, 0, 0, 0, 0, 0, 255, 127])); import struct;"
        'h = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(b)));'
        'assert c.prctl(22, 2, h) == 0; os.execvp("sh", ["sh", "-c", os.environ["AFTER"]])\''
    )
    after = f"echo up > {live.area}/filtered; while :; do sleep 0.2; done"
    process = live.run.popen(
        ["run", *live.options, "--name", "one", "-e", f"AFTER={after}", "--", "sh", "-c", "exec " + script],
        as_user=live.as_user,
    )
    wait_for((live.area / "filtered").exists)
    refused = live("exec", "one", "true")
    assert (refused.returncode, "filter" in refused.stderr) == (125, True), refused
    live("kill", "one")
    process.wait(20)


@SOME
def test_nothing_inside_is_believed_before_the_rights_are_gone(live):
    """The sandbox has put another Python library where exec's own comes from: it is not looked at."""
    library = Path(os.__file__).parent
    (live.area / "evil").mkdir()
    process = live.start("--name", "one", "-s", f"{library}:{live.area}/evil")
    assert live("exec", "one", "sh", "-c", f"ls -A {library}; echo fine").stdout == "fine\n"
    live("kill", "one")
    process.wait(20)


@SOME
def test_no_descriptor_comes_along(live, area):
    """Of the caller's, nothing but 0 to 2: not the home, not what the caller had open."""
    process = live.start("--name", "one", "--isolation", "job")
    with open("/etc/passwd") as open_file:
        fd = os.dup(open_file.fileno())
        os.set_inheritable(fd, True)
        try:
            script = "ls /proc/self/fd | tr '\\n' ' '"
            assert live("exec", "one", "sh", "-c", script, pass_fds=[fd]).stdout.split() == ["0", "1", "2", "3"]
        finally:
            os.close(fd)
    live("kill", "one")
    process.wait(20)


@SOME
def test_no_directory_comes_along(live, client):
    """Below one that is open lies all of the host, for the command and for the job, which can look at it."""
    process = live.start("--name", "one", "--isolation", "job")
    fd = os.open("/", os.O_RDONLY)
    try:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            others = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            refused = live("exec", "one", "ls", f"/proc/self/fd/{number}/etc/hostname", **{**others, name: fd})
            # Python itself does not start with one.
            assert refused.returncode == (125 if client.native else 1)
            assert "hostname" not in (refused.stdout or "")
            if client.native and name != "stderr":
                assert "sandbox: cannot start with a directory as descriptor" in refused.stderr
    finally:
        os.close(fd)
    live("kill", "one")
    process.wait(20)


@SOME
def test_the_sandbox_cannot_trace_who_joins(live):
    """As long as it is not the command yet: it cannot be dumped. A loop inside looks for one that it may read."""
    watch = (
        'python3 -c \'import os\nfor _ in range(200000):\n for p in os.listdir("/proc"):\n'
        '  if p.isdigit() and int(p) > 9:\n   try:\n    w = open(f"/proc/{p}/environ", "rb").read()\n'
        '    if b"CALLERS_SECRET" in w: print("stolen", flush=True)\n   except OSError: pass\' &'
    )
    process = live.start("--name", "one", "--isolation", "job", script=watch, stdout=subprocess.PIPE)
    for _ in range(5):
        assert live("exec", "one", "true", env={"CALLERS_SECRET": "x"}).returncode == 0
    live("kill", "one")
    assert process.communicate(timeout=30)[0] == ""
