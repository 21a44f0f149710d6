"""`--net private`: who attaches a run's network namespace, with which addresses, and what its resolver is told.

What is in the namespace is decided here for all modes. Who may enter it sets that up: sandbox/gateway.py, which runs in
a process of its own and has all that needs pyroute2; in mode setuid, where the namespace is root's, the helper.
"""

import functools
import ipaddress
import os
import secrets
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from sandbox.errors import HostError
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
# Small networks for pairs of devices are taken from here, at random: others look for one at the same time.
_POOL = ipaddress.IPv4Network("10.213.0.0/16")
_LINK_LOCAL = "169.254.0.0/16"
# Programs that attach a namespace without any right on the host, and the packages that have them.
SLIRP, PASTA, NFT = "slirp4netns", "pasta", "nft"
TUN = "/dev/net/tun"
PACKAGES = "slirp4netns or passt"


class Private(Record):
    """A private network. `program` attaches it; `socket` is the engine's end, -1 when nothing is to be started.

    The run has `address` (with the length of its network's prefix), and goes by way of `gateway` everywhere but to the
    networks in `closed`; it asks `resolver` for names.
    """

    mode: Mode
    program: bytes
    address: str
    gateway: str
    resolver: str
    closed: tuple[str, ...]
    resolv_conf: bytes
    socket: int = -1

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(self.address).network


def look(mode: Mode, level: str) -> Private:
    """What there is for a private network here. Raises HostError."""
    program = find_program(SLIRP)
    if mode is Mode.SETUID:
        if not takes_frames(program):
            raise HostError(
                f"--net private in mode setuid needs {SLIRP} 1.2.0 or later: the network namespace is root's",
                hint=f"install {SLIRP}, or use --mode userns or --net none",
            )
    else:
        program = program or find_program(PASTA) or (find_program(NFT) if mode is Mode.ROOT else b"")
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
    network = _free_network()
    address, gateway = f"{network[100]}/{network.prefixlen}", network[2]
    if os.path.basename(program) == NFT.encode():
        pair = _free_pair()
        address, gateway = f"{pair[2]}/{pair.prefixlen}", pair[1]
    # The host by whatever address, and the cloud's metadata; nobody in there has the right to change it.
    closed = (_LINK_LOCAL, *(f"{own}/32" for own in _own_addresses()))
    return Private(mode, program, address, str(gateway), str(network[3]), closed, _resolv_conf(level))


@functools.cache
def takes_frames(slirp: bytes) -> bool:
    """Whether this slirp4netns, if it is one, takes frames from a socket. Nothing else need not enter the namespace."""
    if not slirp:
        return False
    told = subprocess.run([slirp, "--help"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return b"--target-type" in told.stdout + told.stderr


def _resolv_conf(level: str) -> bytes:
    """The file that a resolver reads. Raises HostError where one would have to be made on the host."""
    path = RESOLV_CONF if level == "strict" else os.path.realpath(RESOLV_CONF)
    if level == "none" and not os.path.isfile(path):
        raise HostError("--net private: this host has no /etc/resolv.conf to cover", hint="make one, or use --net none")
    return path


def _own_addresses() -> "list[str]":
    """Of this host: all that it has, but the loopback device's."""
    import psutil

    devices = psutil.net_if_addrs().values()
    found = {one.address for device in devices for one in device if one.family == socket.AF_INET}
    return sorted(address for address in found if not address.startswith("127."))


def _free_pair() -> ipaddress.IPv4Network:
    """One that no route of the host leads into. Raises HostError."""
    taken = _routes()
    for _ in range(1000):
        pair = ipaddress.IPv4Network((int(_POOL[0]) + 4 * secrets.randbelow(_POOL.num_addresses // 4), 30))
        if _is_free(pair, taken):
            return pair
    raise HostError(f"--net private: no network of {_POOL} is free", hint="install slirp4netns or passt")


def _free_network() -> ipaddress.IPv4Network:
    """The first that is free; without one the first of all."""
    taken = _routes()
    networks = [ipaddress.IPv4Network(text) for text in _NETWORKS]
    return next((network for network in networks if _is_free(network, taken)), networks[0])


def _is_free(network: ipaddress.IPv4Network, taken: "list[ipaddress.IPv4Network]") -> bool:
    return not any(network.overlaps(other) for other in taken)


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


def start(private: Private, where: bytes) -> Private:
    """The same with a process that waits for the engine. It ends when the socket's last owner does.

    `where` is a directory of the user's own, in which it may make one that goes at once, or with the leftovers there.
    """
    ours, theirs = socket.socketpair()
    if (pid := os.fork()) == 0:
        try:
            # Nobody's child of ours: what it uses is not the job's, and it outlives a supervisor that is killed.
            if os.fork() == 0:
                from sandbox import gateway

                ours.close()
                gateway.main(theirs, private, where)
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
    address, *closed = (_word(ipaddress.IPv4Interface(one)) for one in (private.address, *private.closed))
    gateway, resolver = (int(ipaddress.IPv4Address(one)) for one in (private.gateway, private.resolver))
    builder.steps.append(Network(len(builder.sources) - 1, address, gateway, resolver, tuple(closed)))


def _word(interface: ipaddress.IPv4Interface) -> int:
    return int(interface) << 8 | interface.network.prefixlen


def resolve(builder: "Builder", private: Private) -> None:
    """What the command's resolver reads, once all that covers it is mounted."""
    place = Place(Base.ROOT, private.resolv_conf)
    text = Text(builder.slot(), 0o644, b"nameserver %s\n" % private.resolver.encode())
    attrs = Attr.READ_ONLY | Attr.NOSUID | Attr.NODEV | Attr.NOEXEC
    # A link may lead to a place that is private, and empty.
    builder.steps += [text, File(place, 0o644, b""), Attach(text.slot, place, attrs)]
