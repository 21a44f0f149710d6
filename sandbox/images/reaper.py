"""The reaper: a background process that takes out of the cache what nobody has used for long.

Double-forked, so that it is nobody's child; it starts at most once an hour, one per home, at idle priority.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from sandbox import fsops
from sandbox.errors import SandboxError, UsageError, printable

if TYPE_CHECKING:
    from sandbox.images.store import Store

NAME = "sandbox-reaper"
AGE_VARIABLE, BYTES_VARIABLE = "SANDBOX_CACHE_MAX_AGE_DAYS", "SANDBOX_CACHE_MAX_BYTES"
DEFAULT_AGE_DAYS = 30.0
_INTERVAL = 3600.0
_LEFTOVER_AGE = 3600.0
_DIGEST_AGE = 90 * 86400.0  # a forgotten digest costs one hashing
_ORPHAN_DIGEST_AGE = 86400.0
_STAMP = b"reaper"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Settings(NamedTuple):
    """`max_age_days` 0: images do not age. `max_bytes` None: no bound."""

    max_age_days: float
    max_bytes: int | None


class Report(NamedTuple):
    """What one pass did. `ran` is False when another process was at it."""

    evicted: tuple[str, ...]
    freed: int
    leftovers: int
    ran: bool = True


def settings(environment: Mapping[str, str]) -> Settings:
    """The limits from SANDBOX_CACHE_MAX_AGE_DAYS and SANDBOX_CACHE_MAX_BYTES. Raises UsageError."""
    age_text = environment.get(AGE_VARIABLE, "").strip()
    try:
        age = float(age_text) if age_text else DEFAULT_AGE_DAYS
    except ValueError:
        age = -1.0
    if not 0 <= age < 1e6:
        raise UsageError(
            f"{AGE_VARIABLE} is '{printable(age_text)}', which is no number of days", hint="0 switches ageing off"
        )
    return Settings(age, _bytes(environment.get(BYTES_VARIABLE, "").strip()))


def _bytes(text: str) -> int | None:
    if not text:
        return None
    unit = text[-1].upper() if not text[-1].isdigit() else ""
    number = text[: len(text) - len(unit)]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()):
        what = f"{BYTES_VARIABLE} is '{printable(text)}', which is no size"
        raise UsageError(what, hint="bytes, or with K, M, G or T")
    return int(number) * _UNITS[unit]


# -- starting ---------------------------------------------------------------------------------------------------


def maybe_start(home_fd: int, *, clean_records: Callable[[int], None] | None = None) -> None:
    """Start the reaper if the last one is an hour ago. Costs one stat otherwise; never raises, never waits for it."""
    try:
        if not is_due(home_fd):
            return
        limits = settings(os.environ)
        with contextlib.ExitStack() as stack:
            locks = stack.enter_context(fsops.closing(fsops.make_dir(home_fd, b"locks")))
            fd = stack.enter_context(fsops.closing(fsops.open_lock(locks, _STAMP)))
            fsops.touch(fd)  # at once: who ends in the same moment need not start a second
        start(home_fd, limits, clean_records=clean_records)
    except UsageError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"sandbox: the cache is not cleaned: {error}\n".encode())
    except OSError:
        pass  # a full or read-only home: nothing that the run which just ended should fail for


def is_due(home_fd: int) -> bool:
    """Whether the last one is an hour ago. Raises OSError."""
    try:
        stamp = os.stat(b"locks/" + _STAMP, dir_fd=home_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return not 0 <= time.time() - stamp.st_mtime < _INTERVAL


def start(home_fd: int, limits: Settings, *, clean_records: Callable[[int], None] | None = None) -> None:
    """Start the reaper now and return. Raises OSError when there can be no process."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    # Nothing may escape into the caller's code below this line.
    try:
        os.setsid()
        if os.fork() == 0:
            home = _detach(home_fd)
            run_once(
                home,
                now=time.time(),
                max_age_days=limits.max_age_days,
                max_bytes=limits.max_bytes,
                clean_records=clean_records,
            )
    except BaseException:
        os._exit(1)
    os._exit(0)


def _detach(home_fd: int) -> int:
    """Become a daemon that holds on to nothing but the home, whose new descriptor is returned."""
    home = fcntl.fcntl(home_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    if home != 3:
        os.dup2(home, 3, inheritable=False)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(Exception):
        os.nice(19)
        import prctl

        # Not set_proctitle: it looks for the arguments beside environ, and crashes when a variable was set since.
        prctl.set_name(NAME)
    with contextlib.suppress(Exception):
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    return 3


# -- one pass ---------------------------------------------------------------------------------------------------


def run_once(
    home_fd: int,
    *,
    now: float,
    max_age_days: float,
    max_bytes: int | None,
    clean_records: Callable[[int], None] | None = None,
) -> Report:
    """Evict, and clean what was left behind. Raises SandboxError, OSError when the home itself cannot be used."""
    from sandbox import stored
    from sandbox.images import catalog
    from sandbox.images.store import Store

    with contextlib.ExitStack() as stack:
        images = stack.enter_context(Store(home_fd))
        stamp = stack.enter_context(fsops.closing(fsops.open_lock(images.locks, _STAMP)))
        try:
            fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Report((), 0, 0, ran=False)
        except OSError as error:
            raise images.trouble(error) from None
        fsops.touch(stamp)
        evicted, freed = _evict(images, now, max_age_days, max_bytes)
        leftovers = catalog.remove_leftovers(images, before=now - _LEFTOVER_AGE)
        leftovers += _forget_digests(images.digests, images.cache, now)
        with fsops.closing(fsops.make_dir(home_fd, stored.DIRECTORY)) as plans:
            leftovers += stored.prune(plans, now=now)
        if clean_records is not None:
            clean_records(home_fd)
        return Report(evicted, freed, leftovers)


def _evict(images: "Store", now: float, max_age_days: float, max_bytes: int | None) -> tuple[tuple[str, ...], int]:
    """First what is too old, then the least recently used until the rest fits; never what a name keeps."""
    from sandbox.images import catalog, names

    found = catalog.usage(images.cache)
    total = sum(image.size for image in found)
    evicted: list[str] = []
    doomed: list[bytes | None] = []
    freed = 0
    with images.changing_names():
        kept = names.kept(images)
        for image in reversed(found):
            too_old = max_age_days > 0 and now - image.last_used > max_age_days * 86400
            too_much = max_bytes is not None and total - freed > max_bytes
            recent = now - image.last_used < catalog.RECENT_SECONDS
            if not (too_old or too_much) or recent or image.name.partition(b".")[0] in kept:
                continue
            with contextlib.suppress(SandboxError, OSError):
                name = image.name.decode()
                doomed.append(catalog.detach(images, name, before=now - catalog.RECENT_SECONDS))
                evicted.append(name)
                freed += image.size
    # Nobody who names an image waits for the removal of large files.
    for one in doomed:
        catalog.dispose(images, one)
    return tuple(evicted), freed


def _forget_digests(digests: int, cache: int, now: float) -> int:
    """Digests of files that were not hashed for long, or whose image is gone."""
    keys = {name.partition(b".")[0] for name in fsops.names(cache)}
    forgotten = fsops.remove_drafts(digests, before=now - _LEFTOVER_AGE)
    for name in fsops.names(digests):
        with contextlib.suppress(OSError):
            age = now - os.stat(name, dir_fd=digests, follow_symlinks=False).st_mtime
            if age > _DIGEST_AGE or (age > _ORPHAN_DIGEST_AGE and _key_of(digests, name) not in keys):
                fsops.remove_tree(digests, name)
                forgotten += 1
    return forgotten


def _key_of(digests: int, name: bytes) -> bytes:
    lines = fsops.read_file(digests, name, 4096).split(b"\n")
    return lines[3] if len(lines) > 3 else b""
