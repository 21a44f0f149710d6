"""A private network without a helper program, for root: a veth pair, and NAT by one nftables table of our own.

The table is owned by the `nft` that made it (Linux 5.12): the kernel removes it with that process, which ends with
ours. One end of the pair is in the run's namespace, so the kernel removes both with that. So nothing is left to be
cleaned up, also after a kill. What is not ours is not changed.
"""

import contextlib
import os
import secrets
import subprocess
from typing import Any

from sandbox.errors import HostError
from sandbox.host import find_program
from sandbox.network import NFT, Private

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


def make(host: Any, namespace: int, private: Private, stack: contextlib.ExitStack) -> None:
    """The pair and its rules. Raises HostError."""
    from sandbox.gateway import DEVICE

    with open("/proc/sys/net/ipv4/ip_forward") as file:
        if file.read().strip() != "1":
            raise HostError(
                "--net private: this host forwards no packets, and sandbox does not change that",
                hint="install slirp4netns or passt, or sysctl net.ipv4.ip_forward=1",
            )
    device = f"sbx{secrets.token_hex(4)}"
    network = private.network
    _own_table(_RULES.format(name=device, device=device, network=network), device, stack)
    host.link("add", ifname=device, kind="veth", peer={"ifname": DEVICE, "net_ns_fd": namespace})
    stack.callback(_remove, device)
    index = host.link_lookup(ifname=device)[0]
    host.addr("add", index=index, address=private.gateway, prefixlen=network.prefixlen)
    host.link("set", index=index, state="up")


def _remove(device: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as host, contextlib.suppress(Exception):
        host.link("del", ifname=device)


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
