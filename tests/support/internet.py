"""A host of its own for network tests, with an internet behind it. Nothing of the machine's own network is touched.

    python -m tests.support.internet [--forward] [/program/to/hide ...] -- COMMAND ...

runs COMMAND in a network and mount namespace: a "host" with the address 192.0.2.1 and one interface, on which at
192.0.2.2 there is a "world": what is sent to TCP or UDP port 7777 comes back, and 169.254.169.254 is the same place.
The host itself serves the same on all its addresses, at port 7001 (TCP and UDP), and names on 127.0.0.53, its only name
server: every name is 192.0.2.2.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import prctl
from pyroute2 import IPRoute

from sandbox.engine import syscalls
from sandbox.host import find_program
from tests.support.setuid import SetuidSystem
from tests.support.users import Identity

HOST, WORLD, METADATA, STUB = "192.0.2.1", "192.0.2.2", "169.254.169.254", "127.0.0.53"
WORLD_PORT, HOST_PORT = 7777, 7001
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TOP = Path(__file__).resolve().parents[2]


def _serve_tcp(server: socket.socket) -> None:
    while True:
        client, address = server.accept()
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            client.sendall(client.recv(4096) + b" from " + address[0].encode())


def _serve_udp(server: socket.socket) -> None:
    while True:
        data, address = server.recvfrom(4096)
        with contextlib.suppress(OSError):
            server.sendto(data + b" from " + address[0].encode(), address)


def _answer(query: bytes) -> bytes:
    """The address WORLD for whatever is asked (RFC 1035, section 4)."""
    end = query.index(b"\0", 12) + 5
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(WORLD)
    known = query[end - 4 : end - 2] == b"\0\x01"
    return query[:2] + b"\x81\x80\0\x01\0" + bytes([known]) + b"\0\0\0\0" + query[12:end] + (record if known else b"")


def _serve_names(server: socket.socket) -> None:
    while True:
        data, address = server.recvfrom(4096)
        server.sendto(_answer(data), address)


def _serve_names_tcp(server: socket.socket) -> None:
    while True:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            answer = _answer(client.recv(4096)[2:])
            client.sendall(len(answer).to_bytes(2, "big") + answer)


def start(kind: int, address: str, port: int, serve) -> None:
    server = socket.socket(socket.AF_INET, kind)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    threading.Thread(target=serve, args=(server,), daemon=True).start()


def _set_up(name: str, addresses: list[str], gateway: str) -> None:
    with IPRoute() as ip:
        for device in ("lo", name):
            ip.link("set", index=ip.link_lookup(ifname=device)[0], state="up")
        index = ip.link_lookup(ifname=name)[0]
        for address in addresses:
            ip.addr("add", index=index, address=address, prefixlen=24)
        ip.route("add", dst="0.0.0.0/0", gateway=gateway)


def _be_world(ready: int, go: int) -> None:
    prctl.set_pdeathsig(9)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    os.write(ready, b"x")
    os.read(go, 1)
    _set_up("world0", [WORLD, METADATA], HOST)
    start(socket.SOCK_STREAM, "0.0.0.0", WORLD_PORT, _serve_tcp)
    start(socket.SOCK_DGRAM, "0.0.0.0", WORLD_PORT, _serve_udp)
    os.write(ready, b"x")
    threading.Event().wait()


def make(*, forward: bool, hidden: list[str]) -> int:
    """In this process's new namespaces; the pid of the world."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_PRIVATE)
    ready, tell = os.pipe()
    wait, go = os.pipe()
    if (world := os.fork()) == 0:
        try:
            _be_world(tell, wait)
        finally:
            os._exit(1)
    os.read(ready, 1)
    with IPRoute() as ip:
        ip.link("add", ifname="wan0", kind="veth", peer={"ifname": "world0", "net_ns_pid": world})
    _set_up("wan0", [HOST], WORLD)
    os.write(go, b"x")
    os.read(ready, 1)
    start(socket.SOCK_STREAM, "0.0.0.0", HOST_PORT, _serve_tcp)
    start(socket.SOCK_DGRAM, "0.0.0.0", HOST_PORT, _serve_udp)
    start(socket.SOCK_DGRAM, STUB, 53, _serve_names)
    start(socket.SOCK_STREAM, STUB, 53, _serve_names_tcp)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write(str(int(forward)))
    # A place of this mount namespace's own.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
    with open("/mnt/resolv.conf", "w") as file:
        file.write(f"nameserver {STUB}\n")
    subprocess.run(["mount", "--bind", "/mnt/resolv.conf", "/etc/resolv.conf"], check=True)
    # As distributions have it; here it may be root's alone.
    subprocess.run(["mknod", "-m", "666", "/mnt/tun", "c", "10", "200"], check=True)
    subprocess.run(["mount", "--bind", "/mnt/tun", "/dev/net/tun"], check=True)
    for program in hidden:
        subprocess.run(["mount", "--bind", "/dev/null", program], check=True)
    return world


def left() -> dict[str, list[str]]:
    """What is there of a run, once nothing more goes away."""
    found: dict[str, list[str]] = {}
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with IPRoute() as ip:
            devices = sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links())
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, env={"PATH": _PATH})
        names = ("sandbox-gateway", "slirp4netns", "pasta", "pasta.avx2", "passt.avx2", "nft")
        found = {"devices": devices, "tables": listed.stdout.splitlines(), "processes": sorted(_here(names))}
        if found == {"devices": ["lo", "wan0"], "tables": [], "processes": []}:
            break
        time.sleep(0.05)
    return found


def _here(names: tuple[str, ...]) -> dict[str, int]:
    """Those of these that run on this host, by name."""
    found, own = {}, os.readlink("/proc/self/ns/net")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            lines = Path(f"/proc/{entry}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines)
            is_live = not status["State"].startswith(("Z", "X"))
            if status["Name"] in names and is_live and os.readlink(f"/proc/{entry}/ns/net") == own:
                found[status["Name"]] = int(entry)
    return found


def _kill_launcher(process: "subprocess.Popen[bytes]") -> None:
    """Once its network is up, with what is behind it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if "sleep" in map(_name, _below(children)):
            break
        time.sleep(0.05)
    gateways = _here(("sandbox-gateway",))
    process.kill()
    for pid in gateways.values():
        os.kill(pid, signal.SIGKILL)


def _name(pid: str) -> str:
    """Of a process that may be gone meanwhile."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _below(pids: list[str]) -> list[str]:
    found = list(pids)
    for pid in found:
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return found


def main(argv: list[str]) -> int:
    split = argv.index("--")
    options, command = argv[:split], argv[split + 1 :]
    world = make(forward="--forward" in options, hidden=[word for word in options if word.startswith("/")])
    prctl.set_child_subreaper(1)
    with subprocess.Popen(command) as process:
        try:
            if "--kill" in options:
                _kill_launcher(process)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if "--tell" in options:
        print(json.dumps(left()), flush=True)
    os.kill(world, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return code if code >= 0 else 128 - code


def obstacle(program: str = "slirp4netns") -> str:
    """Why no private network can be tried here by way of that program; empty where it can."""
    if os.geteuid() != 0:
        return "the suite was not started as root"
    if not os.path.exists("/dev/net/tun"):
        return "this kernel has no tun module loaded: there is no /dev/net/tun"
    return "" if find_program(program) else f"{program} is not installed, and this system has no package of it"


class Internet(NamedTuple):
    """What a Runner takes for `system`: everything starts on such a host, with `helper` where that is installed."""

    options: tuple[str, ...]
    helper: SetuidSystem | None = None
    enters: bool = True

    def command(self, argv: Sequence[Any], *, who: Identity, cwd: Path) -> list[Any]:
        private = None if self.helper is None else self.helper.private
        enter = [] if private is None else ["nsenter", f"--mount={private.namespace}"]
        more = [] if self.helper is None else [self.helper.gid]
        groups = ",".join(map(str, (*who.groups, *more)))
        become = ["env", "-C", str(cwd), "setpriv", "--reuid", str(who.uid), "--regid", str(who.gid)]
        become += ["--groups", groups] if groups else ["--clear-groups"]
        start = ["env", "-C", str(_TOP), sys.executable, "-m", "tests.support.internet"]
        return [*enter, *start, *self.options, "--", *become, *argv]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
