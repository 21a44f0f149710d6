"""What becomes of a tree's source in each mode, and where the tree appears."""

import enum
import os

from sandbox.errors import UsageError
from sandbox.images.formats import Kind
from sandbox.plan_types import Base, Mode, Place, Source
from sandbox.record import Record
from sandbox.sources import Opened
from sandbox.spec import Spec, TreeKind


class Treatment(enum.Enum):
    """What becomes of a tree's source."""

    EMPTY = "an empty tmpfs"
    DIRECTORY = "the directory itself"
    IMAGE = "a squashfs image, mounted by the kernel"
    EROFS = "an erofs image, mounted by the kernel from its file"
    FUSE = "a squashfs image, served by squashfuse_ll"
    EXTRACT = "extracted into a tmpfs"
    KEPT = "a kept tree of the cache"


class Material(Record):
    """A tree and what there is to mount: `source` is None for an empty tree; `fd` is handed over beside the plan.

    `above` are the layers stacked on it, the top one last; each of them, and itself then, is `stacked`.
    """

    tree: Opened
    treatment: Treatment
    source: Source | None
    fd: int | None
    above: "tuple[Material, ...]" = ()
    stacked: bool = False


class Target(Record):
    """An absolute mount point as it is on the host before the run, links resolved.

    `status` is None inside an earlier mount or for what is yet to be made.
    """

    path: bytes
    status: os.stat_result | None


def treatment(tree: Opened, spec: Spec, mode: Mode, *, fuse: bool, stacked: bool = False) -> Treatment:
    """What to make of a tree's source in this mode; `stacked`: it is one layer of several."""
    how = _alone(tree, spec, mode, fuse=fuse)
    if not stacked:
        return how
    if mode is Mode.SETUID and how is Treatment.DIRECTORY:
        raise UsageError(
            f"{tree.label}: setuid mode stacks images only", hint="--cache makes one of it, or use --mode userns"
        )
    if mode is Mode.SETUID:
        return Treatment.IMAGE
    # What the cache keeps as a tree has no whiteouts: it may be used by itself.
    return Treatment.EXTRACT if how is Treatment.KEPT else how


def _alone(tree: Opened, spec: Spec, mode: Mode, *, fuse: bool) -> Treatment:
    if tree.kind is TreeKind.EMPTY:
        return Treatment.EMPTY
    if tree.is_directory and not spec.cache:
        return Treatment.DIRECTORY
    if tree.format is Kind.EROFS:
        if mode is not Mode.ROOT:
            raise UsageError(
                f"{tree.label}: an erofs image is mounted in mode root only, not in mode {mode.name.lower()}",
                hint="use a squashfs image, or run as root",
            )
        return Treatment.EROFS
    # To be writable, a tree must be the user's: what we convert is, the owners in a foreign image are anybody's.
    converted = tree.is_directory or tree.format in (Kind.ZIP, Kind.TAR)
    if mode is Mode.SETUID and tree.kind is TreeKind.DYNAMIC and not converted:
        return Treatment.EXTRACT
    if mode is not Mode.USERNS:
        return Treatment.IMAGE
    if tree.is_directory:
        return Treatment.FUSE if fuse else Treatment.DIRECTORY
    if fuse and (tree.kind is TreeKind.STATIC or (spec.cache and converted)):
        return Treatment.FUSE
    return Treatment.KEPT if spec.cache else Treatment.EXTRACT


def mounted_name(tree: Opened) -> Place:
    """Where a tree appears."""
    if tree.name.startswith(b"/"):
        return Place(Base.ROOT, tree.name)
    directory = "static" if tree.kind is TreeKind.STATIC else "dynamic"
    return Place(Base.PROCDIR, directory.encode() + b"/" + tree.name)
