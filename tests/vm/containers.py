"""The command in containers that podman makes; runs inside a machine (tests/vm/guest.py).

Each container says what works in it and, of what does not, which flag the one line must name.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.install import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
USER = "1234"
_RUN = ("run", "--rm", "--network", "none", "--cgroups", "disabled", "--log-driver", "none")
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
TREE = [Entry("f", b"hello\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")]
_REMOVE = "rm -f /dev/loop[0-9]*"
_OPEN = "seccomp=unconfined"


class Feature(NamedTuple):
    """Options and script of a run; it prints hello."""

    options: tuple[str, ...]
    script: str


_WRITE = 'cd "$SANDBOX_DYNAMIC/t" && rm -r sub && cat f'
FEATURES = {
    "scratch": Feature((), 'cd "$SANDBOX_TMPDIR" && echo hello >f && cat f'),
    "image": Feature(("-s", "t:{d}/tree.sfs"), 'cat "$SANDBOX_STATIC/t/f"'),
    "archive": Feature(("-d", "t:{d}/tree.zip"), _WRITE),
    "directory": Feature(("-d", "t:{d}/tree"), _WRITE),
    "job": Feature(("--isolation", "job", "--workspace", "ro"), "echo hello"),
    # Of the container's root, which is an overlay: no volume. On the 6.1 of this variant that takes no loop device.
    "copy for a job": Feature(
        ("--isolation", "job", "-d", "t:/etc/skel"), 'rm "$SANDBOX_DYNAMIC/t/.profile" && echo hello'
    ),
    "sandbox in it": Feature((), "exec {s} run --engine {e} -s t:{d}/tree -- sh -c 'cat \"$SANDBOX_STATIC/t/f\"'"),
}


ENGINES = ("python", "native")


class Container(NamedTuple):
    """`fails`: features that are refused, with words of the line. `before`: what a shell does before each engine."""

    why: str
    flags: tuple[str, ...] = ()
    fails: dict[str, str] = {}  # noqa: RUF012
    before: str = ""
    rootfs: str = "/:O"


def _jobs(words: str) -> dict[str, str]:
    return dict.fromkeys(("job", "copy for a job"), words)


_ADMIN = ("--cap-add", "SYS_ADMIN")
_LOOP = ("--device", "/dev/loop-control")
_NET = ("--cap-add", "NET_ADMIN")
_NODES = ("--cap-add", "MKNOD")
_UNMASK = ("--security-opt", "unmask=ALL")
_AS_USER = ("--user", USER, "--env", "HOME=/tmp")
_NO_LOOP = dict.fromkeys(("image", "archive"), "--device /dev/loop-control")
_NO_NODE = dict.fromkeys(("image", "archive"), "--cap-add MKNOD")
# Without cgroups nothing says which devices may be opened.
_ENABLED = (*_ADMIN, *_NET, *_LOOP, *_NODES, "--cgroups", "enabled")
_RULE = ("--device-cgroup-rule", "b 7:* rmw")
_NO_DEVICE = dict.fromkeys(("image", "archive"), "--device-cgroup-rule 'b 7:* rmw'")
# podman puts a profile on all but privileged containers where AppArmor runs.
_APPARMOR = "apparmor=unconfined"
CONTAINERS = {
    "apparmor": Container(
        "podman's default where AppArmor runs",
        fails={**dict.fromkeys(FEATURES, _APPARMOR), **_jobs("--cap-add SYS_ADMIN --cap-add NET_ADMIN")},
    ),
    "default": Container("podman's default without AppArmor", fails=_jobs("--cap-add SYS_ADMIN --cap-add NET_ADMIN")),
    "user": Container("podman's default, as a user", _AS_USER, _jobs("--security-opt unmask=ALL")),
    "unmasked": Container(
        "as a user, /proc unmasked", (*_AS_USER, *_UNMASK), _jobs("--security-opt seccomp=unconfined")
    ),
    "open": Container("as a user, /proc unmasked, no filter", (*_AS_USER, *_UNMASK, "--security-opt", _OPEN)),
    "filtered": Container(
        "a filter that refuses namespaces, as Docker's",
        (*_AS_USER, "--security-opt", "seccomp={seccomp}"),
        dict.fromkeys(FEATURES, f"--security-opt {_OPEN}"),
    ),
    "sys-admin": Container("--cap-add SYS_ADMIN", _ADMIN, {**_jobs("CAP_NET_ADMIN"), **_NO_LOOP}),
    "net-admin": Container("--cap-add SYS_ADMIN, NET_ADMIN", (*_ADMIN, *_NET), _NO_LOOP),
    "control": Container("loop-control without nodes", (*_ADMIN, *_NET, *_LOOP), _NO_NODE, _REMOVE),
    "nodes": Container("the same and --cap-add MKNOD", (*_ADMIN, *_NET, *_LOOP, *_NODES), before=_REMOVE),
    "devices": Container("the same and cgroups of its own", _ENABLED, _NO_DEVICE, _REMOVE),
    "rule": Container("the same and --device-cgroup-rule 'b 7:* rmw'", (*_ENABLED, *_RULE), before=_REMOVE),
    "privileged": Container("--privileged", ("--privileged",)),
    "bound": Container("--privileged, its root a bind mount", ("--privileged",), rootfs="{b}"),
}


@pytest.fixture(scope="module")
def inputs(session_area: Path) -> Path:
    where = session_area / "containers"
    where.mkdir(mode=0o755)
    archives.make_squashfs(where / "tree.sfs", TREE)
    archives.make_zip(where / "tree.zip", TREE)
    archives.make_tree(where / "tree", TREE)
    refused = {"names": ["unshare", "setns", "mount", "open_tree", "fsopen"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    (where / "seccomp.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
    return where


@pytest.fixture(scope="module")
def podman() -> Iterator[tuple[list[str], Path]]:
    """The command, and the machine's root bound to a place; the places are no part of what containers are made of."""
    where = Path(f"/run/sbx-podman-{os.getpid()}")
    bound = where / "root"
    where.mkdir(mode=0o700)
    # What an overlay writes into cannot be an overlay's itself.
    subprocess.run(["mount", "-t", "tmpfs", "podman", where], check=True)
    bound.mkdir()
    subprocess.run(["mount", "--bind", "/", bound], check=True)
    own = ["--root", f"{where}/storage", "--runroot", f"{where}/run"]
    yield ["podman", "--cgroup-manager", "cgroupfs", "--storage-driver", "vfs", *own, *_RUN], bound
    subprocess.run(["umount", bound, where], check=True)
    where.rmdir()


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(name, podman, inputs, installed, record_property):
    """All features by both engines in one container, one after the other: starting it costs more than they do."""
    container, (start, bound) = CONTAINERS[name], podman
    if name == "apparmor" and not _apparmor():
        pytest.skip("AppArmor does not run here")
    lines = []
    for engine in ENGINES:
        lines.append(container.before)
        for feature, (options, script) in FEATURES.items():
            command = shlex.join(["run", "--engine", engine, *options, "--", "sh", "-c", script.replace("{e}", engine)])
            lines.append(f"echo '== {engine} {feature}'; {{s}} {command} 2>&1; echo \"exit $?\"")
    text = "\n".join(lines).replace("{d}", str(inputs)).replace("{s}", str(installed))
    flags = [flag.replace("{seccomp}", f"{inputs}/seccomp.json") for flag in container.flags]
    places = [f"--volume={place}:{place}:ro" for place in (REPOSITORY, inputs)]
    rootfs = ["--workdir", "/tmp", "--rootfs", container.rootfs.replace("{b}", str(bound))]
    profile = [] if name == "apparmor" else ["--security-opt", _APPARMOR]
    command = [*start, *_LIMITS, *profile, *flags, *places, *rootfs, "sh", "-c", text]
    env = {"PATH": os.environ["PATH"], "HOME": "/root"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, wrong = [], {}
    for part in done.stdout.split("== ")[1:]:
        case, *printed = part.splitlines()
        tried.append(case)
        record_property(case, "works" if printed == ["hello", "exit 0"] else printed[0])
        if not _as_said(printed, container.fails.get(case.partition(" ")[2])):
            wrong[case] = printed
    assert not wrong
    assert tried == [f"{engine} {feature}" for engine, feature in itertools.product(ENGINES, FEATURES)]


def _apparmor() -> bool:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    return enabled.exists() and enabled.read_text().strip() == "Y"


def _as_said(printed: list[str], words: str | None) -> bool:
    if words is None:
        return printed == ["hello", "exit 0"]
    return len(printed) == 2 and words in printed[0] and printed[1] == "exit 125"
