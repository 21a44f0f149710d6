"""What is built once and kept between runs, by a digest of what it was made from."""

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import wheels


def directory() -> Path:
    """Root's, since the files in there become the root of a machine."""
    where = wheels.cache_directory() / "vm"
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    return where


@contextlib.contextmanager
def locked() -> Iterator[Path]:
    """Held while something is built or removed, by one run at a time."""
    where = directory()
    with (where / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield where


def kept(name: str, inputs: object, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, unless one made from equal `inputs` is there; older ones of the name go."""
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
    with locked() as where:
        target = where / f"{name}-{digest}"
        if target.exists():
            return target
        for old in where.glob(f"{name}-{'?' * len(digest)}"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=where, prefix="building-") as building:
            fresh = Path(building, "fresh")
            fresh.mkdir()
            make(fresh)
            fresh.rename(target)
        return target


def clear() -> None:
    """The next run builds everything anew, from what the package source offers then."""
    with locked() as where:
        for entry in where.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
