"""A Debian root that is entered as a machine is booted: its own mounts, processes and root directory, and of the host
nothing but the kernel's file systems. Packages are installed there for real.
"""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox import seccomp
from sandbox.engine import syscalls
from tests.support.changes import debian_root

# A chroot cannot make user namespaces (user_namespaces(7)): the root is pivoted to. The devices and /sys are the
# host's, for loop devices and /dev/fuse.
_BOOT = """
set -e
cd "$1"
mount --bind . .
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs -o mode=755 run run
pivot_root . mnt
umount -l mnt
echo ready
read -r _ || :
"""
_CLONE3, _UNSHARE, _CLONE = "clone3", "unshare", "clone"


def forbid_user_namespaces() -> None:
    """What user.max_user_namespaces=0 does on a host, for this process and all that it starts; setuid programs work on.

    Needs root: a filter without no_new_privs (seccomp(2)).
    """
    library = seccomp.bindings()
    rules = library.SyscallFilter(library.ALLOW)
    rules.set_attr(library.Attr.CTL_NNP, 0)
    new_user = library.Arg(0, library.MASKED_EQ, syscalls.CLONE_NEWUSER, syscalls.CLONE_NEWUSER)
    for name in (_UNSHARE, _CLONE):
        rules.add_rule(library.ERRNO(errno.ENOSPC), name, new_user)
    # Its flags lie in memory, where no filter sees them.
    rules.add_rule(library.ERRNO(errno.ENOSYS), _CLONE3)
    rules.load()


class DebianRoot:
    """`run` and `start` are what does something in there."""

    def __init__(self, directory: Path, init: int) -> None:
        self.directory, self._init = directory, init

    def start(self, script: str, *, user: str = "root", userns: bool = True, **options: Any) -> "subprocess.Popen[str]":
        """A shell's script as this user, who is logged in as far as groups go; `userns`: may make user namespaces."""
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--root", "--wdns=/"]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        home = "/root" if user == "root" else f"/home/{user}"
        clean = ["env", "-i", f"PATH={path}", f"HOME={home}", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        command = [*enter, *clean, *become, "sh", "-ec", f"cd {home}; {script}"]
        filtered = {} if userns else {"preexec_fn": forbid_user_namespaces}
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, text=True, **filtered, **given)

    def run(self, script: str, *, code: int = 0, **options: Any) -> str:
        """What it wrote, errors included where it is to end with another `code` than 0."""
        process = self.start(script, **options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"{script}: exit code {process.returncode}\n{out}\n{err}"
        return out + err if code else out

    def put(self, *files: Path) -> None:
        """Files into its /srv."""
        for file in files:
            shutil.copy(file, self.directory / "srv" / file.name)


@contextlib.contextmanager
def entered(directory: Path, *packages: str) -> Iterator[DebianRoot]:
    """A Debian root with these packages in the new `directory`, which is gone afterwards. Needs root and mmdebstrap."""
    directory.mkdir(mode=0o755)
    tar = ["tar", "-xpf", debian_root(*packages), "--exclude=./dev/*", "-C", directory]
    subprocess.run(tar, check=True)
    boot = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c", _BOOT]
    try:
        with subprocess.Popen([*boot, "sh", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "cannot enter the Debian root"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            try:
                yield DebianRoot(directory, int(children[0]))
            finally:
                # Its init: with it everything in there ends.
                process.stdin.close()
                process.wait()
    finally:
        assert not os.path.ismount(directory)
        shutil.rmtree(directory)
