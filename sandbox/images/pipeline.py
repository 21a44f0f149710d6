"""The processes that builders are: how they are started, fed, watched and waited for.

They die with the launcher. PR_SET_PDEATHSIG fires when the parent *thread* ends (prctl(2)), so they are started and
waited for within one call, in the caller's thread.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sandbox import fsops

if TYPE_CHECKING:
    import subprocess

    from sandbox.images.progress import Progress

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
_PIPE_SIZE = 1 << 20
_POLL_MS = 100
# Of zstd's levels, 14 takes three quarters of the time of 15, which squashfs tools default to, for 1 % more bytes; 13
# takes half of it, for 6 % more (docs/performance.md).
_COMPRESSOR = {True: ("lz4",), False: ("zstd", "--comp-extra", "level=14")}


class Ended(NamedTuple):
    """The exit statuses of the worker and the packer, as `subprocess` has them, and what each of them said."""

    status: int
    said: str
    packed: int
    log: str


def worker(job: str, **options: object) -> list[str]:
    """The command of worker.py that does `job`; an option that is False is left out."""
    argv = [sys.executable, "-I", _WORKER, job]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            argv.append(flag)
        elif value is not False:
            argv.append(f"{flag}={value}")
    return argv


def restrained(program: str, *, max_file: int = 0) -> list[str]:
    """The command that becomes `program`, without new privileges, and dead when the caller is."""
    return [*worker("exec", parent=os.getpid(), max_file=max_file), "--", program]


def packer(out_fd: int, *, fast: bool, uid: int, gid: int, max_image: int) -> list[str]:
    """The command that makes the tar on its standard input a squashfs in the empty file `out_fd`."""
    from sandbox.images.worker import find_program

    program = find_program("tar2sqfs", "squashfs-tools-ng")
    jobs = len(os.sched_getaffinity(0))
    options = ["--quiet", "--force", "--no-skip", "--no-xattr", "--num-jobs", str(jobs)]
    options += ["--defaults", f"uid={uid},gid={gid},mode=0755", "--compressor", *_COMPRESSOR[fast]]
    return [*restrained(program, max_file=max_image), *options, f"/proc/self/fd/{out_fd}"]


def run(
    worker: Sequence[str],
    packer: Sequence[str],
    *,
    source: int,
    out_fd: int,
    keep: Sequence[int] = (),
    progress: "Progress | None" = None,
) -> Ended:
    """worker | packer. The worker has `source`, as its standard input too if that is a file, and what it may `keep`."""
    import subprocess

    is_file = not stat.S_ISDIR(os.fstat(source).st_mode)
    with contextlib.ExitStack() as stack:
        said, log = stack.enter_context(words()), stack.enter_context(words())
        with contextlib.ExitStack() as ends:
            read, write = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, read)
            ends.callback(os.close, write)
            _widen(write)
            packing = stack.enter_context(start(packer, stdin=read, out=log, said=log, keep=(out_fd,)))
            # Python does not start with a directory as its standard input.
            stdin = source if is_file else subprocess.DEVNULL
            argv = [*worker, f"--out={write}"]
            reading = stack.enter_context(start(argv, stdin=stdin, out=said, said=said, keep=(write, source, *keep)))
        packed, status = wait([packing, reading], progress, lambda: done(packing.pid, source))
        return Ended(status, text(said), packed, text(log))


@contextlib.contextmanager
def start(
    argv: Sequence[str | bytes], *, stdin: int | None = None, out: int, said: int, keep: Sequence[int] = ()
) -> "Iterator[subprocess.Popen[bytes]]":
    """A child with these descriptors and no others, killed and reaped should the block be left early."""
    import subprocess

    given = subprocess.DEVNULL if stdin is None else stdin
    child = subprocess.Popen(argv, stdin=given, stdout=out, stderr=said, pass_fds=keep, env=ENVIRONMENT, cwd="/")
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def done(packer: int, source: int) -> int:
    """How far the worker is: it shares the offset of a file. Of a directory, what the packer has read (proc(5), io)."""
    if not stat.S_ISDIR(os.fstat(source).st_mode):
        return os.lseek(source, 0, os.SEEK_CUR)
    with contextlib.suppress(OSError), open(f"/proc/{packer}/io", "rb") as counters:
        return int(counters.readline().split()[1])
    return 0


def wait(children: "list[subprocess.Popen[bytes]]", progress: "Progress | None", done: Callable[[], int]) -> list[int]:
    """Wait for all of them; their statuses."""
    if progress is not None:
        import select

        poll = select.poll()
        handles = [os.pidfd_open(child.pid) for child in children]
        try:
            for handle in handles:
                poll.register(handle, select.POLLIN)
            running = len(handles)
            while running:
                for handle, _ in poll.poll(_POLL_MS):
                    poll.unregister(handle)
                    running -= 1
                progress.update(done())
        finally:
            progress.close()
            for handle in handles:
                os.close(handle)
    return [child.wait() for child in children]


@contextlib.contextmanager
def words() -> Iterator[int]:
    """What a child says goes to memory: nobody has to read it while it runs."""
    with fsops.closing(os.memfd_create("sandbox-words", os.MFD_CLOEXEC)) as fd:
        yield fd


def text(fd: int) -> str:
    """What was said, as one line."""
    return " ".join(os.pread(fd, 4000, 0).decode("utf-8", "replace").split())


def ended(status: int) -> str:
    """How a process did, as the end of a sentence."""
    return f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"


def reopened(fd: int) -> contextlib.AbstractContextManager[int]:
    """The same file with an offset of its own, so that runs in parallel do not move each other's."""
    try:
        return fsops.closing(os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        os.lseek(fd, 0, os.SEEK_SET)
        return fsops.closing(os.dup(fd))


def _widen(pipe: int) -> None:
    import fcntl

    # Refused beyond the user's quota of pipe memory (pipe(7)); the default size works as well, only slower.
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
