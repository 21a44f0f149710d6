"""Turning sources into squashfs images, as a stream: worker (archive to tar) into tar2sqfs, no tree in between."""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sandbox import fsops
from sandbox.errors import ArchiveError, HostError, SandboxError
from sandbox.images import formats, pipeline
from sandbox.images.formats import Kind
from sandbox.units import size

if TYPE_CHECKING:
    from sandbox.images.progress import Progress

_NEARLY = 2 << 20  # tar2sqfs gives up on a whole block, and a block may be 1 MiB
_FAILED, _TWO_PASSES, _NO_SPACE = 1, 3, 5  # the worker's exit statuses
DEFAULT_LABEL = "the archive"


class NoSpaceError(HostError):
    """The file system of the image or tree is full, or the user's quota (`cause`) is."""

    def __init__(self, message: str, *, hint: str = "", cause: OSError | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause


def worker_argv(
    *,
    sink: str,
    max_unpacked: int,
    label: str = DEFAULT_LABEL,
    whiteouts: bool = False,
    owner: tuple[int, int] | None = None,
) -> tuple[bytes, ...]:
    """The command that unpacks descriptor 0 into descriptor 3; see worker.py. For the plan's Extract step.

    `owner`: uid and gid of all that a directory gets, where root unpacks.
    """
    ids = {} if owner is None else {"uid": owner[0], "gid": owner[1]}
    worker = pipeline.worker("unpack", sink=sink, max_unpacked=max_unpacked, label=label, whiteouts=whiteouts, **ids)
    return tuple(os.fsencode(word) for word in worker)


def copier_argv(*, max_unpacked: int, label: str) -> tuple[bytes, ...]:
    """The command that copies the directory descriptor 0 into descriptor 3, all of it the caller's own.

    The shell moves the descriptor out of the way: Python does not start with a directory as its standard input.
    """
    worker = pipeline.worker("pack", sink="dir", source=4, max_unpacked=max_unpacked, label=label)
    return tuple(os.fsencode(word) for word in ("/bin/sh", "-c", 'exec "$@" 4<&0 </dev/null', "sh", *worker))


def unpacked_size(fd: int, kind: Kind) -> int | None:
    """What the source says it unpacks to, in bytes, where that costs little to know (zip); else None."""
    if kind is not Kind.ZIP:
        return None
    from sandbox.images import zipdir

    return zipdir.total_size(fd)


class Output(NamedTuple):
    """What an image is to be: in the empty file `fd`, all of it owned by `uid` and `gid`, of a source called `label`.

    `fast` is lz4, otherwise zstd. `max_image` bounds the image's bytes (0: no bound).
    """

    fd: int
    label: str
    max_unpacked: int
    uid: int
    gid: int
    fast: bool = True
    max_image: int = 0


def build_image(out: Output, fd: int, kind: Kind) -> None:
    """A squashfs of the zip, tar or squashfs `fd`. Raises SandboxError."""
    check_claims(fd, kind, out.label, out.max_unpacked)
    with pipeline.reopened(fd) as source:
        # A squashfs may be a layer.
        _build(out, "unpack", source, progress=_bar(fd, out.label), whiteouts=kind is Kind.SQUASHFS)


def build_image_from_dir(out: Output, dir_fd: int) -> None:
    """The same of a directory tree, read by descriptor: no symlink followed, devices dropped. Raises SandboxError."""
    with fsops.closing(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)) as source:
        _build(out, "pack", source, progress=_bar(source, out.label))


def build_from_layers(out: Output, layers: Sequence[int], upper: int, *, flat: bool, opaque: str) -> None:
    """A squashfs of what files or directories stacked show together, with an overlay's upper directory on top; not
    `flat`: of what that changes. `opaque` is the upper's attribute of that meaning. Raises SandboxError.
    """
    job, numbers = "flatten" if flat else "delta", _numbers(layers)
    _build(out, job, upper, keep=layers, layers=numbers, opaque=opaque, see_all=True)


def build_from_tree(out: Output, layers: Sequence[int], tree: int, *, flat: bool) -> None:
    """The same of the directory `tree`, which shows the layers as they were changed. Nothing has to say what was
    removed: all of it and of the layers is read, and compared. Raises SandboxError.
    """
    if flat:
        _build(out, "flatten", tree, layers=_numbers([tree]), see_all=True)
    else:
        _build(out, "compare", tree, keep=layers, layers=_numbers(layers), see_all=True)


def _build(
    out: Output,
    job: str,
    source: int,
    *,
    keep: Sequence[int] = (),
    progress: "Progress | None" = None,
    **options: object,
) -> None:
    """The worker's `job` on `source`, into an image."""
    packer = pipeline.packer(out.fd, fast=out.fast, uid=out.uid, gid=out.gid, max_image=out.max_image)
    options |= {"max_unpacked": out.max_unpacked, "uid": out.uid, "gid": out.gid, "label": out.label}
    for two_passes in (False, True):
        worker = pipeline.worker(job, sink="tar", source=source, two_passes=two_passes, parent=os.getpid(), **options)
        done = pipeline.run(worker, packer, source=source, out_fd=out.fd, keep=keep, progress=progress)
        if done.status != _TWO_PASSES:
            break
        os.ftruncate(out.fd, 0)
        os.lseek(source, 0, os.SEEK_SET)
    if done.status == _FAILED and done.said:
        raise ArchiveError(done.said)
    if done.packed != 0:
        raise _packing_failed(out, done.log)
    if done.status != 0:
        raise _reading_failed(out.label, done.status, done.said)


def _reading_failed(label: str, status: int, said: str) -> ArchiveError:
    return ArchiveError(f"cannot read {label}: the reading process {pipeline.ended(status)}", hint=said)


def _numbers(fds: Sequence[int]) -> str:
    return ",".join(map(str, fds))


def list_layers(layers: Sequence[int], *, label: str, max_unpacked: int) -> list[bytes]:
    """What ListSink writes of files or directories stacked, without the NULs. Raises SandboxError."""
    with pipeline.words() as said, fsops.closing(os.memfd_create("sandbox-listing", os.MFD_CLOEXEC)) as out:
        options = {"layers": _numbers(layers), "max_unpacked": max_unpacked, "label": label, "parent": os.getpid()}
        worker = pipeline.worker("flatten", sink="list", out=out, **options)
        with pipeline.start(worker, out=said, said=said, keep=(out, *layers)) as child:
            if (status := child.wait()) != 0:
                raise ArchiveError(words) if (words := pipeline.text(said)) else _reading_failed(label, status, "")
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
            f"cannot unpack {label}: it unpacks to {size(claimed)}, the limit is {size(max_unpacked)}",
            hint="raise --max-unpacked if it is to be trusted",
        )


def _packing_failed(out: Output, log: str) -> SandboxError:
    """tar2sqfs says "I/O error" and no more: what the image and its file system look like tells why."""
    written = os.fstat(out.fd).st_size
    if refused := _refused_room(out.fd, written):
        what = f"cannot convert {out.label}: its image needs more than the {size(written)} that there was room for"
        return NoSpaceError(what, hint="free some", cause=refused)
    if out.max_image and written > out.max_image - _NEARLY:
        return HostError(
            f"cannot convert {out.label}: its image needs more than {size(out.max_image)} of memory",
            hint="keep it on disk with --cache",
        )
    return SandboxError(f"cannot convert {out.label}: tar2sqfs failed: {log or 'it was killed'}")


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
    sync: bool = False,
) -> None:
    """Unpack the zip, tar or squashfs `fd` below the empty directory `dir_fd`. Raises SandboxError.

    With `sync` it is on the disk when this returns.
    """
    check_claims(fd, kind, label, max_unpacked)
    with pipeline.reopened(fd) as source, pipeline.words() as said:
        options = {"max_unpacked": max_unpacked, "label": label, "sync": sync, "parent": os.getpid()}
        argv = pipeline.worker("unpack", sink="dir", out=dir_fd, **options)
        with pipeline.start(argv, stdin=source, out=said, said=said, keep=(dir_fd,)) as child:
            (status,) = pipeline.wait([child], _bar(fd, label), lambda: pipeline.done(child.pid, source))
        if status == _NO_SPACE:
            raise NoSpaceError(pipeline.text(said))
        if status == _FAILED:
            raise ArchiveError(pipeline.text(said))
        if status != 0:
            why = f"the unpacking process {pipeline.ended(status)}"
            raise ArchiveError(f"cannot unpack {label}: {why}", hint=pipeline.text(said))


def image_in_memory(
    fd: int,
    kind: Kind | None,
    *,
    label: str,
    max_unpacked: int,
    uid: int,
    gid: int,
) -> int:
    """The source's image in a sealed memfd, which the caller closes. At most half of the RAM. Raises SandboxError.

    `kind` None: the source is a directory.
    """
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    memory = os.memfd_create("sandbox-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with contextlib.ExitStack() as stack:
            if kind in (Kind.ELF, Kind.TEXT):
                fd, kind = formats.unwrap(fd, kind, label, max_unpacked)
                stack.enter_context(fsops.closing(fd))
            out = Output(memory, label, max_unpacked, uid, gid, max_image=limit)
            if kind is None:
                build_image_from_dir(out, fd)
            else:
                build_image(out, fd, kind)
        formats.seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory
