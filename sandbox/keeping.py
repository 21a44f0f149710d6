"""--keep: artefacts are copied out of a job's tree by descriptor, when nothing of it is alive, however it ended."""

import contextlib
import errno
import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING

from sandbox import copies, fsops, outputs
from sandbox.engine.syscalls import CLONE_NEWUSER, setns, syncfs
from sandbox.errors import SandboxError, UsageError, printable, reason
from sandbox.home import Home
from sandbox.record import Record
from sandbox.spec import Keep, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/nsfs.h: the user namespace that owns a namespace.
_NS_GET_USERNS = 0xB701


class Destination(Record):
    """Where one artefact goes: a name that is not taken in an open directory. `text` is for messages."""

    keep: Keep
    parent: int
    name: bytes
    text: str


class Kept(Record):
    """What came of one, as reports hold it. `error` is empty where all is well; sizes are bytes."""

    source: str
    target: str
    files: int = 0
    size: int = 0
    skipped: int = 0
    error: str = ""


def open_destinations(spec: Spec, cwd: bytes, stack: contextlib.ExitStack) -> list[Destination]:
    """Looked at before anything runs: a job should not end before it is known that its results have no place to go.

    Raises UsageError.
    """
    found = [_open_destination(keep, cwd, stack) for keep in spec.keeps]
    # What is elsewhere, or covered, in the job is for the copy to find out.
    for destination in () if spec.chdir or spec.refinements or spec.trees else found:
        _refuse_inside(destination, cwd)
    return found


def _refuse_inside(destination: Destination, cwd: bytes) -> None:
    source = destination.keep.source
    if source.startswith(b"/"):
        return
    with contextlib.suppress(OSError):
        status = os.stat(os.path.join(cwd, source))
        above = os.readlink(b"/proc/self/fd/%d" % destination.parent)
        while not fsops.same_file(os.stat(above), status):
            if above == b"/":
                return
            above = os.path.dirname(above)
        raise UsageError(
            f"--keep: {destination.text} lies in {printable(source)}, which would be copied into itself",
            hint="SRC=DEST, DEST elsewhere",
        )


def _open_destination(keep: Keep, cwd: bytes, stack: contextlib.ExitStack) -> Destination:
    text = printable(keep.target)
    parent, name = outputs.place_of(keep)
    try:
        fd = os.open(os.path.join(cwd, parent) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.enter_context(fsops.closing(fd))
        with fsops.Draft(fd):
            pass
    except OSError as error:
        raise UsageError(
            f"--keep: cannot write to {text}: {reason(error)}",
            hint="SRC=DEST, DEST in a directory that you may write to",
        ) from None
    if fsops.exists(fd, name):
        raise UsageError(
            f"--keep: {printable(os.path.join(parent, name))} exists", hint="remove it, or name another: SRC=DEST"
        )
    return Destination(keep, fd, name, text)


def copy_out(
    destination: Destination, root: int, directory: int, reader: "fsops.Reader", limit: int, umask: int, home: Home
) -> Kept:
    """One artefact, complete or not at all. Relative sources are beneath the command's working `directory`.

    What is half done is recorded in the `home`.
    """
    source = destination.keep.source
    kept = Kept(os.fsdecode(source), os.fsdecode(destination.keep.target))
    copy = fsops.Copy(reader, limit, umask)
    try:
        with fsops.closing(fsops.open_found(root if source.startswith(b"/") else directory, source)) as found:
            reader.check(os.fstat(found), source)
            with fsops.closing(fsops.open_readable(found)) as opened:
                if stat.S_ISDIR(os.fstat(opened).st_mode):
                    _publish_tree(copy, opened, destination, home)
                else:
                    _publish_file(copy, opened, destination, home)
    except OSError as error:
        return kept.replace(error=_why(error, source))
    return kept.replace(files=copy.files, size=copy.taken, skipped=copy.skipped)


def as_root_inside(mount_namespace: int, copy: "Callable[[], Kept]") -> Kept:
    """What `copy` says, done in the user namespace of a run's mounts: there its user reads what all its ids wrote."""
    userns = fcntl.ioctl(mount_namespace, _NS_GET_USERNS)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with fsops.closing(userns), open(reader, "rb") as answer:
        if (pid := os.fork()) == 0:
            try:
                setns(userns, CLONE_NEWUSER)
                os.write(writer, json.dumps(list(copy())).encode())
            finally:
                os._exit(0)
        os.close(writer)
        data = answer.read()
    # Whoever waits for all children of this process may have been faster.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if not data:
        raise SandboxError("--keep: the process that copies has died")
    return Kept(*json.loads(data))


def _publish_tree(copy: "fsops.Copy", opened: int, destination: Destination, home: Home) -> None:
    parent, source = destination.parent, destination.keep.source
    with contextlib.closing(copies.Claim(home, parent, source)) as claim:
        copy.own_name = claim.name
        with fsops.closing(fsops.make_new_dir(parent, claim.name)) as made:
            try:
                claim.made(os.fstat(made))
                copy.tree(opened, made, source)
                syncfs(made)
                fsops.publish_dir(parent, claim.name, destination.name)
            except BaseException:
                fsops.remove_tree(parent, claim.name)
                raise


def _publish_file(copy: "fsops.Copy", opened: int, destination: Destination, home: Home) -> None:
    parent, source = destination.parent, destination.keep.source
    claims = []
    with contextlib.ExitStack() as stack:

        def called() -> bytes:
            claims.append(stack.enter_context(contextlib.closing(copies.Claim(home, parent, source))))
            return claims[0].name

        draft = stack.enter_context(fsops.Draft(parent, called=called))
        for claim in claims:
            claim.made(os.fstat(draft.fd))
        copy.file(opened, draft.fd, source)
        draft.publish(destination.name)


def _why(error: OSError, source: bytes) -> str:
    # What we raise ourselves says more than the errno.
    text = error.strerror or reason(error)
    if error.errno == errno.EXDEV:
        text = "it leads out of the working directory, or into something mounted there"
    name = error.filename
    where = f" ('{printable(name)}')" if isinstance(name, bytes) and name not in (source, b"") else ""
    return f"cannot keep {printable(source)}: {text}{where}"


def complaint(kept: Kept) -> str:
    """What a person must know of one that is there; empty where that is nothing."""
    if not kept.skipped:
        return ""
    return f"kept {printable(os.fsencode(kept.target))} without {kept.skipped} that are no files, directories or links"
