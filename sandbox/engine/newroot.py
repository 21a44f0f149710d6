"""A root of the run's own, and what is put into a tree one by one: clones, files, links (docs/plan.md, section 14)."""

import os
from typing import TYPE_CHECKING, Any

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.engine.isolation import attributes
from sandbox.errors import printable
from sandbox.level_steps import Bind, File, NewRoot, Node, PivotRoot, Symlink, Text
from sandbox.plan import Fuse
from sandbox.plan_types import Place

if TYPE_CHECKING:
    from sandbox.engine.steps import Child


def bind(child: "Child", step: Bind) -> None:
    from sandbox.engine.steps import check_identity

    place = step.place
    with fsops.closing(sys.openat2(sys.AT_FDCWD, place.path, os.O_PATH, resolve=sys.RESOLVE_NO_LINKS)) as fd:
        check_identity(fd, place.dev, place.ino, place.path)
        child.mounts[step.slot] = child.clone(fd, recursive=True)


def text(child: "Child", step: Text) -> None:
    """Its name goes when all is set up: what has none cannot be mounted any more (ENOENT)."""
    name = b".text%d" % step.slot
    directory = os.dup(child.procdir)
    child.momentary.callback(os.close, directory)
    with fsops.closing(fsops.new_file(child.procdir, name, step.mode)) as fd:
        child.momentary.callback(fsops.delete_file, directory, name)
        fsops.fill(fd, step.content, child.owner)
        child.mounts[step.slot] = child.clone(fd, recursive=False)


def make_directory(child: "Child", place: Place, path: bytes, mode: int) -> int:
    """An O_PATH handle of a directory of the place's base, made with its missing parents."""
    if child.root >= 0 and place.is_root:
        return fsops.make_dirs_in(child.root, path, mode, owner=child.owner)
    start = os.open(b"/", os.O_PATH | os.O_CLOEXEC) if place.is_root else os.dup(child.procdir)
    return fsops.make_dirs(start, path, mode, owner=child.owner)


def file(child: "Child", step: File) -> None:
    parent, name = os.path.split(step.place.path.rstrip(b"/"))
    with fsops.closing(make_directory(child, step.place, parent, 0o755)) as directory:
        if step.content:
            with fsops.closing(fsops.new_file(directory, name, step.mode)) as fd:
                fsops.fill(fd, step.content, child.owner)
        elif not fsops.exists(directory, name):
            with fsops.closing(fsops.new_file(directory, name, step.mode)) as fd:
                fsops.fill(fd, b"", child.owner)


def symlink(child: "Child", step: Symlink) -> None:
    parent, name = os.path.split(step.place.path.rstrip(b"/"))
    with fsops.closing(make_directory(child, step.place, parent, 0o755)) as directory:
        fsops.new_symlink(directory, name, step.target, 0)


def node(child: "Child", step: Node) -> None:
    """/dev is read-only but for this moment."""
    parent, name = os.path.split(step.path)
    read_only = sys.MOUNT_ATTR_RDONLY
    sys.mount_setattr(child.dev, clear_attrs=read_only, recursive=False)
    with fsops.closing(
        fsops.make_dirs(os.dup(child.dev), parent, 0o755, owner=(os.geteuid(), os.getegid()))
    ) as directory:
        if not fsops.exists(directory, name):
            os.close(fsops.new_file(directory, name))
        sys.mount_setattr(child.dev, set_attrs=read_only, recursive=False)
        mount = child.mounts[step.slot]
        attrs = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NOEXEC
        sys.mount_setattr(mount, set_attrs=attrs, propagation=sys.MS_SLAVE)
        with fsops.closing(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as point:
            sys.move_mount(mount, point)
    child.attached.add(step.slot)


def new_root(child: "Child", step: NewRoot) -> None:
    mount = child.mounts[step.slot]
    sys.mount_setattr(mount, set_attrs=attributes(step.attrs), propagation=sys.MS_SLAVE)
    # On top of the root directory nobody sees it: a path from the root starts below what is mounted there.
    with fsops.closing(os.open(b"/", os.O_PATH | os.O_CLOEXEC)) as top:
        sys.move_mount(mount, top)
    child.attached.add(step.slot)
    child.root = mount


def pivot_root(child: "Child", step: PivotRoot) -> None:
    child.momentary.close()
    for fuse in child.plan.steps:
        if isinstance(fuse, Fuse):
            # Answers when the program is up: what it loads must not be looked for in the new root.
            os.fstatvfs(child.mounts[fuse.slot])
    if step.read_only:
        sys.mount_setattr(child.root, set_attrs=sys.MOUNT_ATTR_RDONLY, recursive=False)
    sys.pivot_root(child.root)
    child.root = -1


def describe(step: Any) -> str:
    """What was being done, for the steps of this module; empty for others."""
    match step:
        case Bind(_, place):
            return f"cannot bind {printable(place.path)}"
        case File(place) | Symlink(place):
            return f"cannot make {printable(place.path)}"
        case NewRoot() | PivotRoot():
            return "cannot change to the new root"
        case Node(path=path):
            return f"cannot mount on /dev/{printable(path)}"
        case Text():
            return "cannot make a file"
        case _:
            return ""


DO: dict[type[Any], Any] = {
    Bind: bind,
    Text: text,
    File: file,
    Symlink: symlink,
    Node: node,
    NewRoot: new_root,
    PivotRoot: pivot_root,
}
