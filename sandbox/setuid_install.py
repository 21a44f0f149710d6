"""`sandbox setuid install` and `remove`: put the helper, its group, builder and policy in place, and take them away."""

import contextlib
import grp
import os
import pwd
import subprocess
import time
from collections.abc import Callable

from sandbox import apparmor, fsops, journal, policy, setuid_proof
from sandbox.doctor import packaged_program
from sandbox.errors import HostError, SandboxError, reason
from sandbox.host import find_program, probe
from sandbox.journal import Entry, Journal, Say
from sandbox.setuid import GROUP, HELPER, MODE, RUNTIME, parse_version

_TMPFILES = "/etc/tmpfiles.d/sandbox.conf"
_LOCKED_ATTEMPTS = 20


def install(*, say: Say) -> None:
    """Put everything in place, then prove it. Raises SandboxError; what was done by then is recorded.

    The helper comes last: before it is there, nothing of the rest gives anybody anything.
    """
    _require_root()
    probe()  # A kernel below the baseline is told before anything is put in place.
    program = _read_helper()
    with journal.open_journal(policy.STORE, make=True) as log:
        assert log is not None
        gid = _group(log, GROUP, say=say)
        builder_gid = _group(log, policy.BUILDER, say=say)
        builder_uid = _builder(log, builder_gid, say=say)
        _policy(log, policy.template(groups=[gid], uid=builder_uid, gid=builder_gid), say=say)
        _runtime(log)
        _profile(log, say=say)
        if log.file(HELPER, program, mode=MODE, gid=gid):
            say(f"installed {HELPER} (root:{GROUP}, {MODE:04o})")
        try:
            setuid_proof.prove(log, gid, images=policy.images(), say=say)
        except SandboxError as error:
            _take_the_bit()
            hint = "it is left there without the setuid bit; sandbox setuid remove takes everything away"
            raise HostError(f"the helper could not run a sandbox as an ordinary user: {error}", hint=hint) from None
    say(f"users of the group {GROUP} have setuid mode now: usermod -aG {GROUP} USER")


def remove(*, say: Say) -> None:
    """Undo what `install` recorded, the last thing first. Raises HostError when some of it could not be undone."""
    _require_root()
    with journal.open_journal(policy.STORE, make=False) as log:
        if log is None:
            say("nothing to remove: there is no record of an installation")
            return
        _empty_store(say=say)
        failed = []
        for entry in reversed(log.entries[:]):
            if entry["what"] == "directory" and entry["path"] == policy.STORE:
                continue
            try:
                _UNDO[entry["what"]](log, entry, say)
                log.forget(entry)
            except (OSError, SandboxError, KeyError) as error:
                failed.append(reason(error) if isinstance(error, OSError) else str(error))
        if failed:
            raise HostError(f"not everything could be removed: {'; '.join(failed)}", hint="sandbox setuid remove again")
        store = log.find("directory", path=policy.STORE)
        fsops.delete_file(log.fd, journal.RECORD)
        if store:
            log.undo_directory(store, say=say)


def _empty_store(*, say: Say) -> None:
    """Users' images, wherever the policy has them: what the helper makes is not recorded."""
    try:
        fd = journal.open_system_dir(policy.store())
    except HostError:
        return
    with fsops.closing(fd):
        found = [name for name in fsops.names(fd) if name.isdigit()]
        for name in found:
            fsops.remove_tree(fd, name)
    if found:
        say(f"removed the images of {len(found)} user{'s' * (len(found) > 1)} from {policy.store()}")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise HostError("sandbox setuid install and remove are root's", hint="sudo sandbox setuid ...")


def _read_helper() -> bytes:
    path = packaged_program("sandbox-helper")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostError(
            f"there is no helper to install, {path}: {reason(error)}",
            hint="install the package sandbox-setuid, or sandbox again with cargo (Rust 1.88 or later) on PATH",
        ) from None
    done = subprocess.run([path, "version"], capture_output=True, env={}, check=False)
    if parse_version(done.stdout) is None:
        raise HostError(f"{path} does not say which version it is")
    return data


# -- accounts -------------------------------------------------------------------------------------------------


def _group(log: Journal, name: str, *, say: Say) -> int:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    entry = log.note("group", name=name)
    _account_tool("groupadd", "--system", name)
    entry["id"] = grp.getgrnam(name).gr_gid
    log.save()
    say(f"made the group {name} ({entry['id']})")
    return int(entry["id"])


def _builder(log: Journal, gid: int, *, say: Say) -> int:
    """The uid of the user that rebuilds images and does nothing else."""
    try:
        uid = pwd.getpwnam(policy.BUILDER).pw_uid
    except KeyError:
        entry = log.note("user", name=policy.BUILDER)
        home = ("--no-create-home", "--home-dir", "/nonexistent")
        shell = os.fsdecode(find_program("nologin") or b"/bin/false")
        _account_tool("useradd", "--system", "--gid", str(gid), *home, "--shell", shell, policy.BUILDER)
        entry["id"] = uid = pwd.getpwnam(policy.BUILDER).pw_uid
        log.save()
        say(f"made the user {policy.BUILDER} ({uid})")
    if uid == 0:
        raise HostError(f"the user {policy.BUILDER} is root", hint=f"give {policy.BUILDER} an id of its own")
    return uid


def _account_tool(name: str, *arguments: str) -> None:
    program = find_program(name)
    if not program:
        raise HostError(f"there is no {name} to change accounts with", hint="install the package passwd (shadow-utils)")
    for attempt in range(_LOCKED_ATTEMPTS):
        done = subprocess.run([os.fsdecode(program), *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        # Somebody else is changing /etc/passwd just now.
        if "lock" not in done.stderr:
            break
        time.sleep(0.1 * (attempt + 1))
    raise HostError(f"{name} {' '.join(arguments)}: {' '.join(done.stderr.split())}")


def _undo_account(kind: str, tool: str, number: Callable[[str], int]) -> Callable[[Journal, Entry, Say], None]:
    def undo(_log: Journal, entry: Entry, say: Say) -> None:
        name = entry["name"]
        try:
            present = number(name)
        except KeyError:
            return
        if entry.get("id", present) != present:
            say(f"kept the {kind} {name}: it is another one now")
            return
        _account_tool(tool, name)
        say(f"removed the {kind} {name}")

    return undo


# -- files ----------------------------------------------------------------------------------------------------


def _policy(log: Journal, text: str, *, say: Say) -> None:
    """The default policy, where there is none: the administrator's own is never touched."""
    if os.path.lexists(policy.PATH):
        return
    log.file(policy.PATH, text.encode(), mode=0o644)
    say(f"wrote the default policy {policy.PATH}")


def _runtime(log: Journal) -> None:
    """The helper's locks live there; /run is empty after a boot, so systemd is told to make it again."""
    os.close(log.directory(RUNTIME, with_content=True))
    if os.path.isdir(os.path.dirname(_TMPFILES)):
        log.file(_TMPFILES, f"d {RUNTIME} 0755 root root -\n".encode(), mode=0o644)


def _profile(log: Journal, *, say: Say) -> None:
    if not apparmor.mediates():
        return
    if log.file(apparmor.PATH, apparmor.PROFILE.encode(), mode=0o644):
        log.note("apparmor", path=apparmor.PATH)
        apparmor.load()
        say(f"loaded the AppArmor profile {apparmor.PATH}")


def _undo_profile(_log: Journal, entry: Entry, say: Say) -> None:
    if apparmor.mediates() and os.path.exists(entry["path"]):
        apparmor.unload(entry["path"])
        say(f"unloaded the AppArmor profile {entry['path']}")


def _take_the_bit() -> None:
    """A helper that does not work must not be what `--mode auto` finds."""
    directory, name = os.path.split(HELPER)
    with fsops.closing(journal.open_system_dir(directory)) as fd:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        with fsops.closing(file):
            os.fchmod(file, MODE & 0o777)


_UNDO: dict[str, Callable[[Journal, Entry, Say], None]] = {
    "directory": lambda log, entry, say: log.undo_directory(entry, say=say),
    "file": lambda log, entry, say: log.undo_file(entry, say=say),
    "group": _undo_account("group", "groupdel", lambda name: grp.getgrnam(name).gr_gid),
    "user": _undo_account("user", "userdel", lambda name: pwd.getpwnam(name).pw_uid),
    "apparmor": _undo_profile,
    "temporary": lambda _log, entry, _say: setuid_proof.remove_temporary(entry["path"]),
}
