"""`--net private`, on a host of the test's own with an internet behind it (tests/support/internet.py)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sandbox import gateway, host
from tests.support.internet import HOST, HOST_PORT, METADATA, WORLD, WORLD_PORT, Internet, obstacle
from tests.support.living import wait_for
from tests.support.modes import native_engine

SLIRP, PASTA = "/usr/bin/slirp4netns", "/usr/bin/pasta"
# Engine, mode, level, and what of the host is not there, or is on.
COMBINATIONS = {
    "slirp4netns": [
        ("native", "root", "job", ()),
        ("python", "userns", "job", ()),
        ("native", "root", "strict", ()),
        ("native", "setuid", "none", ()),
        ("native", "setuid", "strict", ()),
    ],
    "pasta": [("native", "root", "job", (SLIRP,)), ("python", "userns", "none", (SLIRP,))],
    "nft": [
        ("python", "root", "none", ("--forward", SLIRP, PASTA)),
        ("native", "root", "job", ("--forward", SLIRP, PASTA)),
    ],
}

PROBE = textwrap.dedent("""
    import errno, json, socket, sys
    def talk(kind, address, port, patience=0.5):
        with socket.socket(socket.AF_INET, kind) as one:
            one.settimeout(patience)
            one.connect((address, port))
            one.send(b'hello')
            return one.recv(100).decode().split()[0]
    def names_by_tcp():
        query = b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4name\\4test\\0\\0\\1\\0\\1'
        with socket.create_connection((resolver, 53), 20) as one:
            one.sendall(len(query).to_bytes(2, 'big') + query)
            return socket.inet_ntoa(one.recv(1000)[-4:])
    def attempt(what, *arguments):
        try: return what(*arguments)
        except TimeoutError: return 'timeout'
        except OSError as error: return errno.errorcode.get(error.errno, str(error))
    host, world, metadata, host_port, world_port = sys.argv[1:]
    resolver = open('/etc/resolv.conf').read().split()[1]
    got = {'name': attempt(socket.gethostbyname, 'some.name.test'), 'name by tcp': attempt(names_by_tcp)}
    for name, kind in (('tcp', socket.SOCK_STREAM), ('udp', socket.SOCK_DGRAM)):
        got[name] = attempt(talk, kind, world, int(world_port), 20)
        got['metadata ' + name] = attempt(talk, kind, metadata, int(world_port))
        gateway = resolver.rpartition('.')[0] + '.2'
        for where in (host, '127.0.0.1', gateway, resolver):
            got[where + ' ' + name] = attempt(talk, kind, where, int(host_port))
        for line in open('/proc/net/route').read().splitlines()[1:]:
            fields = line.split()
            if fields[1] == '00000000':
                gateway = '.'.join(str(int(fields[2][at:at + 2], 16)) for at in (6, 4, 2, 0))
                got['gateway ' + name] = attempt(talk, kind, gateway, int(host_port))
    print(json.dumps(got))
""")
ARGUMENTS = [HOST, WORLD, METADATA, str(HOST_PORT), str(WORLD_PORT)]


@pytest.fixture
def internet(run_sandbox, request):
    """Makes `run_sandbox` start on a host of its own: `internet(*options, mode=...)`."""
    if why := obstacle():
        pytest.skip(why)

    def use(*options, mode=""):
        helper = request.getfixturevalue("setuid_system") if mode == "setuid" else None
        run_sandbox.system = Internet(options, helper)

    return use


def _needs(program):
    if why := obstacle(program):
        pytest.skip(why)


@pytest.mark.parametrize(
    ("program", "engine", "mode", "level", "options"),
    [(program, *rest) for program, cases in COMBINATIONS.items() for rest in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outgoing_only(program, engine, mode, level, options, run_sandbox, internet):
    """Names, TCP and UDP go out; nothing of the host is reached, by whatever address; and nothing is left."""
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    _needs(program)
    internet(*options, "--tell", mode=mode)
    command = ["run", "--engine", engine, "--mode", mode, "--isolation", level, "--net", "private"]
    words = ["/usr/bin/python3", "-c", PROBE, *ARGUMENTS]
    done = run_sandbox([*command, "--", *words], as_user=mode != "root", timeout=120)
    assert done.returncode == 0, done.stderr
    got, left = map(json.loads, done.stdout.splitlines())
    assert (got.pop("name"), got.pop("name by tcp")) == (WORLD, WORLD)
    assert (got.pop("tcp"), got.pop("udp")) == ("hello", "hello")
    assert len(got) == 12
    # Only what is no address of anybody is waited for in vain.
    assert set(got.values()) <= {"EACCES", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "timeout"}, got
    assert left == {"devices": ["lo", "wan0"], "tables": [], "processes": []}


@pytest.mark.parametrize(
    ("options", "mode"),
    [((), "root"), ((SLIRP,), "root"), (("--forward", SLIRP, PASTA), "root"), ((), "setuid")],
    ids=["slirp4netns", "pasta", "nft", "helper"],
)
def test_nothing_is_left_by_a_killed_launcher(options, mode, run_sandbox, internet):
    """kill -9 of the supervisor and of the process behind the network: all goes by itself."""
    for program in ("slirp4netns", "pasta", "nft"):
        _needs(program)
    internet(*options, "--tell", "--kill", mode=mode)
    as_user = mode != "root"
    command = ["run", "--mode", mode, "--isolation", "job", "--net", "private", "--", "sleep", "1000"]
    done = run_sandbox(command, as_user=as_user, timeout=120)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert json.loads(done.stdout) == {"devices": ["lo", "wan0"], "tables": [], "processes": []}
    run_sandbox.system = run_sandbox.system.helper
    run_sandbox(["run", "--mode", mode, "--", "true"], as_user=as_user, check=True)  # which removes the record


def test_what_waits_for_a_connection_ends_with_who_should_make_it(area):
    """slirp4netns has a child for that, which no signal of a parent's death reaches."""
    if why := obstacle():
        pytest.skip(why)
    where = os.open(area.dir(False), os.O_RDONLY | os.O_DIRECTORY)
    argv = [SLIRP, "--disable-dns", "--target-type=bess", f"/proc/self/fd/{where}/frames"]
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException), gateway._program(argv, [where], lambda: False):
            pass
        os._exit(1)
    wait_for((area.dir(False) / "frames").exists)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: not _run_with("\0".join(argv[1:]).encode()))
    os.close(where)


def _run_with(words):
    """Whether a process was started with these arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in path.read_bytes():
                return True
    return False


def test_what_cannot_be_had_is_said(run_sandbox, internet):
    """One line that names the packages, the forwarding that is off, the mode."""
    everything = (SLIRP, PASTA, "/usr/sbin/nft")
    for options, mode, text in (
        (everything, "root", "install slirp4netns or passt or nftables"),
        (everything, "userns", "install slirp4netns or passt, or as root nftables"),
        ((SLIRP, PASTA), "root", "this host forwards no packets"),
        ((SLIRP,), "setuid", "in mode setuid needs slirp4netns 1.2.0 or later"),
        (everything, "setuid", "in mode setuid needs slirp4netns 1.2.0 or later"),
    ):
        internet(*options, mode=mode)
        done = run_sandbox(["run", "--mode", mode, "--net", "private", "--", "true"], as_user=mode != "root")
        assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
        assert text in done.stderr


def test_who_attaches_it_is_the_helper_where_it_can(run_sandbox, internet):
    """With pasta alone auto takes a user namespace, where there are any; --explain says which addresses there are."""
    for options, mode in (((), "setuid"), ((SLIRP,), "userns" if host.may_map_ids() else "")):
        internet(*options, mode="setuid")
        done = run_sandbox(["run", "--net", "private", "--explain", "--", "true"], as_user=True)
        if not mode:
            assert (done.returncode, done.stderr.count("needs slirp4netns 1.2.0 or later")) == (125, 1)
            continue
        assert done.stdout.startswith(f"mode     {mode}: "), done.stderr
        layout = "10.0.2.100/24, by way of 10.0.2.2, names from 10.0.2.3, closed to 169.254.0.0/16, 192.0.2.1/32"
        assert layout in done.stdout


def test_nobody_pays_for_it_who_does_not_use_it(run_sandbox, who):
    """pyroute2 takes a tenth of a second to import."""
    code = "import sys; from sandbox.cli import run; from sandbox import compiler, isolation, launch; "
    code += "print([name for name in sys.modules if 'pyroute2' in name or name in ('sandbox.network', 'ipaddress')])"
    done = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_pair_of_addresses_where_no_route_leads_anywhere():
    """A host may have no way but the default one; here it has none."""
    script = "from sandbox import network; print(network._free_pair())"
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", "--net", *own, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:7]) == (0, "10.213."), done.stderr
