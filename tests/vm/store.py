"""What is built once and kept between runs, by a digest of what it was made from."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import wheels

_KEPT_BESIDES = 2
# Not built, so that nothing here makes them again.
RESULTS = "results"


class BuildError(Exception):
    """What a machine is made of cannot be had; the message says why."""


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
    """The directory that `make` fills, unless one made from equal `inputs` is there; of others the last used stay."""
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
    with locked() as where:
        target = where / f"{name}-{digest}"
        if target.exists():
            os.utime(target)
            return target
        others = sorted(where.glob(f"{name}-{'?' * len(digest)}"), key=lambda path: path.stat().st_mtime)
        # Several checkouts may use the store at once, each with requirements of its own.
        for old in others[:-_KEPT_BESIDES]:
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=where, prefix="building-") as building:
            fresh = Path(building, "fresh")
            fresh.mkdir()
            make(fresh)
            fresh.rename(target)
        return target


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Held by a run as long as its machine needs what is in the store."""
    with (directory() / "used").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def clear() -> None:
    """The next run builds everything anew, from what the package source offers then. BuildError while one goes on."""
    with locked() as where, (where / "used").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"{where} is used by another run: wait for its end") from None
        for entry in where.iterdir():
            if entry.is_dir() and entry.name != RESULTS:
                shutil.rmtree(entry)
