"""A mount namespace in which the system's own places are throw-away overlays: the helper is installed there for real,
at its real path, and the host never sees it, not even when the suite is killed.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox.engine import syscalls
from tests.support.users import Identity

_LIBC = ctypes.CDLL(None, use_errno=True)
_COVERED = ("/etc", "/usr/libexec", "/var/lib", "/run")
_SETUP = """
set -e
top=$1 last=$2; shift 2
mount -t tmpfs -o mode=755 sbx-tests "$top"
for place; do
    mkdir -p "$top$place/upper" "$top$place/work"
    mount -t overlay -o "lowerdir=$place,upperdir=$top$place/upper,workdir=$top$place/work" sbx-tests "$place"
done
[ ! -e /etc/login.defs ] || echo "SYS_UID_MAX $last" >>/etc/login.defs
# Images are to lie on a file system as a disk would be, not on an overlay.
[ -d /var/lib/sandbox ] || { mkdir /var/lib/sandbox; mount -t tmpfs -o mode=755 sbx-tests /var/lib/sandbox; }
echo ready
read -r _ || :
"""


class PrivateSystem:
    """`command(...)` is what runs something in there, as somebody."""

    def __init__(self, namespace: Path, top: Path) -> None:
        self.namespace = namespace
        self._top = top

    def inside(self, path: Path | str) -> Path:
        """The name by which this process, which is outside, has an absolute path of in there."""
        return self._top / str(path).lstrip("/")

    def enter(self) -> None:
        """Move this process, which must be root's and have one thread, in there."""
        with open(self.namespace, "rb") as namespace:
            if _LIBC.setns(namespace.fileno(), syscalls.CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the private mount namespace")

    def command(
        self, argv: Sequence[Any], *, who: Identity, groups: Sequence[int] = (), cwd: Path | None = None
    ) -> list[str]:
        """argv for root that enters, goes to `cwd` and becomes `who` with `groups` besides its own."""
        more = [str(gid) for gid in (*who.groups, *groups)]
        ids = [
            "--reuid",
            str(who.uid),
            "--regid",
            str(who.gid),
            *(["--groups", ",".join(more)] if more else ["--clear-groups"]),
        ]
        enter = ["nsenter", f"--mount={self.namespace}", "env", "-C", str(cwd or "/"), "setpriv", *ids]
        return [*enter, *map(os.fspath, argv)]

    def run(
        self,
        argv: Sequence[Any],
        *,
        who: Identity,
        groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, output captured as text."""
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        command = self.command(argv, who=who, groups=groups, cwd=cwd)
        given = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
        return subprocess.run(
            command, capture_output=True, check=False, env=env, timeout=120, **text, **given, **options
        )

    def root(self, *argv: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run as root."""
        return self.run(argv, who=Identity("root", 0, 0, (), Path("/root")), **options)


@contextmanager
def private_system(top: Path) -> Iterator[PrivateSystem]:
    """Needs root. `top` is a new directory that the namespace's own tmpfs covers."""
    top.mkdir(mode=0o755)
    # userdel(8) looks for processes by their number: accounts of each worker's systems (pytest-xdist) have others.
    last = 999 - 100 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8)
    unshare = ["unshare", "--mount", "--propagation", "private"]
    unshare += ["sh", "-c", _SETUP, "sh", str(top), str(last), *_COVERED]
    with subprocess.Popen(unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "cannot make a private mount namespace"
        # Held by a descriptor: no process has to stay, and it goes with this one.
        fd = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root = os.open(f"/proc/{process.pid}/root", os.O_PATH | os.O_CLOEXEC)
        process.stdin.close()
    ours = Path(f"/proc/{os.getpid()}/fd")
    try:
        yield PrivateSystem(ours / str(fd), ours / str(root))
    finally:
        os.close(root)
        os.close(fd)
        top.rmdir()
