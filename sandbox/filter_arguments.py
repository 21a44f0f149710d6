"""The calls of the default filter that are answered by the low 32 bits of an argument: sockets, ioctls, limits.

By hand: a rule of libseccomp's compares 64 bits, or looks for one value in one answer, and what a launch pays for a
filter is its length. The kernel takes the low half of an int, whatever is above it (CVE-2019-10063).

Sockets are of the families, types and protocols that programs use: for others the kernel runs modprobe on the host, as
root, and a module outlives the job (inet_create, net/ipv4/af_inet.c; netlink_create, net/netlink/af_netlink.c). The
answers are those of a kernel without them, for which programs are prepared: with EPROTONOSUPPORT for NETLINK_AUDIT
libaudit's users, like useradd, go on, and with ENOSYS they give up.
"""

import errno
import resource
from collections.abc import Mapping, Sequence

from sandbox import bpf

# linux/filter.h
_AND = 0x54
# In struct seccomp_data (seccomp(2)): the low halves of the arguments, and from there to the high ones.
_ARGUMENTS, _HIGH = (16, 24, 32), 4
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
# SOCK_STREAM, SOCK_DGRAM, SOCK_RAW are 1 to 3. Type 6 with protocol 0 is DCCP, and 10 makes AF_PACKET of AF_INET. Above
# the mask are SOCK_NONBLOCK and SOCK_CLOEXEC: SOCK_TYPE_MASK, linux/net.h.
_TYPE_MASK, _LAST_TYPE = 0xF, 3
# The default of the type, ICMP, TCP, UDP, ICMPv6, UDP-Lite, raw, MPTCP: never modules.
_INTERNET = (0, 1, 6, 17, 58, 136, 255, 262)
# Routes and addresses, as getaddrinfo(3) asks for, and udev's events, without which libusb does not start. Not
# NETLINK_SOCK_DIAG and NETLINK_GENERIC, which load modules by what they are asked, without any capability.
_NETLINK = (0, 15)
# TIOCSTI, TIOCLINUX, and TIOCSETD: for another line discipline the kernel loads a module. So it does, before it looks
# at any capability, for bridges (SIOCGIFBR, SIOCSIFBR, SIOCBR*) and VLANs (SIOCGIFVLAN, SIOCSIFVLAN): net/socket.c.
_IOCTLS = (0x5412, 0x541C, 0x5423, 0x8940, 0x8941, 0x8982, 0x8983, 0x89A0, 0x89A1, 0x89A2, 0x89A3)
CALLS = ("ioctl", "socket", "socketpair", "setrlimit", "prlimit64")


def instructions(architecture: int, numbers: Mapping[str, int]) -> tuple[int, ...]:
    """What refuses such calls, and allows all else. `numbers` are those of the calls to look at; others are allowed."""
    program = _Backwards()
    allow = program.put(bpf.RET_K, bpf.RET_ALLOW)
    starts = _limits(program, allow) | _sockets(program, allow) | _ioctls(program, allow)
    if not numbers:
        return ()
    for place, (name, number) in enumerate(numbers.items()):
        program.put(bpf.JEQ, number, starts[name], None if place else allow)
    program.put(bpf.LOAD, bpf.NUMBER)
    program.put(bpf.JEQ, architecture, None, allow)
    program.put(bpf.LOAD, bpf.ARCHITECTURE)
    return tuple(reversed(program.made))


class _Backwards:
    """A program from its last instruction to its first: what is jumped to, which is always behind, is there already.

    An instruction is known by how many there are behind it.
    """

    def __init__(self) -> None:
        self.made: list[int] = []

    def put(self, code: int, k: int, yes: int | None = None, no: int | None = None) -> int:
        """Where no jump is told, the next instruction follows."""
        here = len(self.made)
        jt, jf = (0 if target is None else here - target - 1 for target in (yes, no))
        self.made.append(bpf.packed(code, jt, jf, k))
        return here

    def one_of(self, values: Sequence[int], yes: int, no: int) -> None:
        """Where to go with what is loaded."""
        for value in reversed(values):
            self.put(bpf.JEQ, value, yes, no if value == values[-1] else None)

    def answer(self, number: int) -> int:
        return self.put(bpf.RET_K, bpf.RET_ERRNO | number)


def _sockets(program: _Backwards, allow: int) -> dict[str, int]:
    no_protocol = program.answer(errno.EPROTONOSUPPORT)
    no_family = program.answer(errno.EAFNOSUPPORT)
    family, kind, protocol = _ARGUMENTS
    program.one_of(_INTERNET, allow, no_protocol)
    program.put(bpf.LOAD, protocol)
    program.put(bpf.JGT, _LAST_TYPE, no_protocol)
    program.put(bpf.JEQ, 0, no_protocol)
    program.put(_AND, _TYPE_MASK)
    internet = program.put(bpf.LOAD, kind)
    program.one_of(_NETLINK, allow, no_protocol)
    netlink = program.put(bpf.LOAD, protocol)
    program.one_of((_AF_INET, _AF_INET6), internet, no_family)
    program.put(bpf.JEQ, _AF_NETLINK, netlink)
    program.put(bpf.JEQ, _AF_UNIX, allow)
    start = program.put(bpf.LOAD, family)
    return {"socket": start, "socketpair": start}


def _ioctls(program: _Backwards, allow: int) -> dict[str, int]:
    denied = program.answer(errno.EPERM)
    program.one_of(_IOCTLS, denied, allow)
    return {"ioctl": program.put(bpf.LOAD, _ARGUMENTS[1])}


def _limits(program: _Backwards, allow: int) -> dict[str, int]:
    """A job sets its limit of cores without effect, and without an error: programs that have secrets end where they
    cannot do without cores. One goes to a program of the host's where core_pattern names one, whatever the limit is
    but for 1: core(5).
    """
    done = program.answer(0)
    program.put(bpf.JEQ, resource.RLIMIT_CORE, done, allow)
    setrlimit = program.put(bpf.LOAD, _ARGUMENTS[0])
    # Who only asks gives no new limit: a null pointer.
    program.put(bpf.JEQ, 0, allow, done)
    program.put(bpf.LOAD, _ARGUMENTS[2])
    program.put(bpf.JEQ, 0, None, done)
    program.put(bpf.LOAD, _ARGUMENTS[2] + _HIGH)
    program.put(bpf.JEQ, resource.RLIMIT_CORE, None, allow)
    return {"setrlimit": setrlimit, "prlimit64": program.put(bpf.LOAD, _ARGUMENTS[1])}
