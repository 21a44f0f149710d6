"""`sandbox run` at every level beside every launcher that can be had, as whole processes, by hyperfine.

What the peers do differs: the command of each says what was asked of it.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.front import floor
from benchmarks.measure import Bench, Figure, seconds
from benchmarks.stage import Stage

_TRUE = "/bin/true"
_JOB = ["--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
_SPACES = ["--mount", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "--cgroup"]
# What crun takes for cgroup v2, in a mount namespace; with --cgroup-manager=disabled it makes no cgroup.
_UNIFIED = 'test -e /sys/fs/cgroup/cgroup.controllers || mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'


class Peer(NamedTuple):
    """`obstacle`: why it is not tried."""

    level: str
    name: str
    command: Sequence[str]
    obstacle: str = ""


def peers(stage: Stage) -> Iterator[Figure]:
    """Medians, as root and as an ordinary user; what cannot run here says why."""
    for bench in filter(None, (stage.root, stage.user)):
        who = "root" if bench is stage.root else "user"
        found = [peer._replace(obstacle=peer.obstacle or _obstacle(bench, peer)) for peer in _peers(stage, bench)]
        able = [peer.command for peer in found if not peer.obstacle]
        medians = iter(bench.compare(able, around=_around(bench)))
        for peer in found:
            what, shown = f"{peer.level}, {who}: {peer.name}", bench.shown(peer.command)
            if peer.obstacle:
                yield Figure("peers", what, None, f"not here: {peer.obstacle}", shown)
            else:
                yield seconds("peers", what, next(medians), command=shown)


def _peers(stage: Stage, bench: Bench) -> list[Peer]:
    is_root = bench is stage.root
    own = [] if is_root else ["--map-current-user"]
    bundle = _bundle(bench)
    crun = ["crun", "--root", f"{bundle}/crun", "--cgroup-manager=disabled", "run", "-b", str(bundle), "peer"]
    runc = ["runc", "--root", f"{bundle}/runc", "run", "-b", str(bundle), "peer"]
    nspawn = ["systemd-nspawn", "-q", "-D", f"{bundle}/rootfs", "--read-only", "--register=no", "--keep-unit"]
    nspawn += ["--private-network", _TRUE]
    run = [bench.sandbox, "run"]
    return [
        Peer("mounts", "the floor", [floor(stage), _TRUE]),
        Peer("mounts", "sandbox, level none", [*run, "--", _TRUE]),
        Peer("mounts", "bubblewrap", ["bwrap", "--dev-bind", "/", "/", _TRUE]),
        Peer("mounts", "unshare", ["unshare", *own, "--mount", _TRUE]),
        Peer("mounts", "firejail", ["firejail", "--quiet", "--noprofile", "--", _TRUE]),
        Peer("jobs", "sandbox, level job", [*run, "--isolation", "job", "--", _TRUE]),
        Peer("jobs", "sandbox, level strict", [*run, "--isolation", "strict", "--", _TRUE]),
        Peer("jobs", "bubblewrap", ["bwrap", *_JOB, _TRUE]),
        Peer("jobs", "unshare", ["unshare", *own, *_SPACES, _TRUE]),
        Peer("jobs", "firejail", ["firejail", "--quiet", "--noprofile", "--private-tmp", "--net=none", "--", _TRUE]),
        Peer("jobs", "crun", crun),
        Peer("jobs", "runc", runc, "as root it makes cgroups on the host" if is_root else ""),
        Peer("jobs", "systemd-nspawn", nspawn, "" if is_root else "it is root's"),
    ]


def _around(bench: Bench) -> list[str]:
    """Starts what follows as the identity, where cgroup v2 can be seen."""
    if os.geteuid() != 0:
        return []
    groups = ",".join(map(str, bench.who.groups)) or str(bench.who.gid)
    become = ["setpriv", "--reuid", str(bench.who.uid), "--regid", str(bench.who.gid), "--groups", groups]
    return ["unshare", "--mount", "sh", "-c", _UNIFIED, "sh", *become]


def _obstacle(bench: Bench, peer: Peer) -> str:
    """What it says when it is tried once; this also compiles and stores what is ours."""
    if not shutil.which(peer.command[0]):
        return "not installed"
    options: dict[str, Any] = {"env": bench.environment, "cwd": bench.directory, "stdin": subprocess.DEVNULL}
    with open(bench.directory / "said", "w+") as said:
        done = subprocess.run(
            [*_around(bench), *peer.command], stdout=subprocess.DEVNULL, stderr=said, check=False, **options
        )
        said.seek(0)
        lines = said.read().split("\n") if done.returncode else []
    return "" if not done.returncode else next(filter(None, lines), "it fails")


def _bundle(bench: Bench) -> Path:
    """A static program in a read-only root with /proc and namespaces: the least that an OCI runtime starts."""
    bundle = bench.directory / "bundle"
    for name in ("bin", "proc", "dev", "sys", "tmp", "run", "usr", "etc", "var", "root"):
        (bundle / "rootfs" / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", bundle / "rootfs/bin/true")
    (bundle / "rootfs/etc/os-release").touch()
    (bundle / "config.json").write_text(json.dumps(_config(bench)))
    for path in (bundle, *bundle.rglob("*")):
        os.chown(path, bench.who.uid, bench.who.gid)
    return bundle


def _config(bench: Bench) -> dict[str, Any]:
    """As the runtime specification has it (OCI, config.md)."""
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    maps: dict[str, Any] = {}
    if bench.who.uid != 0:
        kinds.append("user")
        ids = {"uidMappings": bench.who.uid, "gidMappings": bench.who.gid}
        maps = {name: [{"containerID": 0, "hostID": number, "size": 1}] for name, number in ids.items()}
    return {
        "ociVersion": "1.0.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": [_TRUE], "cwd": "/", "noNewPrivileges": True},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in kinds], **maps},
    }
