"""What to say when a step fails: what was being done, to which thing, why not, and what the user can do."""

import errno
from typing import TYPE_CHECKING, Any

from sandbox.engine import newroot
from sandbox.errors import printable, reason
from sandbox.host import forbidden_remedy, userns_remedy
from sandbox.level_steps import Allow, File, Idmap, Loopback, PivotRoot, Proc, Shift, Symlink, UserNamespace
from sandbox.plan import (
    Attach,
    Chdir,
    Erofs,
    Extract,
    Fuse,
    Guard,
    IdMap,
    Image,
    Mkdir,
    Overlay,
    Scratch,
    SetPropagation,
    Stack,
    Tmpfs,
    Tree,
    Unshare,
)
from sandbox.plan_types import Source

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
        case Image() | Erofs() | Fuse() | Tree() | Extract():
            return f"cannot mount {label(child, step)}"
        case Attach() | Mkdir() | Chdir():
            verb = {Attach: "mount on", Mkdir: "make the directory", Chdir: "change to the directory"}[type(step)]
            return f"cannot {verb} {printable(child.path_of(step.place))}"
        case Allow():
            return f"cannot put up the fence: {printable(child.path_of(step.place))}"
        case Idmap() | Shift():
            return "cannot map the ids of a mount"
        case Guard() | Scratch():
            return f"cannot set up {printable(child.procdir_path)}"
        case _:
            return newroot.describe(step) or f"step {type(step).__name__} failed"


def remedy(step: Any, error: OSError) -> str:
    """What the user can do about it; empty where nobody knows."""
    for steps, numbers, text in _REMEDIES:
        if isinstance(step, steps) and error.errno in numbers:
            return text
    if isinstance(step, Unshare | IdMap | UserNamespace):
        return userns_remedy(error.errno or 0)
    return forbidden_remedy() if error.errno in _FORBIDDEN else ""


_FORBIDDEN = (errno.EPERM, errno.EACCES)
_REMEDIES: tuple[tuple[tuple[type, ...], tuple[int, ...], str], ...] = (
    (
        (SetPropagation, PivotRoot),
        (errno.EINVAL,),
        "/ is not a mount point here, as in a chroot: bind the directory onto itself before the chroot",
    ),
    ((Idmap, Shift), (errno.EINVAL,), "its filesystem cannot on this kernel: copy it to another one"),
    ((Chdir,), (errno.ENOENT,), "name a directory that exists, or NAME/PATH of a mounted tree"),
    ((Allow,), (errno.ENOENT,), "name what is there, in the sandbox: --allow-read, --allow-write"),
    ((Attach,), (errno.ENOENT,), "create the directory, or let --mkdir do it"),
    (
        (Mkdir, File, Symlink),
        (errno.EROFS,),
        "what is there is read-only: name a place that exists, or leave out --root-ro",
    ),
    ((Image,), (errno.ENODEV,), "the kernel has no squashfs: modprobe squashfs, or use --mode userns"),
    (
        (Erofs,),
        (errno.ENODEV, errno.ENOTBLK),
        (
            "the kernel mounts erofs from a file since Linux 6.12 (modprobe erofs), and not from one in a tmpfs: "
            "use a squashfs image"
        ),
    ),
    ((Overlay, Stack, Tmpfs), (errno.ENODEV,), "the kernel has no such filesystem: modprobe overlay"),
    (
        (Image, Erofs),
        (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.EUCLEAN),
        (
            "is the image damaged (sandbox image verify reads all of one, image import of a file), or compressed in a "
            "way that this kernel lacks?"
        ),
    ),
    (
        (Overlay, Stack),
        (errno.EPERM, errno.EINVAL),
        (
            "it may be in an overlay twice already, or have mounts in it that a sandbox or container around this one "
            "locked: --workspace ro, or another directory"
        ),
    ),
    ((Overlay, Stack), (errno.ELOOP,), "a layer is in the stack twice, or lies in another one: name each once"),
    (
        (Loopback,),
        (errno.EPERM,),
        "a container may withhold the right to: give it CAP_NET_ADMIN (--cap-add NET_ADMIN), or use --net host",
    ),
    (
        (Proc,),
        (errno.EPERM,),
        (
            "what masks a container's /proc forbids a new one: --isolation none, or start the container with "
            "--security-opt unmask=ALL (Docker: systempaths=unconfined)"
        ),
    ),
)
