"""A private network without a helper program, for root: a veth pair, and NAT by one nftables table of our own.

The table is owned by the `nft` that made it (Linux 5.12): the kernel removes it with that process, which ends with
ours. One end of the pair is in the run's namespace, so the kernel removes both with that. So nothing is left to be
cleaned up, also after a kill. What is not ours is not changed.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import subprocess
from typing import Any

from sandbox.errors import HostError
from sandbox.host import find_program
from sandbox.network import NFT

# Small networks for pairs are taken from here.
_POOL = "10.213.0.0/16"
_RULES = """\
table inet {name} {{
  flags owner;
  chain nat {{ type nat hook postrouting priority srcnat; ip saddr {network} oifname != "{device}" masquerade; }};
  chain to_host {{ type filter hook input priority filter - 5; iifname "{device}" drop; }};
  chain through {{ type filter hook forward priority filter - 5;
    iifname "{device}" meta nfproto ipv6 drop;
    iifname "{device}" ip daddr 169.254.0.0/16 drop;
    oifname "{device}" ct state established,related accept;
    oifname "{device}" drop; }};
}}
"""


def make(host: Any, namespace: int, stack: contextlib.ExitStack) -> tuple[str, str]:
    """The pair and its rules; the address of the run's end, with its length, and the gateway. Raises HostError."""
    from sandbox.gateway import DEVICE

    with open("/proc/sys/net/ipv4/ip_forward") as file:
        if file.read().strip() != "1":
            raise HostError(
                "--net private: this host forwards no packets, and sandbox does not change that",
                hint="install slirp4netns or passt, or sysctl net.ipv4.ip_forward=1",
            )
    device = f"sbx{secrets.token_hex(4)}"
    network = _free_network(host)
    _own_table(_RULES.format(name=device, device=device, network=network), device, stack)
    host.link("add", ifname=device, kind="veth", peer={"ifname": DEVICE, "net_ns_fd": namespace})
    stack.callback(_remove, device)
    index = host.link_lookup(ifname=device)[0]
    host.addr("add", index=index, address=str(network[1]), prefixlen=network.prefixlen)
    host.link("set", index=index, state="up")
    return f"{network[2]}/{network.prefixlen}", str(network[1])


def _remove(device: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as host, contextlib.suppress(Exception):
        host.link("del", ifname=device)


def _free_network(host: Any) -> ipaddress.IPv4Network:
    """One that no route of the host leads into."""
    routes = [(route.get_attr("RTA_DST"), route["dst_len"]) for route in host.get_routes(family=socket.AF_INET)]
    taken = [ipaddress.IPv4Network(f"{to}/{length}", strict=False) for to, length in routes if to is not None]
    pool = ipaddress.IPv4Network(_POOL)
    for _ in range(1000):
        network = ipaddress.IPv4Network((int(pool[0]) + 4 * secrets.randbelow(pool.num_addresses // 4), 30))
        if not any(network.overlaps(other) for other in taken):
            return network
    raise HostError(f"--net private: no network of {_POOL} is free", hint="install slirp4netns or passt")


def _own_table(rules: str, name: str, stack: contextlib.ExitStack) -> None:
    """Only an interactive nft stays, and with it what it owns."""
    program = os.fsdecode(find_program(NFT))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = stack.enter_context(subprocess.Popen([program, "-i"], text=True, **pipes))  # type: ignore[call-overload]
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdin.close)
    # A line is a command.
    process.stdin.write(" ".join(rules.split("\n")) + f"\nlist table inet {name}\n")
    process.stdin.flush()
    for line in process.stdout:
        if "rror" in line:
            raise HostError(f"--net private: nft refuses: {line.strip()}", hint="install slirp4netns or passt")
        if line.startswith(f"table inet {name}"):
            return
    raise HostError("--net private: nft has died", hint="install slirp4netns or passt")
