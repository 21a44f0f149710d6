"""A private network in mode setuid: a plan by hand, and whoever is at the other end of its socket, reach nothing of the
host's network, and nothing but frames of the run's own."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from sandbox.engine.syscalls import CLONE_NEWNET, CLONE_NEWUTS
from sandbox.level_steps import Loopback, Network
from sandbox.plan import NoNewPrivs, SetPropagation, Tmpfs, Unshare
from tests.support.launcher import MEMORY, NEWNS

OWN = (Unshare(NEWNS | CLONE_NEWNET), SetPropagation(1))
ADDRESS, GATEWAY, RESOLVER, LINK_LOCAL = 0x0A00026418, 0x0A000202, 0x0A000203, 0xA9FE000010
NETWORK = Network(0, ADDRESS, GATEWAY, RESOLVER, (LINK_LOCAL,))
TUN = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, SIOCGSKNS, SIOCSIFFLAGS = 0x400454CA, 0x400454CB, 0x400454CC, 0x894C, 0x8914


@pytest.fixture(scope="module", autouse=True)
def _tun(helper_system):
    """As distributions have it; here it may be root's alone. In the private system: the host's stays as it is."""
    make = f"mknod -m 666 /run/tun c 10 200 && mount --bind /run/tun {TUN}"
    if not os.path.exists(TUN):
        pytest.skip(f"this kernel has no tun module loaded: there is no {TUN}")
    assert helper_system.private.root("sh", "-ec", make).returncode == 0
    yield
    assert helper_system.private.root("sh", "-ec", f"umount {TUN}; rm /run/tun").returncode == 0


class Outside:
    """The other end of the socket, and what came through it."""

    def __init__(self, helper, answer=b"ok\n"):
        self.helper, self.answer = helper, answer
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(30)
        self.fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ours.close()
        self.theirs.close()
        for fd in self.fds:
            os.close(fd)

    def start(self, *steps, script="true"):
        plan = self.helper.raw(*steps, sources=(MEMORY,))
        process = self.helper.start(plan, "sh", "-c", script, fds={0: self.theirs.fileno()})
        self.theirs.close()
        return process

    def receive(self):
        """What the helper asks, and what it hands over."""
        asked, self.fds, _, _ = socket.recv_fds(self.ours, 100, 10)
        return asked

    def run(self, *steps, script="true"):
        """Exit code, output, errors."""
        process = self.start(*steps, script=script)
        with contextlib.suppress(OSError):
            if self.receive():
                self.ours.sendall(self.answer)
        self.ours.shutdown(socket.SHUT_WR)
        self.ours.close()
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def the_hosts():
    """Devices, routes and addresses of the host."""
    names = sorted(name for _, name in socket.if_nameindex())
    return names, Path("/proc/net/route").read_text(), Path("/proc/net/fib_trie").read_text()


def test_the_hosts_network_stays_as_it_is(helper):
    """Without a network namespace of its own a plan would get a device in the host's; late, with another /dev."""
    before = the_hosts()
    late = Tmpfs(0, 1 << 20, 0, 0o700)
    for steps, text in (
        ((Unshare(NEWNS), SetPropagation(1), NETWORK), "needs a network namespace"),
        ((Unshare(NEWNS | CLONE_NEWUTS), SetPropagation(1), NETWORK), "needs a network namespace"),
        ((NETWORK, *OWN), "a plan starts with a mount namespace"),
        ((OWN[0], NETWORK, OWN[1]), "a plan starts with a mount namespace"),
        ((*OWN, late, NETWORK), "comes before all that is mounted"),
        ((*OWN, Unshare(CLONE_NEWNET), NETWORK), "a plan starts with a mount namespace"),
        ((Unshare(CLONE_NEWNET), SetPropagation(1), NETWORK), "a plan starts with a mount namespace"),
    ):
        with Outside(helper) as outside:
            code, _, err = outside.run(*steps)
            assert (code, err.count("\n")) == (125, 1)
            assert text in err
            assert outside.fds == []
    assert the_hosts() == before


def test_only_what_the_run_made_is_set_up(helper):
    """It is attached as the plan says, the command has no right to change it, and all goes with the last descriptor."""
    before = the_hosts()
    script = """
        ls /proc/sys/net/ipv4/conf | tr '\\n' ' '; grep -c 10.0.2.100 /proc/net/fib_trie; grep Cap /proc/self/status
        for change in 'link set tap0 down' 'addr add 10.9.9.9/8 dev tap0' 'route del prohibit 169.254.0.0/16' \\
            'route flush 0/0' 'link del tap0' 'tuntap add tap1 mode tap'
        do ip $change 2>&1 | grep -o 'Operation not permitted'; done
        ip route show type prohibit; ip route show default"""
    with Outside(helper) as outside:
        code, out, err = outside.run(*OWN, NETWORK, NoNewPrivs(), script=script)
        assert (code, err) == (0, "")
        assert len(outside.fds) == 3
    caps = "".join(f"Cap{name}:\t{'0' * 16}\n" for name in ("Inh", "Prm", "Eff"))
    assert out.startswith(f"all default lo tap0 2\n{caps}")
    assert out.count("Operation not permitted") == 6
    assert "prohibit 169.254.0.0/16" in out
    assert "default via 10.0.2.2 dev tap0" in out
    assert the_hosts() == before


@pytest.mark.parametrize(
    "step",
    [
        Network(0, 0, 0, 0, ()),
        Network(0, 0xFFFFFFFF20, 0xFFFFFFFF, 0xFFFFFFFF, (0,)),
        Network(0, 0x7F00000108, 0x7F000001, 0x7F000001, (0x7F00000008,)),
        Network(0, 0x0A00020318, RESOLVER, RESOLVER, ()),
        Network(0, ADDRESS, GATEWAY, RESOLVER, (0xC0A8010118,)),
        Network(0, ADDRESS, 0x08080808, RESOLVER, ()),
        Network(0, ADDRESS, GATEWAY, RESOLVER, (0, 0x0A00026420, 0x0A00020018, 0x0A00020220)),
        Network(0, ADDRESS, GATEWAY, RESOLVER, tuple(0xC000000020 + (number << 8) for number in range(4000))),
    ],
    ids=["nothing", "broadcast", "loopback", "one for all", "host bits", "far gateway", "itself", "many"],
)
def test_no_address_reaches_further(helper, step):
    """Whatever a user writes there: it works in the run's own namespace, or is one line."""
    before = the_hosts()
    with Outside(helper) as outside:
        code, _, err = outside.run(*OWN, step)
        assert (code, err.count("\n")) in ((0, 0), (125, 1)), err
    assert the_hosts() == before


def _as_user(helper, attempts):
    """The numbers of the errors of what a process without any right tries."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(helper.gid, helper.gid, helper.gid)
            os.setresuid(helper.uid, helper.uid, helper.uid)
            for attempt in attempts:
                try:
                    attempt()
                    found = 0
                except OSError as error:
                    found = error.errno
                os.write(writer, bytes([found]))
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as stream:
        return list(stream.read())


def test_what_is_handed_out_carries_frames_and_nothing_else(helper):
    """Its owner cannot use it to enter or change the namespace, or to get a device elsewhere."""
    down, other = struct.pack("16sH22x", b"lo", 0), struct.pack("16sH22x", b"tap9", 0x1002)
    with Outside(helper) as outside:
        process = outside.start(*OWN, NETWORK, NoNewPrivs(), script="grep -c tap0 /proc/net/route")
        assert int(outside.receive()) == process_child(process)
        tap, names, streams = outside.fds
        here = os.readlink("/proc/self/ns/net")
        frame = b"\xff" * 6 + b"\2" + bytes(5) + b"\x08\0" + b"hello" * 20
        found = _as_user(
            helper,
            [
                lambda: fcntl.ioctl(names, SIOCSIFFLAGS, down),
                lambda: fcntl.ioctl(streams, SIOCGSKNS),
                lambda: fcntl.ioctl(tap, SIOCGSKNS),
                lambda: fcntl.ioctl(tap, TUNSETIFF, other),
                lambda: os.open(f"/proc/{process_child(process)}/ns/net", os.O_RDONLY),
                lambda: socket.socket(fileno=os.dup(names)).setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1),
                lambda: os.write(tap, frame),
                lambda: fcntl.ioctl(tap, TUNSETPERSIST, 1),
                lambda: fcntl.ioctl(tap, TUNSETOWNER, helper.uid),
            ],
        )
        assert found[:3] == [errno.EPERM] * 3
        assert found[3] in (errno.EEXIST, errno.EINVAL, errno.EPERM)
        assert found[4] in (errno.EACCES, errno.EPERM)
        assert found[5] == errno.EPERM
        assert found[6] == 0
        # Capabilities that the helper has no more while it waits for somebody.
        status = Path(f"/proc/{process_child(process)}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        permitted = int(status.split("CapPrm:\t")[1].split()[0], 16)
        assert permitted & (1 << 12 | 1 << 10) == 0
        outside.ours.sendall(b"ok\n")
        outside.ours.close()
        assert process.communicate(timeout=60)[0] == "2\n"
        assert os.readlink("/proc/self/ns/net") == here
    assert "tap0" not in [name for _, name in socket.if_nameindex()]


def process_child(process):
    """The child of the helper, which becomes the command."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "has died"),
        (b"no \x1b[31m\n", r"no \u{1b}[31m"),
        (b"o", "o"),
        (b"ok\nok\n", "ok"),
        (bytes(100_000), ""),
    ],
    ids=["gone", "a terminal's words", "half", "twice", "much"],
)
def test_answers(helper, answer, text):
    with Outside(helper, answer) as outside:
        code, out, err = outside.run(*OWN, NETWORK, script="echo ran")
        assert (code, out, err.count("\n")) == (125, "", 1)
        assert text in err
        assert "\x1b" not in err


def test_what_is_no_connected_socket(helper):
    """Each is one line: nothing is written to it, and nothing is waited for."""
    reader, writer = os.pipe()
    alone = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plan = helper.raw(*OWN, NETWORK, sources=(MEMORY,))
    files = [os.open("/dev/null", os.O_RDWR), os.open(helper.tree / "f", os.O_RDONLY), os.memfd_create("x")]
    for fd in (reader, writer, alone.fileno(), datagrams.fileno(), *files):
        helper.refused(plan, "private network", fds={0: fd})
    for fd in (reader, writer, *files):
        os.close(fd)
    alone.close()
    datagrams.close()
    helper.refused(plan, "")


def test_one_that_never_answers_can_be_left(helper):
    """Who waits has its user's rights, and the user ends it; the namespace goes with the descriptors."""
    with Outside(helper) as outside:
        process = outside.start(*OWN, NETWORK, Loopback(), script="echo ran")
        assert outside.receive()
        child = process_child(process)
        ids = helper.become_with(helper.who.groups)
        subprocess.run(["kill", "-KILL", str(child)], check=True, **ids)
        outside.ours.close()
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (-signal.SIGKILL, "")
    assert helper.run(helper.raw(*OWN, Loopback()), "true")[0] == 0


@pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="it takes a minute: make soak")
def test_one_that_never_answers_is_left(helper):
    with Outside(helper) as outside:
        process = outside.start(*OWN, NETWORK, script="echo ran")
        assert outside.receive()
        err = process.stderr.readline()
        outside.ours.close()
        assert (process.communicate(timeout=60)[0], process.returncode) == ("", 125)
        assert "does not answer" in err
