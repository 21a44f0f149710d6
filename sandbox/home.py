"""$SANDBOX_HOME: finding it, opening it, and what makes it unsafe."""

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import SandboxError, printable, reason, remedy
from sandbox.plan_types import Source, SourceKind
from sandbox.record import Record

# f_type of filesystems whose locks or directories are shared with other hosts: statfs(2), linux/magic.h.
NETWORK = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x5346414F: "afs",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x65735546: "fuse",
    0x19830326: "fhgfs",
}
Say = Callable[[str], None]


class HomeError(SandboxError):
    """The home cannot be used."""


class Home(Record):
    """Open directories: `fd` is the home; `run_fd` holds procdirs/ and records/ (elsewhere for a network home)."""

    path: bytes
    fd: int
    run_path: bytes
    run_fd: int
    procdirs_fd: int
    records_fd: int

    def source(self) -> Source:
        """The home of a plan: the directory with procdirs/ and records/."""
        status = os.fstat(self.run_fd)
        return Source(SourceKind.DIRECTORY, self.run_path, status.st_dev, status.st_ino)


def locate(environ: dict[bytes, bytes], *, say: Say) -> bytes:
    """The path of the home: inside a sandbox $SANDBOX_TMPDIR/.sandbox, else $SANDBOX_HOME, else ~/.sandbox."""
    outer = environ.get(b"SANDBOX_TMPDIR")
    if outer and _is_scratch_of_a_run(outer):
        # The outer run's guard makes its procdirs/ read-only, so a sandbox inside a sandbox keeps house in its scratch.
        return os.path.join(outer, b".sandbox")
    if explicit := environ.get(b"SANDBOX_HOME"):
        return _absolute(explicit)
    home = of_user(environ, say=say)
    return os.path.join(_absolute(home), b".sandbox") if home else b"/tmp/sandbox-%d" % os.getuid()


def _absolute(path: bytes) -> bytes:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        why = "the working directory was deleted"
        raise HomeError(f"cannot tell where {printable(path)} is: {why}", hint="give an absolute path") from None


def of_user(environ: Mapping[bytes, bytes], *, say: Say) -> bytes:
    """The user's own home directory; empty where there is none. Root does not use somebody else's."""
    try:
        own = os.fsencode(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        # A uid without a passwd entry has no home of its own; what is opened there is checked like any home.
        own = b""
    home = environ.get(b"HOME") or own
    if not home:
        return b""
    with contextlib.suppress(OSError):
        if os.getuid() == 0 and home != own and os.stat(home).st_uid != 0:
            say(f"$HOME {printable(home)} is not root's, using {printable(own)}")
            home = own
    return home


def run_directory(path: bytes, environ: dict[bytes, bytes]) -> bytes | None:
    """Where run directories of the home at `path` go, if not there: it is on a file system that other hosts share."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with fsops.closing(fd):
        return _runtime_dir(environ) if sys.statfs_type(fd) in NETWORK else None


def _is_scratch_of_a_run(path: bytes) -> bool:
    """Whether a run that we are inside of is mounted there; a variable that outlived its run means nothing."""
    mounted_on = os.path.dirname(path)
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                fields = line.split()
                source = fields[fields.index(b"-") + 2]
                if fields[4] == mounted_on and (source.startswith(b"sandbox:") or fields[3].endswith(b"/procdir")):
                    return os.stat(path).st_uid == os.getuid()
    except (OSError, ValueError):
        pass
    return False


@contextlib.contextmanager
def open_home(environ: dict[bytes, bytes], *, say: Say) -> Iterator[Home]:
    """The home, made if it is missing. Raises HomeError when it is not safe or not usable."""
    path = locate(environ, say=say)
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(fsops.closing(_open_checked(path)))
        run_fd = fd
        if (kind := sys.statfs_type(fd)) in NETWORK:
            run_path = _runtime_dir(environ)
            say(f"{printable(path)} is on {NETWORK[kind]}: run directories go to {printable(run_path)}")
            run_fd = stack.enter_context(fsops.closing(_open_checked(run_path)))
        procdirs = stack.enter_context(fsops.closing(_part(path, run_fd, b"procdirs")))
        records = stack.enter_context(fsops.closing(_part(path, run_fd, b"records")))
        yield Home(
            _path_of(fd),
            fd,
            _path_of(run_fd),
            run_fd,
            procdirs,
            records,
        )


def _part(path: bytes, run_fd: int, name: bytes) -> int:
    try:
        return fsops.make_dir(run_fd, name)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise _unusable(path, error) from None
        why = f"{printable(name)} in it is no directory"
        raise HomeError(f"cannot use the home {printable(path)}: {why}", hint="remove that, it is made anew") from None


def _path_of(fd: int) -> bytes:
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError as error:
        raise HomeError(f"cannot use /proc: {reason(error)}", hint="mount it: mount -t proc proc /proc") from None


def _runtime_dir(environ: dict[bytes, bytes]) -> bytes:
    if runtime := environ.get(b"XDG_RUNTIME_DIR"):
        return os.path.join(_absolute(runtime), b"sandbox")
    return b"/tmp/sandbox-%d" % os.getuid()


def _open_checked(path: bytes) -> int:
    """The directory, ours and writable by nobody else; checked on the descriptor."""
    try:
        # Only the last component: whoever names a home below what does not exist has mistyped it.
        fd = fsops.open_or_make_dir(path)
    except OSError as error:
        raise _unusable(path, error) from None
    if (trouble := not_ours(path, os.fstat(fd))) is None:
        return fd
    os.close(fd)
    why, hint = trouble
    raise HomeError(f"cannot use the home {printable(path)}: {why}", hint=hint)


def not_ours(path: bytes, status: os.stat_result) -> tuple[str, str] | None:
    """Why a directory cannot be trusted as a home, and what to do; None where it can."""
    own = "set SANDBOX_HOME to a directory of your own"
    if status.st_uid != os.getuid():
        return f"it belongs to uid {status.st_uid}", own
    if status.st_mode & 0o022:
        # What is sticky is meant for everybody, as /tmp is: nobody is to be told to change that.
        hint = own if status.st_mode & stat.S_ISVTX else f"chmod 700 {printable(path)}"
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o})", hint
    return None


def _unusable(path: bytes, error: OSError) -> HomeError:
    why = reason(error)
    if error.errno == errno.ENOENT and os.path.islink(path):
        why = f"it is a dangling link to {printable(os.readlink(path))}"
    hint = "set SANDBOX_HOME to a directory of your own"
    if error.errno in (errno.EMFILE, errno.ENFILE):  # no other home would help
        hint = remedy(error)
    return HomeError(f"cannot use the home {printable(path)}: {why}", hint=hint)
