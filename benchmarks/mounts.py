"""How images mount and how they read: `python mounts.py LOCKS LARGEST IMAGE...`, in a mount namespace of its own.

For benchmarks/formats.py. LOCKS is an empty directory, LARGEST the path of a file in every image. Prints a JSON list
with an object for each image. In seconds: `first` and `next`, a mount when nobody has the image, and when somebody
has; `walk`, `read` and `largest`, to look at every file, to read every file, and to read LARGEST; `random`, one read of
4 KiB of it. All that is read comes from the disk. `shared`: the part of LARGEST that a second sandbox finds in memory
when a first one has read it.
"""

import contextlib
import ctypes
import json
import mmap
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from sandbox.engine import loop, syscalls

_PIECE = 1 << 20
_READS = 1000
_TURNS = 15
_SQUASHFS = b"hsqs"


class Image:
    """One image file, mounted as the engines do: squashfs over the loop device that all share, erofs from the file."""

    def __init__(self, path: bytes, locks: int) -> None:
        self.path, self.locks = path, locks
        self.file = os.open(path, os.O_RDONLY)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[bytes]:
        """A path to the mount, which is attached nowhere and goes at the end."""
        with contextlib.ExitStack() as stack:
            kind, source = b"erofs", self.path
            if os.pread(self.file, 4, 0) == _SQUASHFS:
                kind, source = b"squashfs", stack.enter_context(loop.attached(self.file, self.locks))
            mount = syscalls.make_mount(kind, [(b"ro", None), (b"source", source)], syscalls.MOUNT_ATTR_RDONLY)
        try:
            yield b"/proc/self/fd/%d" % mount
        finally:
            os.close(mount)

    @contextlib.contextmanager
    def cold(self) -> Iterator[bytes]:
        """The same, with nothing of it in memory."""
        os.fsync(self.file)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
        with self.mounted() as root:
            yield root

    def mount_time(self) -> float:
        """Median of some mounts, in the state in which the image is."""
        times = []
        for _ in range(_TURNS):
            start = time.monotonic()
            with self.mounted():
                times.append(time.monotonic() - start)
        return statistics.median(times)

    def time_of(self, task: Callable[[bytes], None]) -> float:
        """The best of three: others use the disk as well."""
        times = []
        for _ in range(3):
            with self.cold() as root:
                start = time.monotonic()
                task(root)
                times.append(time.monotonic() - start)
        return min(times)

    def shared(self, name: bytes) -> float:
        """The part of a file that is in memory in a second mount when the first has read it."""
        with self.cold() as one, self.mounted() as two:
            _read(one + b"/" + name)
            return _resident(two + b"/" + name)


def _files(root: bytes) -> Iterator[bytes]:
    for directory, _, names in os.walk(root + b"/"):
        yield from (os.path.join(directory, name) for name in names)


def _walk(root: bytes) -> None:
    for path in _files(root):
        os.lstat(path)


def _read(path: bytes) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(_PIECE):
            pass


def _read_all(root: bytes) -> None:
    for path in _files(root):
        _read(path)


def _read_at_random(path: bytes) -> None:
    chosen = random.Random(1)
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for _ in range(_READS):
            os.pread(file.fileno(), 4096, chosen.randrange(size - 4096))


def _resident(path: bytes) -> float:
    """By mincore(2)."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as memory:
        pages = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(memory)
        ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(memory)), pages)
        del start
    return sum(page & 1 for page in pages) / len(pages)


def measure(image: Image, largest: bytes) -> dict[str, float]:
    """All of one image."""
    found = {"first": image.mount_time()}
    with image.mounted():
        found["next"] = image.mount_time()
    return found | {
        "walk": image.time_of(_walk),
        "read": image.time_of(_read_all),
        "largest": image.time_of(lambda root: _read(root + b"/" + largest)),
        "random": image.time_of(lambda root: _read_at_random(root + b"/" + largest)) / _READS,
        "shared": image.shared(largest),
    }


def main() -> None:
    """Print what was measured."""
    locks = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
    images = [Image(os.fsencode(path), locks) for path in sys.argv[3:]]
    print(json.dumps([measure(image, os.fsencode(sys.argv[2])) for image in images]))


if __name__ == "__main__":
    main()
