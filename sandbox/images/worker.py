"""The builder process: hostile parsing happens here, apart from the launcher.

Started by path (`python -I .../worker.py JOB ...`): -I keeps the caller's directory and PYTHONPATH out.
Descriptor 0 is the source (`--source` for a directory: Python does not start on one); descriptor 3, or `--out`, takes
the tree or the tar. On failure the exit status is 1 and
descriptor 1 has exactly one line. Status 3: a name came twice and the stream needs `--two-passes`; 4: whoever read
the stream went away, and knows why; 5: as 1, because the disk is full.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import argparse
import contextlib
import errno
import gc
import resource
import signal
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox import fsops
from sandbox.engine import syscalls
from sandbox.errors import ArchiveError, DamagedError, HostError, SandboxError, reason
from sandbox.images.formats import Kind, detect
from sandbox.units import size

if TYPE_CHECKING:
    from sandbox.images.archive import Sink, Source

FAILED, TWO_PASSES, READER_GONE, NO_SPACE = 1, 3, 4, 5
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MEMORY = 4 << 30  # what a decompressor may map: xz archives can ask for any dictionary


def find_program(name: str, package: str) -> str:
    """A program's path from the system's directories, whatever the caller's PATH says. Raises HostError."""
    from sandbox import host

    if path := host.find_program(name):
        return os.fsdecode(path)
    raise HostError(f"cannot find the program {name} in {', '.join(host.PROGRAM_DIRS)}", hint=f"install {package}")


def main(argv: list[str]) -> int:
    """The exit status; see the top of this file."""
    own = argv.index("--") if "--" in argv else len(argv)
    program = argv[own + 1 :]
    options = _parser().parse_args(argv[:own])
    try:
        _restrain(options.parent, 0 if options.job == "exec" else _MEMORY)
        if options.job == "exec":
            if options.max_file:
                resource.setrlimit(resource.RLIMIT_FSIZE, (options.max_file, options.max_file))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG, which the program reports, instead of death
            os.execv(program[0], program)
        return _stacked(options) if options.job in ("flatten", "delta", "compare") else _unpack(options)
    except BrokenPipeError:
        return READER_GONE
    except SandboxError as error:
        return _say(str(error))
    except MemoryError:
        return _say(f"cannot unpack {options.label}: it needs more memory than {size(_MEMORY)} to decompress")
    except OSError as error:
        _say(_trouble(options, error))
        return NO_SPACE if error.errno in _FULL else FAILED
    except Exception as error:  # a hostile archive must not get a traceback for an answer
        return _say(f"cannot unpack {options.label}: internal error: {type(error).__name__}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sandbox-worker")
    parser.add_argument("job", choices=("unpack", "pack", "exec", "flatten", "delta", "compare"))
    parser.add_argument("--sink", choices=("dir", "tar", "list"))
    parser.add_argument("--source", type=int, default=0)
    parser.add_argument("--out", type=int, default=3)
    parser.add_argument("--max-unpacked", type=int, default=0)
    parser.add_argument("--max-file", type=int, default=0)
    parser.add_argument("--uid", type=int, default=0)
    parser.add_argument("--gid", type=int, default=0)
    parser.add_argument("--label", default="the archive")
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--two-passes", action="store_true")
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--whiteouts", action="store_true")
    parser.add_argument("--layers", default="")
    parser.add_argument("--opaque", default="")
    parser.add_argument("--see-all", action="store_true")
    return parser


def _say(line: str) -> int:
    os.write(1, line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n")
    return FAILED


def _restrain(parent: int, memory: int) -> None:
    """No new privileges, no core files; and with `parent` given, no life without it."""
    import prctl

    prctl.set_no_new_privs(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    if parent:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(READER_GONE)
    os.umask(0)


def _unpack(options: argparse.Namespace) -> int:
    from sandbox.images import archive, sinks

    gc.disable()  # hundreds of thousands of small objects, no cycles among them
    kind = None if options.job == "pack" else detect(0, options.label)
    if options.sink == "dir" and kind is Kind.ZIP:
        _check_room(options)
    if options.sink == "dir" and options.uid:
        # Of this process alone: a program that it starts is root again, and reads the source (setfsuid(2)).
        os.fchown(options.out, options.uid, options.gid)
        syscalls.set_filesystem_ids(options.uid, options.gid)
    sink: Sink = (
        sinks.DirSink(options.out, dig_holes=kind is Kind.SQUASHFS)
        if options.sink == "dir"
        else sinks.TarSink(options.out, uid=options.uid, gid=options.gid)
    )
    try:
        if options.two_passes:
            with _source(kind, options.source, options.max_unpacked) as source:
                versions = archive.last_versions(source, options.max_unpacked, whiteouts=options.whiteouts)
            with _source(kind, options.source, options.max_unpacked) as source:
                archive.unpack_last(source, sink, options.max_unpacked, versions, whiteouts=options.whiteouts)
        else:
            with _source(kind, options.source, options.max_unpacked) as source:
                archive.unpack(source, sink, options.max_unpacked, whiteouts=options.whiteouts)
    except sinks.NeedsTwoPassesError:
        return TWO_PASSES
    except SandboxError as error:
        raise ArchiveError(f"cannot unpack {options.label}: {error.message}", hint=error.hint) from None
    if options.sync:
        syscalls.syncfs(options.out)
    return 0


def _stacked(options: argparse.Namespace) -> int:
    """`flatten`: what all layers show together, as one tree. `delta`: what the upper directory adds to them; `compare`:
    what the directory shows otherwise than they do.
    """
    from sandbox.images import archive, layers, sinks

    gc.disable()
    kinds = [(fd, _kind_of(fd)) for fd in map(int, filter(None, options.layers.split(",")))]
    limit = options.max_unpacked
    below: list[layers.Layer] = [lambda fd=fd, kind=kind: _source(kind, fd, limit) for fd, kind in kinds]  # type: ignore[misc]
    sink: Sink = (
        sinks.ListSink(options.out)
        if options.sink == "list"
        else sinks.TarSink(options.out, uid=options.uid, gid=options.gid)
    )

    def beneath() -> layers.Stacked:
        return layers.Stacked(below, limit)

    def upper() -> "Source":
        if options.job == "compare":
            return layers.Compared(options.source, beneath())
        return layers.Upper(options.source, beneath, options.opaque)

    try:
        if options.see_all:
            _see_all()
        if options.job != "flatten":
            archive.unpack(upper(), sink, limit, whiteouts=True)
            return 0
        shown: list[layers.Layer] = [*below, lambda: contextlib.nullcontext(upper())] if options.opaque else below
        layers.Stacked(shown, limit).write(sink)
    except SandboxError as error:
        raise ArchiveError(f"cannot read {options.label}: {error.message}", hint=error.hint) from None
    return 0


def _see_all() -> None:
    """In a user namespace of its own a process reads its user's files whatever their modes say."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return
    with contextlib.suppress(OSError):  # without one, an unreadable file is told by its name
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with fsops.closing(os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
                os.write(fd, line.encode())


def _kind_of(fd: int) -> Kind | None:
    return None if stat.S_ISDIR(os.fstat(fd).st_mode) else detect(fd, "the layer")


@contextlib.contextmanager
def _source(kind: Kind | None, fd: int, max_unpacked: int) -> "Iterator[Source]":
    if kind is None:
        from sandbox.images.tree import TreeSource

        yield TreeSource(fd)
        return
    from sandbox.images.reader import Reader

    if kind is Kind.SQUASHFS:
        with _sqfs2tar(fd) as stream:
            reader = Reader(fd, Kind.TAR, max_unpacked=max_unpacked, stream=stream)
            with contextlib.closing(reader):
                yield reader
        return
    if kind not in (Kind.ZIP, Kind.TAR):
        raise ArchiveError(
            f"what {kind.value} holds cannot be converted",
            hint="an erofs image is mounted as it is, by root: -s NAME:FILE",
        )
    os.lseek(fd, 0, os.SEEK_SET)
    with contextlib.closing(Reader(fd, kind, max_unpacked=max_unpacked)) as reader:
        yield reader


@contextlib.contextmanager
def _sqfs2tar(fd: int) -> Iterator[Iterator[bytes]]:
    """The content of the squashfs `fd` as a tar stream, by a process of its own."""
    import subprocess

    program = find_program("sqfs2tar", "squashfs-tools-ng")
    command = [sys.executable, "-I", __file__, "exec", "--parent", str(os.getpid()), "--", program]
    with open(os.memfd_create("sandbox-words", os.MFD_CLOEXEC), "w+b") as said:
        child = subprocess.Popen(
            [*command, "--no-xattr", "/proc/self/fd/0"], stdin=fd, stdout=subprocess.PIPE, stderr=said
        )
        assert child.stdout is not None

        def chunks() -> Iterator[bytes]:
            from sandbox.images.reader import file_chunks

            assert child.stdout is not None
            yield from file_chunks(child.stdout.fileno())
            if child.wait() != 0:
                said.seek(0)
                text = b" ".join(said.read(1000).split()).decode("utf-8", "replace")
                raise DamagedError(f"it is damaged or truncated: {text or 'sqfs2tar failed'}")

        try:
            yield chunks()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _check_room(options: argparse.Namespace) -> None:
    """Refuse before the first byte what cannot fit."""
    from sandbox.images import zipdir

    needed = zipdir.total_size(0)
    room = os.fstatvfs(options.out)
    free = room.f_bavail * room.f_frsize
    if needed is not None and needed > options.max_unpacked:
        raise ArchiveError(
            f"cannot unpack {options.label}: it unpacks to {size(needed)}, the limit is {size(options.max_unpacked)}",
            hint="raise --max-unpacked if it is to be trusted",
        )
    if needed is not None and room.f_blocks and needed > free:
        raise SandboxError(_no_room(options.label, needed, free), hint=_ROOM_HINT)


_ROOM_HINT = "give it more with --tmpfs-size, or a disk with --scratch DIR"


def _no_room(label: str, needed: int | None, free: int) -> str:
    needs = f"it needs {size(needed)}" if needed is not None else "it does not fit"
    return f"cannot unpack {label}: {needs}, {size(free)} are free"


def _trouble(options: argparse.Namespace, error: OSError) -> str:
    if error.errno in _FULL and options.sink == "dir":
        room = os.fstatvfs(options.out)
        if room.f_files and not room.f_favail:
            return f"cannot unpack {options.label}: too many files for the file system ({_ROOM_HINT})"
        there = size(room.f_blocks * room.f_frsize)
        needs = f"no space left, it needs more than the {there} there are"
        return f"cannot unpack {options.label}: {needs} ({_ROOM_HINT})"
    return f"cannot unpack {options.label}: {reason(error)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
