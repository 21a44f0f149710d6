"""From open sources to what can be mounted, through the image services."""

import contextlib
import os
import time
from collections.abc import Callable

from sandbox import fsops, host, sources, treatments
from sandbox.engine.syscalls import statfs_type
from sandbox.errors import HostError, SourceError
from sandbox.home import Home
from sandbox.host import Host
from sandbox.images import formats
from sandbox.plan_types import Mode, Source, SourceKind
from sandbox.sources import Opened
from sandbox.spec import Spec
from sandbox.treatments import Material, Treatment

Say = Callable[[str], None]
_HINT_AFTER_SECONDS = 0.1


class Maker:
    """Turns open sources into what can be mounted, through the image services."""

    def __init__(
        self,
        spec: Spec,
        machine: Host,
        mode: Mode,
        where: Home,
        stack: contextlib.ExitStack,
        *,
        say: Say,
        hint: Say,
        build: bool,
    ) -> None:
        self.spec, self.host, self.mode, self.home, self.stack = spec, machine, mode, where, stack
        self.say, self.hint, self.build = say, hint, build
        self.converted: list[tuple[str, float]] = []
        self.fuse_program = b""

    def fuse(self) -> bool:
        """Whether images can go through FUSE; asked only where it matters."""
        if not self.fuse_program and host.fuse_usable():
            self.fuse_program = host.find_program("squashfuse_ll")
        return bool(self.fuse_program)

    def material(self, tree: Opened) -> Material:
        """What there is to mount of a tree, and of every layer stacked on it."""
        stacked = bool(tree.above)
        layers = [self.layer(layer, stacked=stacked).replace(stacked=stacked) for layer in tree.layers]
        # Archives with the same content are one image of the cache.
        images = [(layer.tree.label, layer.source) for layer in layers if layer.treatment is Treatment.IMAGE]
        sources.refuse_twice((label, (image.dev, image.ino)) for label, image in images if image and image.path)
        return layers[0].replace(above=tuple(layers[1:]))

    def layer(self, tree: Opened, *, stacked: bool) -> Material:
        how = self.treatment(tree, stacked=stacked)
        if how is Treatment.EMPTY:
            return Material(tree, how, None, None)
        assert tree.status is not None
        if how is Treatment.DIRECTORY or not self.build:
            return Material(tree, how, sources.describe(tree.path, tree.status), None)
        if how is Treatment.EROFS:
            return self.from_descriptor(tree, how, tree.fd)
        if tree.is_directory:
            make = self.cached if self.spec.cache else self.converted_source
            return make(tree, how, tree.fd, None)
        if self.spec.cache and tree.format is not formats.Kind.SQUASHFS:
            return self.cached(tree, how, tree.fd, tree.format)
        fd, kind = self.unwrapped(tree)
        if how is Treatment.EXTRACT:
            self.check_room(fd, kind, tree)
            return self.from_descriptor(tree, how, fd)
        if how is Treatment.KEPT:
            return self.cached(tree, how, fd, kind)
        if kind is formats.Kind.SQUASHFS:
            return self.from_descriptor(tree, how, fd)
        return self.converted_source(tree, how, fd, kind)

    def workspace(self, tree: Opened) -> Material:
        """Raises HostError where it cannot be written through to."""
        assert tree.status is not None
        shown = not self.needs_image(tree)
        if shown or not self.build:
            how = Treatment.DIRECTORY if shown else Treatment.IMAGE
            return Material(tree, how, sources.describe(tree.path, tree.status), None)
        if self.spec.workspace == "rw":
            why, hint = "it is on a filesystem that cannot be id-mapped", "have a volume of ext4, xfs or btrfs there"
            if not self.host.id_maps:
                why, hint = "an id-mapped mount needs a user namespace", "sysctl user.max_user_namespaces=15000"
            raise HostError(
                f"--workspace rw: the kernel cannot show {tree.label} as a job's own: {why}",
                hint=f"leave --workspace out for a copy, or {hint}",
            )
        return self.image_in_memory(tree, Treatment.IMAGE, tree.fd, None)

    def needs_image(self, tree: Opened) -> bool:
        """Whether the kernel cannot show a directory as the files of a job of root's, but an image of it it can."""
        if self.mode is not Mode.ROOT or self.spec.isolation == "none" or not tree.is_directory:
            return False
        from sandbox import isolation

        foreign = isolation.ids(self.spec, self.mode) is not None
        return foreign and not host.maps_ids(statfs_type(tree.fd), self.host)

    def treatment(self, tree: Opened, *, stacked: bool) -> Treatment:
        needs_fuse = self.mode is Mode.USERNS and (tree.format is not None or self.spec.cache)
        how = treatments.treatment(tree, self.spec, self.mode, fuse=needs_fuse and self.fuse(), stacked=stacked)
        if how is Treatment.KEPT and os.fstatvfs(self.home.fd).f_flag & os.ST_NOEXEC:
            # A bind mount of a kept tree would be noexec as well, and programs of an archive could not be started.
            return Treatment.EXTRACT
        return Treatment.IMAGE if how is Treatment.DIRECTORY and self.needs_image(tree) else how

    def unwrapped(self, tree: Opened) -> tuple[int, formats.Kind]:
        assert tree.format is not None
        if tree.format in (formats.Kind.ELF, formats.Kind.TEXT):
            fd, kind = formats.unwrap(tree.fd, tree.format, tree.label, self.spec.max_unpacked)
            return self.stack.enter_context(fsops.closing(fd)), kind
        return tree.fd, tree.format

    def from_descriptor(self, tree: Opened, how: Treatment, fd: int) -> Material:
        """A source that is used as it is: the user's own file by its path, anything made by us as memory."""
        status = os.fstat(fd)
        if fd == tree.fd:
            return Material(tree, how, sources.describe(tree.path, status), fd)
        return Material(tree, how, Source(SourceKind.MEMORY, b""), fd)

    def converted_source(self, tree: Opened, how: Treatment, fd: int, kind: formats.Kind | None) -> Material:
        started = time.monotonic()
        made = self.image_in_memory(tree, how, fd, kind)
        self.converted.append((tree.label, time.monotonic() - started))
        return made

    def image_in_memory(self, tree: Opened, how: Treatment, fd: int, kind: formats.Kind | None) -> Material:
        from sandbox.images import convert

        image = convert.image_in_memory(
            fd,
            kind,
            label=tree.label,
            max_unpacked=self.spec.max_unpacked,
            uid=self.host.uid,
            gid=self.host.gid,
        )
        self.stack.enter_context(fsops.closing(image))
        return Material(tree, how, Source(SourceKind.MEMORY, b""), image)

    def cached(self, tree: Opened, how: Treatment, fd: int, kind: formats.Kind | None) -> Material:
        """What the cache has or makes of the source. Its descriptor also keeps the reaper away from a tree."""
        from sandbox.images import cache

        label, limit = tree.label, self.spec.max_unpacked
        uid, gid = self.host.uid, self.host.gid
        with cache.Cache(self.home.fd, say=self.say, instead="run without --cache") as store:
            if kind is None:
                kept = store.directory_image(fd, label=label, max_unpacked=limit, uid=uid, gid=gid)
            elif how is Treatment.KEPT:
                kept = store.tree(fd, kind, label=label, max_unpacked=limit)
            else:
                kept = store.image(fd, kind, label=label, max_unpacked=limit, uid=uid, gid=gid)
        self.stack.enter_context(fsops.closing(kept.fd))
        path = os.path.join(self.home.path, b"cache", kept.name)
        return Material(tree, how, sources.describe(path, os.fstat(kept.fd)), kept.fd)

    def check_room(self, fd: int, kind: formats.Kind, tree: Opened) -> None:
        """Say before starting, not after, that a tmpfs will not hold the archive."""
        from sandbox.images import convert

        needed = convert.unpacked_size(fd, kind)
        room = self.spec.tmpfs_size or self.host.memory // 2
        if needed is not None and needed > room:
            raise SourceError(
                f"{tree.label} unpacks to {needed >> 20} MiB, the tmpfs has room for {room >> 20} MiB",
                hint="--tmpfs-size gives it more, --cache keeps the tree on disk",
            )

    def extract_argv(self, label: str, stacked: bool, owner: tuple[int, int] | None) -> tuple[bytes, ...]:
        from sandbox.images import convert

        limit = self.spec.max_unpacked
        return convert.worker_argv(sink="dir", max_unpacked=limit, label=label, whiteouts=stacked, owner=owner)

    def copy_argv(self, label: str) -> tuple[bytes, ...]:
        from sandbox.images import convert

        return convert.copier_argv(max_unpacked=self.spec.max_unpacked, label=label)

    def show_hint(self) -> None:
        slow = [(label, seconds) for label, seconds in self.converted if seconds > _HINT_AFTER_SECONDS]
        if slow:
            seconds = sum(seconds for _, seconds in slow)
            self.hint(
                f"converting {', '.join(label for label, _ in slow)} took {seconds:.1f} s; --cache keeps the result"
            )
