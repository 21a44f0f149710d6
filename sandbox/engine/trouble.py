"""What to say when a step fails: what was being done, to which thing, why not, and what the user can do."""

import errno
from typing import TYPE_CHECKING, Any

from sandbox.engine import newroot
from sandbox.errors import printable, reason
from sandbox.host import userns_remedy
from sandbox.plan import (
    Allow,
    Attach,
    Chdir,
    Extract,
    File,
    Fuse,
    Guard,
    Image,
    Mkdir,
    Overlay,
    PivotRoot,
    Scratch,
    SetPropagation,
    Source,
    Stack,
    Symlink,
    Tmpfs,
    Tree,
    Unshare,
)

if TYPE_CHECKING:
    from sandbox.engine.steps import Child


def why(error: OSError) -> str:
    """The errno's text, and what the kernel itself says of a mount that failed."""
    text = reason(error)
    return text if error.strerror in (None, "", text) else f"{text} ({error.strerror})"


def label(child: "Child", step: Any) -> str:
    source: Source = child.plan.sources[step.source]
    return printable(source.path) if source.path else "the converted archive"


def describe(child: "Child", step: Any) -> str:
    match step:
        case Unshare():
            return "cannot make the namespaces"
        case Image() | Fuse() | Tree() | Extract():
            return f"cannot mount {label(child, step)}"
        case Attach() | Mkdir() | Chdir():
            verb = {Attach: "mount on", Mkdir: "make the directory", Chdir: "change to the directory"}[type(step)]
            return f"cannot {verb} {printable(child.path_of(step.place))}"
        case Allow():
            return f"cannot put up the fence: {printable(child.path_of(step.place))}"
        case Guard() | Scratch():
            return f"cannot set up {printable(child.procdir_path)}"
        case _:
            return newroot.describe(step) or f"step {type(step).__name__} failed"


def remedy(step: Any, error: OSError) -> str:
    match step, error.errno:
        case Unshare(), number:
            return userns_remedy(number or 0)
        case ((SetPropagation() | PivotRoot()), errno.EINVAL):
            return "/ is not a mount point here, as in a chroot: bind the directory onto itself before the chroot"
        case Chdir(), errno.ENOENT:
            return "name a directory that exists, or NAME/PATH of a mounted tree"
        case Allow(), errno.ENOENT:
            return "name what is there, in the sandbox: --allow-read, --allow-write"
        case Attach(), errno.ENOENT:
            return "create the directory, or let --mkdir do it"
        case ((Mkdir() | File() | Symlink()), errno.EROFS):
            return "what is there is read-only: name a place that exists, or leave out --root-ro"
        case Image(), errno.ENODEV:
            return "the kernel has no squashfs: modprobe squashfs, or use --mode userns"
        case ((Overlay() | Stack() | Tmpfs()), errno.ENODEV):
            return "the kernel has no such filesystem: modprobe overlay"
        case Image(), errno.EINVAL | errno.EIO:
            return "is the image damaged (sandbox image verify --all), or compressed in a way that this kernel lacks?"
        case _:
            return ""
