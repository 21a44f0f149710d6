"""The cache: images and kept trees of the store (store.py), found by what they were made from.

    keys/<key>          a symlink to the image that this job made
    cache/<key>.tree    the same as a tree
    locks/build-<key>   held by whoever does the job

A key is the SHA-256 of the source's content digest and of how it is converted. A warm hit is a few system calls and
imports nothing heavy.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sandbox import fsops
from sandbox.errors import HostError, SandboxError, SourceError, reason, remedy
from sandbox.images import digests, formats, store
from sandbox.images.formats import Kind
from sandbox.images.store import IMAGE, TREE, Store
from sandbox.units import size

_FORMAT_VERSION = 2  # a change of how images are made makes old ones unfindable; the reaper takes them in time
FAST, SMALL = "lz4", "zstd"
_OPEN_TREE = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Cached(NamedTuple):
    """An open image or tree, the caller's to close; its name in `cache/`; whether it was there.

    The descriptor carries a shared lock that keeps the reaper away: keep it open as long as image or tree are used.
    """

    fd: int
    name: bytes
    hit: bool


class _Job(NamedTuple):
    """How to make what is missing."""

    key: bytes
    suffix: bytes
    label: str
    needed: int | None  # bytes, a low estimate
    build: Callable[[int], None]  # into an empty draft (image) or directory (tree)


class Cache(Store):
    """The store in the home directory `home_fd`, by job. All methods raise SandboxError.

    `instead` is what else a user can do where there is no room for an image, in words for a hint.
    """

    def __init__(self, home_fd: int, *, say: Callable[[str], None] = lambda _: None, instead: str = "") -> None:
        super().__init__(home_fd, say=say)
        self.instead = instead

    def image(
        self, fd: int, kind: Kind, *, label: str, max_unpacked: int, uid: int, gid: int, compression: str = FAST
    ) -> Cached:
        """The squashfs image of the regular file `fd`, made if it is missing, everything in it owned by uid and gid.

        A squashfs inside the file is taken as it is, one that is the file is packed anew.
        """
        key = self._key(fd, f"image {kind.value} {compression} {uid} {gid}", label)

        def build(out: int) -> None:
            from sandbox.images import convert

            with self._inner(fd, kind, label, max_unpacked) as (inner, inner_kind):
                if inner_kind is Kind.SQUASHFS and kind is not Kind.SQUASHFS:
                    fsops.copy_file(inner, out)
                    return
                made = convert.Output(out, label, max_unpacked, uid, gid, fast=compression == FAST)
                convert.build_image(made, inner, inner_kind)

        return self._find_or_make(_Job(key, IMAGE, label, None, build), fd)

    def tree(self, fd: int, kind: Kind, *, label: str, max_unpacked: int) -> Cached:
        """The kept tree of the regular file `fd`, unpacked if it is missing, owned by whoever runs this."""
        key = self._key(fd, f"tree {kind.value}", label)

        def build(out: int) -> None:
            from sandbox.images import convert

            with self._inner(fd, kind, label, max_unpacked) as (inner, inner_kind):
                convert.extract(inner, inner_kind, out, label=label, max_unpacked=max_unpacked, sync=True)

        from_zip = kind is Kind.ZIP
        return self._find_or_make(_Job(key, TREE, label, -1 if from_zip else None, build), fd)

    def directory_image(
        self, dir_fd: int, *, label: str, max_unpacked: int, uid: int, gid: int, compression: str = FAST
    ) -> Cached:
        """The image of a directory's tree, found by its canonical listing and contents."""
        state, settled = self._listing(dir_fd, label)
        parameters = f"image directory {compression} {uid} {gid}".encode()
        status = os.fstat(dir_fd)
        known = digests.recall(self.digests, status, suffix=b"-tree", state=state)
        if known is None or known.parameters != parameters:
            try:
                digest = known.digest if known else digests.of_tree(dir_fd)
            except SandboxError as error:
                raise SourceError(f"cannot read {label}: {error.message}", hint=error.hint) from None
            self._unchanged(dir_fd, state, label)
            known = digests.Remembered(digest, parameters, _derive(digest, parameters))
            if settled:
                digests.remember(self.digests, status, known, suffix=b"-tree", state=state)

        def build(out: int) -> None:
            from sandbox.images import convert

            made = convert.Output(out, label, max_unpacked, uid, gid, fast=compression == FAST)
            convert.build_image_from_dir(made, dir_fd)
            self._unchanged(dir_fd, state, label)

        return self._find_or_make(_Job(known.key, IMAGE, label, None, build), None)

    def _listing(self, dir_fd: int, label: str) -> tuple[bytes, bool]:
        try:
            return digests.listing_state(dir_fd)
        except SandboxError as error:
            raise SourceError(f"cannot read {label}: {error.message}", hint=error.hint) from None

    def _unchanged(self, dir_fd: int, state: bytes, label: str) -> None:
        if self._listing(dir_fd, label)[0] != state:
            raise SourceError(f"cannot use {label}: it changes while it is read", hint="try again when it is still")

    # -- finding --------------------------------------------------------------------------------------------------

    def _key(self, fd: int, what: str, label: str) -> bytes:
        """The cache key of the file's content and the conversion's parameters."""
        parameters = what.encode()
        status = os.fstat(fd)
        known = digests.recall(self.digests, status)
        if known is not None and known.parameters == parameters:
            return known.key
        if known is not None:
            digest, settled = known.digest, True
        else:
            digest, status, settled = digests.of_file(fd, label)
        key = _derive(digest, parameters)
        if settled:
            digests.remember(self.digests, status, digests.Remembered(digest, parameters, key))
        return key

    def _hit(self, job: _Job, *, hit: bool = True, quiet: bool = False) -> Cached | None:
        name = job.key + TREE
        if job.suffix == IMAGE:
            digest = store.read_link(self.keys, job.key)
            if digest is None:
                return None
            name = digest + IMAGE
        fd = self._open_entry(job, name, quiet=quiet)
        if fd is None:
            return None
        self.count_use(name.partition(b".")[0])
        return Cached(fd, name, hit)

    def _open_entry(self, job: _Job, name: bytes, *, quiet: bool) -> int | None:
        """None when it is not there, or is damaged: then it is to be made anew."""
        try:
            if job.suffix == TREE:
                return _open_tree(self.cache, name)
            return self.open_image(name.partition(b".")[0], job.label, count=False)
        except FileNotFoundError:
            return None
        except store.DamagedError:
            if not quiet:
                store.warn_damaged(job.label)
            return None
        except OSError as error:
            raise HostError(
                f"cannot open the cached {name.decode()}: {reason(error)}",
                hint=f"remove it with: sandbox cache rm {name.decode()}",
            ) from None

    def _find_or_make(self, job: _Job, source: int | None) -> Cached:
        found = self._hit(job, quiet=True)  # of a damaged one, it is told under the lock
        if found is not None:
            return found
        try:
            with self._build_lock(job):
                found = self._hit(job)  # whoever held the lock may have built it
                return found or self._make(job, source)
        except OSError as error:
            if error.errno in store.NO_SPACE:
                raise self._full(job, error) from None
            if error.errno in store.NO_LOCKS:
                raise self.trouble(error) from None
            hint = self.instead or remedy(error)
            raise HostError(f"cannot cache {job.label}: {reason(error)}", hint=hint) from None

    @contextlib.contextmanager
    def _build_lock(self, job: _Job) -> Iterator[None]:
        import fcntl

        name = b"build-" + job.key
        with fsops.closing(fsops.open_lock(self.locks, name)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"waiting for another sandbox that is converting {job.label}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
            # Who waits on the lock we remove finds the image; should two build after all, the first to publish wins.
            with contextlib.suppress(OSError):
                fsops.delete_file(self.locks, name)

    # -- making ---------------------------------------------------------------------------------------------------

    def _make(self, job: _Job, source: int | None) -> Cached:
        self._check_room(job, source)
        self.say(f"converting {job.label} into the cache")
        began = time.monotonic()
        (self._make_tree if job.suffix == TREE else self._make_image)(job)
        self.say(f"converted {job.label} in {time.monotonic() - began:.1f} s")
        made = self._hit(job, hit=False)
        if made is None:
            raise HostError(f"cannot cache {job.label}: the result was removed at once", hint="try again")
        return made

    def _make_image(self, job: _Job) -> None:
        with fsops.Draft(self.cache) as draft:
            store.hold(draft.fd, shared=False)
            try:
                job.build(draft.fd)
            except SandboxError as error:
                raise self._translated(job, error) from None
            self.link(self.keys, job.key, self.publish(draft, job.label))

    def _make_tree(self, job: _Job) -> None:
        temporary = fsops.temporary_name()
        try:
            with fsops.closing(fsops.make_new_dir(self.cache, temporary)) as fd:
                store.hold(fd, shared=False)
                job.build(fd)  # durable: it ends with syncfs
            from sandbox.images import catalog

            size = catalog.tree_size(self.cache, temporary)
            self.note(job.key, store.About(job.label, store.timestamp(), size))
            with contextlib.suppress(FileExistsError):
                fsops.publish_dir(self.cache, temporary, job.key + job.suffix)
        except SandboxError as error:
            raise self._translated(job, error) from None
        finally:
            fsops.remove_tree(self.cache, temporary)

    def _check_room(self, job: _Job, source: int | None) -> None:
        """Refuse before starting what cannot fit. An lz4 image is seldom smaller than the archive; a tree is known."""
        if source is None:
            return
        needed = os.fstat(source).st_size
        if job.needed is not None:
            from sandbox.images import zipdir

            needed = zipdir.total_size(source) or needed
        room = os.fstatvfs(self.cache)
        free = room.f_bavail * room.f_frsize
        if needed > free:
            raise HostError(
                f"cannot cache {job.label}: it needs about {size(needed)} in the sandbox home, {size(free)} are free",
                hint=self._room_hint(),
            )

    def _translated(self, job: _Job, error: SandboxError) -> SandboxError:
        from sandbox.images import convert

        if not isinstance(error, convert.NoSpaceError):
            return error
        return self._full(job, error.cause, error.message.partition(": ")[2])

    def _full(self, job: _Job, error: OSError | None, need: str = "") -> HostError:
        what = f"{need}; {store.room(self.cache, error)}" if need else store.room(self.cache, error)
        return HostError(f"cannot cache {job.label}: {what}", hint=self._room_hint())

    def _room_hint(self) -> str:
        return f"{store.ROOM_HINT}, or {self.instead}" if self.instead else store.ROOM_HINT

    @contextlib.contextmanager
    def _inner(self, fd: int, kind: Kind, label: str, max_unpacked: int) -> Iterator[tuple[int, Kind]]:
        """The source itself, or what an ELF or TEXT source holds."""
        if kind not in (Kind.ELF, Kind.TEXT):
            yield fd, kind
            return
        inner, inner_kind = formats.unwrap(fd, kind, label, max_unpacked)
        with fsops.closing(inner):
            yield inner, inner_kind


def _open_tree(cache: int, name: bytes) -> int:
    """With a lock that keeps its content. Raises FileNotFoundError, too, for one that is being removed."""
    try:
        fd = os.open(name, os.O_RDONLY | _OPEN_TREE, dir_fd=cache)
    except PermissionError:  # a root directory that its owner may not list
        return os.open(name, os.O_PATH | _OPEN_TREE, dir_fd=cache)
    if _is_going(cache, name, fd):
        os.close(fd)
        raise FileNotFoundError(name)
    return fd


def _is_going(cache: int, name: bytes, fd: int) -> bool:
    """Whether this tree is being emptied; if not it is locked, and stays. Its name is looked at after that."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    try:
        return not fsops.same_file(os.fstat(fd), os.stat(name, dir_fd=cache, follow_symlinks=False))
    except FileNotFoundError:
        return True


def _derive(digest: bytes, parameters: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(b"sandbox %d\n%s\n%s" % (_FORMAT_VERSION, parameters, digest)).hexdigest().encode()
