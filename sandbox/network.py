"""`--net private`: who attaches a run's network namespace, with which addresses, and what its resolver is told.

Everything that needs pyroute2 is in sandbox/gateway.py, which runs in a process of its own.
"""

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING

from sandbox.errors import HostError, UsageError
from sandbox.host import find_program
from sandbox.level_steps import File, Network, Text
from sandbox.plan import Attach
from sandbox.plan_types import Attr, Base, Mode, Place, Source, SourceKind
from sandbox.record import Record

if TYPE_CHECKING:
    from sandbox.builder import Builder

RESOLV_CONF = b"/etc/resolv.conf"
# The first of these that the host has no route into. In each .100 is the run, .2 its gateway and .3 its name server.
_NETWORKS = ("10.0.2.0/24", "10.213.77.0/24", "172.30.77.0/24", "192.168.213.0/24")
# Programs that attach a namespace without any right on the host, and the packages that have them.
SLIRP, PASTA, NFT = "slirp4netns", "pasta", "nft"
TUN = "/dev/net/tun"
PACKAGES = "slirp4netns or passt"


class Private(Record):
    """A private network. `program` attaches it; `socket` is the engine's end, -1 when nothing is to be started."""

    mode: Mode
    program: bytes
    network: str
    resolv_conf: bytes
    socket: int = -1

    def address(self, host: int) -> str:
        return str(ipaddress.ip_network(self.network)[host])

    @property
    def run(self) -> str:
        return self.address(100)

    @property
    def gateway(self) -> str:
        return self.address(2)

    @property
    def resolver(self) -> str:
        return self.address(3)


def look(mode: Mode, level: str) -> Private:
    """What there is for a private network here. Raises HostError, or UsageError for a mode that cannot have one."""
    if mode is Mode.SETUID:
        raise UsageError(
            "--net private: in setuid mode the network namespace is root's, and no helper of yours may enter it",
            hint="use --mode userns, or --net none",
        )
    program = find_program(SLIRP) or find_program(PASTA)
    if not program and mode is Mode.ROOT:
        program = find_program(NFT)
    if not program:
        also = ", or as root nftables" if mode is not Mode.ROOT else " or nftables"
        raise HostError(
            f"--net private needs a program that is not installed: {SLIRP} or {PASTA}",
            hint=f"install {PACKAGES}{also}, or use --net none",
        )
    if os.path.basename(program) != NFT.encode() and not os.access(TUN, os.R_OK | os.W_OK):
        raise HostError(
            f"--net private: {TUN} may not be used",
            hint="modprobe tun; chmod 666 /dev/net/tun (it gives no right on the host), or use --net none",
        )
    return Private(mode, program, _free_network(), _resolv_conf(level))


def _resolv_conf(level: str) -> bytes:
    """The file that a resolver reads. Raises HostError where one would have to be made on the host."""
    path = RESOLV_CONF if level == "strict" else os.path.realpath(RESOLV_CONF)
    if level == "none" and not os.path.isfile(path):
        raise HostError("--net private: this host has no /etc/resolv.conf to cover", hint="make one, or use --net none")
    return path


def _free_network() -> str:
    taken = list(_routes())
    for text in _NETWORKS:
        network = ipaddress.ip_network(text)
        if not any(network.overlaps(other) for other in taken):
            return text
    return _NETWORKS[0]


def _routes() -> "list[ipaddress.IPv4Network]":
    """Where this host has routes to but the default (proc_net(5))."""
    found = []
    try:
        with open("/proc/net/route") as file:
            for line in file.read().splitlines()[1:]:
                fields = line.split()
                address, mask = (struct.pack("=I", int(fields[at], 16)) for at in (1, 7))
                if mask != bytes(4):
                    found.append(ipaddress.IPv4Network((address, socket.inet_ntoa(mask)), strict=False))
    except (OSError, ValueError):
        pass
    return found


def start(private: Private) -> Private:
    """The same with a process that waits for the engine. It ends when the socket's last owner does."""
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        try:
            # Nobody's child of ours: what it uses is not the job's, and it outlives a supervisor that is killed.
            if os.fork() == 0:
                from sandbox import gateway

                ours.close()
                gateway.main(theirs, private)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    theirs.close()
    return private.replace(socket=ours.detach())


def attach(builder: "Builder", private: Private) -> None:
    """The step that asks for it. Before a pid namespace is made: processes inside have no number outside."""
    builder.sources.append(Source(SourceKind.MEMORY, b""))
    if private.socket >= 0:
        builder.fds[len(builder.sources) - 1] = private.socket
    builder.steps.append(Network(len(builder.sources) - 1))


def resolve(builder: "Builder", private: Private) -> None:
    """What the command's resolver reads, once all that covers it is mounted."""
    place = Place(Base.ROOT, private.resolv_conf)
    text = Text(builder.slot(), 0o644, b"nameserver %s\n" % private.resolver.encode())
    attrs = Attr.READ_ONLY | Attr.NOSUID | Attr.NODEV | Attr.NOEXEC
    # A link may lead to a place that is private, and empty.
    builder.steps += [text, File(place, 0o644, b""), Attach(text.slot, place, attrs)]
