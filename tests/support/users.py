"""An unprivileged account for one test session."""

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ABANDONED_AFTER_S = 3600.0


class Identity(NamedTuple):
    """Who a command runs as. `groups` are the supplementary ones."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path

    @property
    def as_user(self) -> bool:
        """True for an ordinary user, False for root."""
        return self.uid != 0

    def popen_options(self) -> dict[str, object]:
        """Keyword arguments that make subprocess start a process as this identity."""
        if os.geteuid() != 0 or self.uid == 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}


def current() -> Identity:
    entry = pwd.getpwuid(os.geteuid())
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(os.getgroups()), Path(entry.pw_dir))


def no_subordinates(who: Identity) -> str:
    """Why this user has no subordinate ids; empty where he has, as useradd gives them to new users of most systems."""
    for name in ("newuidmap", "newgidmap"):
        if shutil.which(name) is None:
            return f"there is no {name} (make setup installs it)"
    for file in ("/etc/subuid", "/etc/subgid"):
        lines = Path(file).read_text().splitlines() if os.path.exists(file) else []
        if not any(line.split(":")[0] in (who.name, str(who.uid)) for line in lines):
            return f"{file} has no line for {who.name}"
    return ""


def _account_tool(*command: str) -> str:
    """useradd and its kin fail when another session holds the lock on /etc/passwd: try again for a while."""
    for attempt in range(20):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if "lock" not in done.stderr:
            break
        time.sleep(0.1 * (attempt + 1))
    raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def unprivileged(home: Path) -> Iterator[Identity]:
    """A new account with two supplementary groups. Needs root. It goes with its processes and its home's content."""
    name = f"sbx-test-{secrets.token_hex(2)}"
    groups = [f"{name}-{suffix}" for suffix in "ab"]
    with contextlib.ExitStack() as undo:
        for group in groups:
            _account_tool("groupadd", group)
            undo.callback(_account_tool, "groupdel", group)
        _account_tool("useradd", "-M", "-d", str(home), "-s", "/bin/sh", "-U", "-G", ",".join(groups), name)
        undo.callback(_account_tool, "userdel", name)
        entry = pwd.getpwnam(name)
        undo.callback(end_processes, entry.pw_uid)
        home.mkdir(mode=0o755)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        supplementary = tuple(g for g in os.getgrouplist(name, entry.pw_gid) if g != entry.pw_gid)
        yield Identity(name, entry.pw_uid, entry.pw_gid, supplementary, home)


def lock_directory(path: Path, *, wait: bool = False) -> int:
    """A descriptor that holds the directory's lock as long as it is open. Held already: OSError, unless told to `wait`,
    as its maker is, since another session may just be looking at it (`remove_abandoned`).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(fd)
        raise
    return fd


def remove_abandoned(pattern: str) -> None:
    """Accounts and directories below /var/tmp of sessions that were killed: a live one holds its directory's lock."""
    for area in Path("/var/tmp").glob(pattern):
        with contextlib.suppress(OSError):
            fd = lock_directory(area)
            status = os.fstat(fd)
            # A young one may not have taken its lock yet.
            if status.st_uid == 0 and time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                _remove_session(area)
            os.close(fd)


def _remove_session(area: Path) -> None:
    for entry in [entry for entry in pwd.getpwall() if entry.pw_dir == str(area / "home")]:
        end_processes(entry.pw_uid)
        _account_tool("userdel", entry.pw_name)
        for suffix in "ab":
            _account_tool("groupdel", f"{entry.pw_name}-{suffix}")
    shutil.rmtree(area)


def processes_of(uid: int) -> dict[int, str]:
    """pid and command line of every live process of `uid` (zombies, and what is being reaped, are not live)."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # Not st_uid of the directory: a process that is not dumpable shows as root's there (proc(5)).
            fields = dict(line.split(":", 1) for line in Path(entry.path, "status").read_text().splitlines())
            if int(fields["Uid"].split()[0]) == uid and not fields["State"].strip().startswith(("Z", "X")):
                command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = command.strip() or fields["Name"].strip()
    return found


def end_processes(uid: int) -> None:
    """Kill what the test account still runs, until nothing is left."""
    for _ in range(50):
        pids = processes_of(uid)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
