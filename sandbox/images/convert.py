"""Turning sources into squashfs images, as a stream: worker (archive to tar) into tar2sqfs, no tree in between.

The builders die with the launcher. PR_SET_PDEATHSIG fires when the parent *thread* ends (prctl(2)), so they are
started and waited for within one call, in the caller's thread.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sandbox import fsops
from sandbox.errors import ArchiveError, HostError, SandboxError
from sandbox.images import formats
from sandbox.images.formats import Kind

if TYPE_CHECKING:
    import subprocess

    from sandbox.images.progress import Progress

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
_PIPE_SIZE = 1 << 20
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_POLL_MS = 100
_NEARLY = 2 << 20  # tar2sqfs gives up on a whole block, and a block may be 1 MiB
DEFAULT_LABEL = "the archive"


class NoSpaceError(HostError):
    """The file system of the image or tree is full, or the user's quota (`cause`) is."""

    def __init__(self, message: str, *, hint: str = "", cause: OSError | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


def worker_argv(
    *, sink: str, max_unpacked: int, label: str = DEFAULT_LABEL, whiteouts: bool = False
) -> tuple[bytes, ...]:
    """The command that unpacks descriptor 0 into descriptor 3; see worker.py. For the plan's Extract step."""
    worker = _worker("unpack", sink=sink, max_unpacked=max_unpacked, label=label, whiteouts=whiteouts)
    return tuple(os.fsencode(word) for word in worker)


def copier_argv(*, max_unpacked: int, label: str) -> tuple[bytes, ...]:
    """The command that copies the directory descriptor 0 into descriptor 3, all of it the caller's own.

    The shell moves the descriptor out of the way: Python does not start with a directory as its standard input.
    """
    worker = _worker("pack", sink="dir", source=4, max_unpacked=max_unpacked, label=label)
    return tuple(os.fsencode(word) for word in ("/bin/sh", "-c", 'exec "$@" 4<&0 </dev/null', "sh", *worker))


def _worker(job: str, **options: object) -> list[str]:
    argv = [sys.executable, "-I", _WORKER, job]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            argv.append(flag)
        elif value is not False:
            argv.append(f"{flag}={value}")
    return argv


def restrained(program: str) -> list[str]:
    """The command that becomes `program`, without new privileges, and dead when the caller is."""
    return [*_worker("exec", parent=os.getpid()), "--", program]


def unpacked_size(fd: int, kind: Kind) -> int | None:
    """What the source says it unpacks to, in bytes, where that costs little to know (zip); else None."""
    if kind is not Kind.ZIP:
        return None
    from sandbox.images import zipdir

    return zipdir.total_size(fd)


def build_image(
    fd: int,
    kind: Kind,
    out_fd: int,
    *,
    label: str,
    fast: bool = True,
    max_unpacked: int,
    uid: int,
    gid: int,
    progress: "Progress | None" = None,
    max_image: int = 0,
) -> None:
    """A squashfs of the zip, tar or squashfs `fd` into the empty file `out_fd`, all of it owned by `uid` and `gid`.

    `fast` is lz4, otherwise zstd. `max_image` bounds the image's bytes (0: no bound). Raises SandboxError.
    """
    check_claims(fd, kind, label, max_unpacked)
    progress = progress or _bar(fd, label)
    with _reopened(fd) as source:
        keep = kind is Kind.SQUASHFS  # it may be a layer
        _build("unpack", source, out_fd, label, fast, max_unpacked, uid, gid, progress, max_image, whiteouts=keep)


def build_image_from_dir(
    dir_fd: int,
    out_fd: int,
    *,
    label: str,
    fast: bool = True,
    max_unpacked: int,
    uid: int,
    gid: int,
    max_image: int = 0,
) -> None:
    """The same of a directory tree, read by descriptor: no symlink followed, devices dropped. Raises SandboxError."""
    with fsops.closing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)) as source:
        _build("pack", source, out_fd, label, fast, max_unpacked, uid, gid, _bar(source, label), max_image)


def build_from_layers(
    layers: Sequence[int],
    upper: int | None,
    out_fd: int,
    *,
    flat: bool,
    opaque: str = "",
    label: str,
    max_unpacked: int,
    uid: int,
    gid: int,
) -> None:
    """A squashfs of what files or directories stacked show together, with an overlay's upper directory on top; not
    `flat`: of what that changes. `opaque` is the upper's attribute of that meaning. Raises SandboxError.
    """
    packer = _packer(out_fd, True, uid, gid, 0)
    options = {"sink": "tar", "max_unpacked": max_unpacked, "uid": uid, "gid": gid, "label": label, "opaque": opaque}
    source = layers[0] if upper is None else upper
    worker = _layers_worker("flatten" if flat else "delta", layers, source=source, **options)
    status, said, packed, log = _pipeline(worker, source, packer, out_fd, None, more=layers)
    if status == _FAILED and said:
        raise ArchiveError(said)
    if packed != 0:
        raise _packing_failed(label, log, out_fd, 0)
    if status != 0:
        raise ArchiveError(f"cannot read {label}: the reading process {_ended(status)}", hint=said)


def _layers_worker(job: str, layers: Sequence[int], **options: object) -> list[str]:
    return _worker(job, layers=",".join(map(str, layers)), parent=os.getpid(), **options)


def list_layers(layers: Sequence[int], *, label: str, max_unpacked: int) -> list[bytes]:
    """What ListSink writes of files or directories stacked, without the NULs. Raises SandboxError."""
    import subprocess

    with words() as said, fsops.closing(os.memfd_create("sandbox-listing", os.MFD_CLOEXEC)) as out:
        worker = _layers_worker("flatten", layers, sink="list", out=out, max_unpacked=max_unpacked, label=label)
        child = subprocess.Popen(
            worker,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(out, *layers),
            env=ENVIRONMENT,
            cwd="/",
        )
        with ending(child):
            if (status := child.wait()) != 0:
                raise ArchiveError(text(said) or f"cannot read {label}: the reading process {_ended(status)}")
        return os.pread(out, os.fstat(out).st_size, 0).split(b"\0")[:-1]


def _bar(fd: int, label: str) -> "Progress | None":
    from sandbox.images import progress, tree

    status = os.fstat(fd)
    bar = progress.on_terminal(f"converting {os.path.basename(label)[:40]}", status.st_size)
    if bar is not None and stat.S_ISDIR(status.st_mode):
        bar.total = sum(status.st_size for _, status, _, _ in tree.walk(fd))
    return bar


def check_claims(fd: int, kind: Kind, label: str, max_unpacked: int) -> None:
    """Refuse before the first byte what says itself that it is too large."""
    claimed = unpacked_size(fd, kind)
    if claimed is not None and claimed > max_unpacked:
        raise ArchiveError(
            f"cannot unpack {label}: it unpacks to {claimed} bytes, the limit is {max_unpacked}",
            hint="raise --max-unpacked if it is to be trusted",
        )


def _build(
    job: str,
    source: int,
    out_fd: int,
    label: str,
    fast: bool,
    max_unpacked: int,
    uid: int,
    gid: int,
    progress: "Progress | None",
    max_image: int,
    *,
    whiteouts: bool = False,
) -> None:
    packer = _packer(out_fd, fast, uid, gid, max_image)
    options = {"sink": "tar", "max_unpacked": max_unpacked, "uid": uid, "gid": gid, "label": label}
    options["whiteouts"] = whiteouts
    for two_passes in (False, True):
        worker = _worker(job, **options, source=source, two_passes=two_passes, parent=os.getpid())
        status, said, packed, log = _pipeline(worker, source, packer, out_fd, progress)
        if status != _TWO_PASSES:
            break
        os.ftruncate(out_fd, 0)
        os.lseek(source, 0, os.SEEK_SET)
    if status == _FAILED and said:
        raise ArchiveError(said)
    if packed != 0:
        raise _packing_failed(label, log, out_fd, max_image)
    if status != 0:
        raise ArchiveError(f"cannot unpack {label}: the unpacking process {_ended(status)}", hint=said)


_FAILED, _TWO_PASSES, _NO_SPACE = 1, 3, 5


def _packer(out_fd: int, fast: bool, uid: int, gid: int, max_image: int) -> list[str]:
    from sandbox.images.worker import find_program

    program = find_program("tar2sqfs", "squashfs-tools-ng")
    jobs = len(os.sched_getaffinity(0))
    options = ["--quiet", "--force", "--no-skip", "--no-xattr", "--compressor", "lz4" if fast else "zstd"]
    owner = f"uid={uid},gid={gid},mode=0755"
    command = [program, *options, "--num-jobs", str(jobs), "--defaults", owner, f"/proc/self/fd/{out_fd}"]
    return [*_worker("exec", parent=os.getpid(), max_file=max_image), "--", *command]


def _pipeline(
    worker: Sequence[str],
    source: int,
    packer: Sequence[str],
    out_fd: int,
    progress: "Progress | None",
    *,
    more: Sequence[int] = (),
) -> tuple[int, str, int, str]:
    """Run worker | packer. The worker's status and words, the packer's status and words."""
    import subprocess

    with contextlib.ExitStack() as stack:
        said, log = stack.enter_context(words()), stack.enter_context(words())
        with contextlib.ExitStack() as ends:
            read, write = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, read)
            ends.callback(os.close, write)
            _widen(write)
            child = subprocess.Popen(
                packer, stdin=read, stdout=log, stderr=log, pass_fds=(out_fd,), env=ENVIRONMENT, cwd="/"
            )
            children = [stack.enter_context(ending(child))]
            child = subprocess.Popen(
                [*worker, f"--out={write}"],
                stdin=source if "unpack" in worker else subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(write, source, *more),
                env=ENVIRONMENT,
                cwd="/",
            )
            children.append(stack.enter_context(ending(child)))
        packed, status = _wait(children, progress, lambda: _done(children[0].pid, source))
        return status, text(said), packed, text(log)


def _done(packer: int, source: int) -> int:
    """How far the worker is: it shares the offset of a file. Of a directory, what the packer has read (proc(5), io)."""
    if not stat.S_ISDIR(os.fstat(source).st_mode):
        return os.lseek(source, 0, os.SEEK_CUR)
    with contextlib.suppress(OSError), open(f"/proc/{packer}/io", "rb") as counters:
        return int(counters.readline().split()[1])
    return 0


def _wait(children: "list[subprocess.Popen[bytes]]", progress: "Progress | None", done: Callable[[], int]) -> list[int]:
    """Wait for all."""
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
def ending(child: "subprocess.Popen[bytes]") -> "Iterator[subprocess.Popen[bytes]]":
    """The child, killed and reaped should the block be left early."""
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


@contextlib.contextmanager
def words() -> Iterator[int]:
    """What a child says goes to memory: nobody has to read it while it runs."""
    with fsops.closing(os.memfd_create("sandbox-words", os.MFD_CLOEXEC)) as fd:
        yield fd


def text(fd: int) -> str:
    return " ".join(os.pread(fd, 4000, 0).decode("utf-8", "replace").split())


def _widen(pipe: int) -> None:
    import fcntl

    # Refused beyond the user's quota of pipe memory (pipe(7)); the default size works as well, only slower.
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


def _reopened(fd: int) -> contextlib.AbstractContextManager[int]:
    """The same file with an offset of its own, so that runs in parallel do not move each other's."""
    try:
        return fsops.closing(os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        os.lseek(fd, 0, os.SEEK_SET)
        return fsops.closing(os.dup(fd))


def _ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"


def _packing_failed(label: str, log: str, out_fd: int, max_image: int) -> SandboxError:
    """tar2sqfs says "I/O error" and no more: what the image and its file system look like tells why."""
    written = os.fstat(out_fd).st_size
    if refused := _refused_room(out_fd, written):
        what = f"cannot convert {label}: its image needs more than the {written} bytes that there was room for"
        return NoSpaceError(what, hint="free some", cause=refused)
    if max_image and written > max_image - _NEARLY:
        return HostError(
            f"cannot convert {label}: its image needs more than {max_image} bytes of memory",
            hint="keep it on disk with --cache",
        )
    return SandboxError(f"cannot convert {label}: tar2sqfs failed: {log or 'it was killed'}")


def _refused_room(fd: int, size: int) -> OSError | None:
    """Why a file cannot grow by another block: the file system is full, or the user's quota is."""
    try:
        os.posix_fallocate(fd, size, _NEARLY)
    except OSError as error:
        return error if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return None


# -- other targets ----------------------------------------------------------------------------------------------


def extract(
    fd: int,
    kind: Kind,
    dir_fd: int,
    *,
    label: str,
    max_unpacked: int,
    progress: "Progress | None" = None,
    sync: bool = False,
) -> None:
    """Unpack the zip, tar or squashfs `fd` below the empty directory `dir_fd`. Raises SandboxError.

    With `sync` it is on the disk when this returns.
    """
    import subprocess

    check_claims(fd, kind, label, max_unpacked)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_reopened(fd))
        said = stack.enter_context(words())
        argv = _worker("unpack", sink="dir", out=dir_fd, max_unpacked=max_unpacked, label=label, sync=sync)
        child = subprocess.Popen(
            [*argv, f"--parent={os.getpid()}"],
            stdin=source,
            stdout=said,
            stderr=said,
            pass_fds=(dir_fd,),
            env=ENVIRONMENT,
            cwd="/",
        )
        stack.enter_context(ending(child))
        (status,) = _wait([child], progress or _bar(fd, label), lambda: _done(child.pid, source))
        if status == _NO_SPACE:
            raise NoSpaceError(text(said))
        if status == _FAILED:
            raise ArchiveError(text(said))
        if status != 0:
            raise ArchiveError(f"cannot unpack {label}: the unpacking process {_ended(status)}", hint=text(said))


def image_in_memory(
    fd: int,
    kind: Kind,
    *,
    label: str,
    max_unpacked: int,
    uid: int,
    gid: int,
    progress: "Progress | None" = None,
) -> int:
    """The source's image in a sealed memfd, which the caller closes. At most half of the RAM. Raises SandboxError."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    memory = os.memfd_create("sandbox-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with contextlib.ExitStack() as stack:
            if kind in (Kind.ELF, Kind.TEXT):
                fd, kind = formats.unwrap(fd, kind, label, max_unpacked)
                stack.enter_context(fsops.closing(fd))
            build_image(
                fd,
                kind,
                memory,
                label=label,
                max_unpacked=max_unpacked,
                uid=uid,
                gid=gid,
                progress=progress,
                max_image=limit,
            )
        formats.seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory
