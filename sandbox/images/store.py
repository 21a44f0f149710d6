"""The store: images under the home, each found by the SHA-256 of its own bytes (docs/images.md).

    cache/<digest>.sfs    an image, published complete or not at all
    cache/<key>.tree      what a job made as a tree, for user namespaces without FUSE
    cache/<either>.json   the note: where it came from, when, how large
    cache/<either>.uses   one byte per use: the size counts them, the mtime is the last
    keys/<key>            a symlink to the image that a job made: it may go with its image (cache.py)
    names/<name>          a symlink to the image that a person means: it keeps its image (names.py)
    history/<name>        the generations of a name, newest first
    digests/<dev>-<ino>   remembered content digests (digests.py)
    locks/                build-<key>, held by whoever builds it; names, held by whoever changes what names mean

Opening an image is a few system calls and imports nothing heavy, however many images there are.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from sandbox import fsops
from sandbox.errors import ArchiveError, HostError, SandboxError, SourceError, reason, remedy, warn
from sandbox.images import digests, formats
from sandbox.images.formats import Kind
from sandbox.units import size

IMAGE, TREE, USES, ABOUT = b".sfs", b".tree", b".uses", b".json"
DIGEST_LENGTH = 64
_LONGEST_NOTE = 1 << 16
_OWN = b"-image"  # a memory apart from that of a source, which the same file may be
_TARGET = b"../cache/%s.sfs"
_OPEN_IMAGE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEX = frozenset(b"0123456789abcdef")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class DamagedError(SandboxError):
    """An image's bytes are not what its digest says."""


class About(NamedTuple):
    """The note beside an image or a tree. `created` is ISO 8601, in UTC; sizes are bytes.

    `files` counts inodes. `base` are the digests of the layers that it was made on, bottom first, `-` for a directory.
    What is not known is empty or 0.
    """

    source: str = ""
    created: str = ""
    size: int = 0
    compression: str = ""
    files: int = 0
    digest: str = ""
    base: str = ""


class Store:
    """The directories of the store in the home `home_fd`, which must stay open. `say` gets lines for -v.

    All methods raise SandboxError.
    """

    def __init__(self, home_fd: int, *, say: Callable[[str], None] = lambda _: None) -> None:
        self.home = home_fd
        self.say = say
        self._open: dict[bytes, int] = {}

    def directory(self, name: bytes) -> int:
        """A directory of the store, made if it is missing; open as long as the store is."""
        if name in self._open:
            return self._open[name]
        try:
            try:
                fd = fsops.open_dir(self.home, name)
            except FileNotFoundError:
                fd = fsops.make_dir(self.home, name)
        except OSError as error:
            full = error.errno in NO_SPACE
            why = room(self.home, error) if full else f"{reason(error)} in the sandbox home"
            hint = "set SANDBOX_HOME to another directory"
            raise HostError(
                f"cannot use the image store: {why}", hint=f"free some, or {hint}" if full else hint
            ) from None
        self._open[name] = fd
        return fd

    def listed(self, name: bytes) -> list[bytes]:
        """The names in a directory of the store. Where there is none it is not made: the home may be read-only."""
        return fsops.names(self.directory(name)) if fsops.exists(self.home, name) else []

    @property
    def cache(self) -> int:
        return self.directory(b"cache")

    @property
    def digests(self) -> int:
        return self.directory(b"digests")

    @property
    def locks(self) -> int:
        return self.directory(b"locks")

    @property
    def keys(self) -> int:
        return self.directory(b"keys")

    @property
    def names(self) -> int:
        return self.directory(b"names")

    @property
    def history(self) -> int:
        return self.directory(b"history")

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- opening --------------------------------------------------------------------------------------------------

    def open_image(self, digest: bytes, label: str, *, count: bool = True) -> int | None:
        """The image, or None when there is none. Its shared lock keeps the reaper away as long as it is open.

        Raises DamagedError when the file is not the one that was published: then all of it is read and compared.
        """
        try:
            fd = os.open(digest + IMAGE, _OPEN_IMAGE, dir_fd=self.cache)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot open the image of {label}: {reason(error)}", hint=remedy(error)) from None
        try:
            hold(fd, shared=True)
            if not self.is_intact(fd, digest, label):
                raise DamagedError(  # noqa: TRY301
                    f"the image of {label} is damaged (sha256:{digest.decode()[:12]})"
                )
        except BaseException:
            os.close(fd)
            raise
        if count:
            self.count_use(digest)
        return fd

    def is_intact(self, fd: int, digest: bytes, label: str) -> bool:
        """Whether the file has the content that its name says, as remembered of a file that was not touched since.

        A disk that rots touches no times: what a mount would stumble over is compared each time.
        """
        if (known := self._recall(fd)) is not None:
            return known == digest
        with contextlib.suppress(ArchiveError, SourceError):
            if formats.detect(fd, label) is Kind.SQUASHFS:
                found, _, settled = digests.of_file(fd, label)
                if found == digest and settled:
                    self.remember(fd, digest)
                return found == digest
        return False

    def _recall(self, fd: int) -> bytes | None:
        with contextlib.suppress(OSError):
            known = digests.recall(self.digests, os.fstat(fd), suffix=_OWN, state=_state(fd))
            return known.digest if known else None
        return None

    def known_digest(self, fd: int) -> bytes | None:
        """Of an image of the store, or of a source that was read before: without reading either again."""
        if (own := self._recall(fd)) is not None:
            return own
        known = digests.recall(self.digests, os.fstat(fd))
        return known.digest if known else None

    def digest_of(self, fd: int, label: str) -> bytes:
        """The same, read and remembered where it is not known. Raises SourceError."""
        if (known := self.known_digest(fd)) is not None:
            return known
        digest, status, settled = digests.of_file(fd, label)
        if settled:
            digests.remember(self.digests, status, digests.Remembered(digest, b"", b""))
        return digest

    def remember(self, fd: int, digest: bytes) -> None:
        """That the file was read, and is what it should be."""
        with contextlib.suppress(OSError):
            known = digests.Remembered(digest, b"image", digest)
            digests.remember(self.digests, os.fstat(fd), known, suffix=_OWN, state=_state(fd))

    def count_use(self, key: bytes) -> None:
        # Full disk, read-only home: a use that is not counted must not stop the run.
        with contextlib.suppress(OSError):
            fsops.append(self.cache, key + USES, b".")

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(
        self, draft: fsops.Draft, source: str, *, digest: bytes = b"", created: str = "", base: str = ""
    ) -> bytes:
        """Give a finished squashfs its place; its digest, which whoever has read the draft may know already.

        What is there already stays, unless it is damaged.
        """
        digest = digest or digests.of_file(draft.fd, source)[0]
        hold(draft.fd, shared=True)
        about = describe(draft.fd, source, digest)
        self.note(digest, about._replace(created=created or about.created, base=base))
        for _ in range(2):
            try:
                draft.publish(digest + IMAGE)
                self.remember(draft.fd, digest)
                return digest
            except FileExistsError:
                if self._replaceable(digest):
                    return digest
        raise HostError(
            f"cannot keep the image of {source}: a damaged one is in its place, and cannot be removed",
            hint="sandbox image verify --all",
        )

    def _replaceable(self, digest: bytes) -> bool:
        """True when the image that is there is as good as ours; otherwise it has been removed."""
        name = digest + IMAGE
        try:
            with fsops.closing(os.open(name, _OPEN_IMAGE, dir_fd=self.cache)) as fd:
                if self.is_intact(fd, digest, "the same content"):
                    return True
                fsops.delete_file(self.cache, name, expected=fd)
        except FileNotFoundError:
            pass
        return False

    def note(self, key: bytes, about: About) -> None:
        import json

        fsops.replace_file(self.cache, key + ABOUT, json.dumps(about._asdict()).encode())

    def about(self, key: bytes) -> About:
        """The note; what is missing or damaged in it counts as not known."""
        return read_about(self.cache, key)

    # -- links ----------------------------------------------------------------------------------------------------

    def link(self, parent: int, name: bytes, digest: bytes) -> None:
        """Make a key or a name mean the image, at once and durably. Raises OSError."""
        fsops.switch_name(parent, name, _TARGET % digest)

    @contextlib.contextmanager
    def changing_names(self) -> Iterator[None]:
        """Nobody else changes what names mean, or removes an image, in this block."""
        import fcntl

        try:
            with fsops.closing(fsops.open_lock(self.locks, b"names")) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise self.trouble(error) from None

    def trouble(self, error: OSError) -> HostError:
        """What an OSError in the store means to a person."""
        if error.errno in NO_SPACE:
            return HostError(f"cannot change the image store: {room(self.cache, error)}", hint=ROOM_HINT)
        if error.errno in (*NO_LOCKS, errno.EPERM, errno.EINVAL):
            return HostError(
                f"cannot change the image store: its file system has no locks or no symlinks ({reason(error)})",
                hint="SANDBOX_HOME on a local file system has both",
            )
        return HostError(f"cannot change the image store: {reason(error)}", hint=remedy(error))


ROOM_HINT = "free some with: sandbox cache rm --all, or sandbox image rm NAME"


def room(directory: int, error: OSError | None = None) -> str:
    """How full the store's file system is, as the end of a sentence."""
    status = os.fstatvfs(directory)
    free = status.f_bavail * status.f_frsize
    if error is not None and error.errno == errno.EDQUOT:
        return f"your disk quota is used up; the file system has {size(free)} free"
    if status.f_files and not status.f_favail:
        return "no inode is left for another file in the sandbox home"
    return f"no space left in the sandbox home, {size(free)} are free"


def digest_of(link: bytes) -> bytes | None:
    """The digest that the text of a key or a name means; None when it is none of ours."""
    digest = link[len("../cache/") : -len(IMAGE)]
    return digest if is_digest(digest) and link == _TARGET % digest else None


def is_digest(text: bytes) -> bool:
    return len(text) == DIGEST_LENGTH and _HEX.issuperset(text)


def read_link(parent: int, name: bytes) -> bytes | None:
    """The digest of the image that a key or name means: one readlinkat. None when there is no such link."""
    try:
        return digest_of(os.readlink(name, dir_fd=parent))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG):
            return None
        raise HostError(f"cannot read the image store: {reason(error)}", hint=remedy(error)) from None


def hold(fd: int, *, shared: bool) -> None:
    """A lock on what is built or used tells the reaper that it is no leftover; where there are no locks, none."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _state(fd: int) -> bytes:
    return b"%s %08x" % (digests.state_of(os.fstat(fd)), formats.checksum_of_ends(fd))


def describe(fd: int, source: str, digest: bytes) -> About:
    """The note of the squashfs `fd`, made now."""
    facts = formats.superblock(fd)
    return About(source, timestamp(), os.fstat(fd).st_size, facts.compression, facts.inodes, digest.decode())


def timestamp() -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_about(cache: int, key: bytes) -> About:
    import json

    try:
        known: dict[str, Any] = json.loads(fsops.read_file(cache, key + ABOUT, _LONGEST_NOTE))
        numbers = int(known["size"]), int(known["files"])
        texts = (str(known[name]) for name in ("source", "created", "compression", "digest"))
        source, created, compression, digest = texts
        return About(source, created, numbers[0], compression, numbers[1], digest, str(known.get("base", "")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return About()


def warn_damaged(label: str) -> None:
    warn(f"the cached image of {label} is damaged: it is made anew")
