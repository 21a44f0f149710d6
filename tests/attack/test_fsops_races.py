"""Every operation of sandbox/fsops, and what is built on them, while somebody changes the directory beneath it.

The attacker owns the directory: another user against root's cleaning, or a process of the same user. It exchanges names
with links, directories and files of its own, before, while and after they are used, and catches temporary names as
they appear. Canaries outside of the directory must be as they were: data, metadata, times, names.
"""

import collections
import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import stat
import traceback

import prctl
import pytest

from sandbox import fsops, records
from sandbox.images import archive, catalog, reaper, sinks
from sandbox.images.store import Store
from tests.support import no_tmpfile

SOAK = int(os.environ.get("SANDBOX_SOAK", "0"))
ATTEMPTS = SOAK * 150 or 40
KEY = b"a" * 64
SECRET = b"the canary's own words"
NOREPLACE, EXCHANGE = 1, 2


# -- what is attacked: how each attempt begins, what is done, and which names the attacker goes for ---------------


def ours() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


def a_file(fd, path=b"f"):
    above, _, name = path.rpartition(b"/")
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        parent = stack.enter_context(fsops.closing(fsops.open_path(fd, above or b".")))
        file = stack.enter_context(fsops.closing(fsops.new_file(parent, name)))
        os.write(file, b"ours")


def a_tree(fd, name=b"d"):
    with contextlib.suppress(OSError):
        fsops.make_dirs(os.dup(fd), name + b"/a/b", 0o777, owner=ours())
    for part in (name + b"/x", name + b"/a/y", name + b"/a/b/z"):
        a_file(fd, part)


def nothing(fd):
    """The attempt begins in an empty directory."""


def publish(fd):
    with fsops.Draft(fd) as draft:
        os.write(draft.fd, b"x")
        draft.publish(b"f", durable=False)


def publish_dir(fd):
    temporary = fsops.temporary_name()
    os.close(fsops.make_new_dir(fd, temporary))
    fsops.publish_dir(fd, temporary, b"d")


def publish_copy(fd):
    with fsops.closing(os.memfd_create("source")) as source:
        os.write(source, b"x" * 5000)
        fsops.publish_copy(source, fd, b"f")


def delete_exactly(fd):
    with fsops.closing(os.open(b"f", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)) as expected:
        # What was opened may be the attacker's already; that one it would be right to delete.
        if os.read(expected, 4) != b"ours" or not fsops.delete_file(fd, b"f", expected=expected):
            raise OSError(errno.ESTALE, "it was another")


def read(fd):
    assert SECRET not in fsops.read_file(fd, b"f"), "it read outside"


def lock(fd):
    with fsops.closing(fsops.open_lock(fd, b"f")) as lock_fd:
        fsops.touch(lock_fd)


def a_new_dir(fd):
    with fsops.closing(fsops.make_dir(fd, b"d")) as made:
        fsops.set_mode_and_time(made, 0o711, 12345)
        with fsops.closing(fsops.open_path(fd, b"d")) as handle:
            fsops.set_mode_and_time(handle, 0o700, 12345)


def unpack(fd):
    with fsops.closing(fsops.open_dir(fd, b"d")) as root:
        sink = sinks.DirSink(root)
        entries = [
            (b"a/file", archive.Type.FILE, b""),
            (b"a/link", archive.Type.SYMLINK, b"/etc/passwd"),
            (b"a/hard", archive.Type.HARDLINK, b"a/file"),
            (b"a", archive.Type.DIRECTORY, b""),
        ]
        for name, kind, target in entries:
            entry = archive.Entry(name, kind, 0o755, 1, 0, target, (), replaces=False)
            sink.add(entry, lambda: iter(()))
        sink.finish()


def reap(fd):
    reaper.run_once(fd, now=4e9, max_age_days=1, max_bytes=None, clean_records=records.clean_at)


def reap_begin(fd):
    for name in (b"cache", b"digests", b"locks", b"procdirs/7", b"records"):
        with contextlib.suppress(OSError):
            fsops.make_dirs(os.dup(fd), name, 0o777, owner=ours())
    a_file(fd, b"cache/" + KEY + b".sfs")
    a_tree(fd, b"cache/" + KEY + b".tree")
    a_file(fd, b"cache/.tmp-x")
    a_file(fd, b"locks/build-" + KEY)
    a_file(fd, b"digests/1-2")
    a_file(fd, b"records/8")


def catalog_remove(fd):
    with Store(fd) as images:
        catalog.remove(images, (KEY + b".tree").decode())


def a_kept_tree(fd):
    fsops.make_dirs(os.dup(fd), b"cache", 0o777, owner=ours())
    a_tree(fd, b"cache/" + KEY + b".tree")


def scratch(fd):
    records.remove_scratch(os.readlink(b"/proc/self/fd/%d" % fd) + b"/sandbox-" + KEY[:32], KEY[:32].decode())


CASES = {
    "publish": (nothing, publish, [b"f"]),
    "publish without O_TMPFILE": (nothing, publish, [b"f"]),
    "publish_dir": (nothing, publish_dir, [b"d"]),
    "publish_copy": (nothing, publish_copy, [b"f"]),
    "replace_file": (a_file, lambda fd: fsops.replace_file(fd, b"f", b"new"), [b"f"]),
    "replace_file without O_TMPFILE": (a_file, lambda fd: fsops.replace_file(fd, b"f", b"new"), [b"f"]),
    "switch_name": (nothing, lambda fd: fsops.switch_name(fd, b"f", b"target"), [b"f"]),
    "delete_file": (a_file, lambda fd: fsops.delete_file(fd, b"f"), [b"f"]),
    "delete_file exactly": (a_file, delete_exactly, [b"f"]),
    "remove_tree": (a_tree, lambda fd: fsops.remove_tree(fd, b"d"), [b"d", b"d/a", b"d/a/b", b"d/a/y"]),
    "remove_drafts": (lambda fd: a_tree(fd, b".tmp-t"), lambda fd: fsops.remove_drafts(fd, before=4e9), [b".tmp-t/a"]),
    "remove_scratch": (lambda fd: a_tree(fd, b"sandbox-" + KEY[:32]), scratch, [b"sandbox-" + KEY[:32]]),
    "make_dirs": (a_tree, lambda fd: fsops.make_dirs(os.dup(fd), b"d/a/n/m", 0o700, owner=ours()), [b"d", b"d/a"]),
    "make_dir and its mode": (nothing, a_new_dir, [b"d"]),
    "append": (a_file, lambda fd: fsops.append(fd, b"f", b"."), [b"f"]),
    "open_lock": (a_file, lock, [b"f"]),
    "read_file": (a_file, read, [b"f"]),
    "new_file": (nothing, lambda fd: os.close(fsops.new_file(fd, b"f")), [b"f"]),
    "unpack": (
        lambda fd: (fsops.remove_tree(fd, b"d"), os.mkdir(b"d", dir_fd=fd)),
        unpack,
        [b"d", b"d/a", b"d/a/file"],
    ),
    "catalog.remove": (
        a_kept_tree,
        catalog_remove,
        [b"cache", b"cache/" + KEY + b".tree", b"cache/" + KEY + b".tree/a"],
    ),
    "reaper": (
        reap_begin,
        reap,
        [b"cache", b"locks", b"cache/" + KEY + b".sfs", b"cache/" + KEY + b".tree", b"records/8", b"procdirs/7"],
    ),
}
# A pass of the reaper is hundreds of system calls.
SLOW = {"reaper": 10, "unpack": 2, "remove_scratch": 2}


# -- the attacker ---------------------------------------------------------------------------------------------


def attack(arena, outside, victims, report):
    """Put something else in the place of each victim, and of every temporary name, for ever."""
    libc = ctypes.CDLL(None)
    arena, outside = os.open(arena, os.O_RDONLY | os.O_DIRECTORY), os.fsencode(outside)
    grave = os.open(b"grave", os.O_RDONLY | os.O_DIRECTORY, dir_fd=arena)
    links = [outside + b"/canary", outside + b"/dir", outside + b"/new", b"../" * 9 + outside[1:] + b"/dir"]
    for turn in itertools.count():
        for path in [*victims, *_temporary_names(arena)]:
            above, _, name = path.rpartition(b"/")
            # No link on the way, or the attacker itself would be the one who changes the canaries.
            with contextlib.suppress(OSError), fsops.closing(fsops.open_path(arena, above or b".")) as parent:
                with contextlib.suppress(OSError):
                    _watch(report, _make_bait(parent, turn % 7, links), parent, name, libc, 1 + turn % 3)
                _drop(parent, grave, turn)


def _temporary_names(arena):
    for directory in (b".", b"cache", b"locks", b"digests", b"records"):
        with contextlib.suppress(OSError), fsops.closing(fsops.open_path(arena, directory)) as fd:
            yield from [directory + b"/" + name for name in fsops.names(fd) if name.startswith(b".tmp-")]


def _make_bait(parent, kind, links):
    """A link, a directory, a FIFO; or a new inode, quite likely with the number of one deleted a moment ago, open."""
    if kind < 4:
        os.symlink(links[kind], b"bait", dir_fd=parent)
    elif kind == 4:
        os.mkdir(b"bait", 0o700, dir_fd=parent)
    elif kind == 5:
        os.mkfifo(b"bait", dir_fd=parent)
    else:
        return os.open(b"bait", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
    return None


def _watch(report, held, parent, name, libc, times):
    """Exchange them, or put it where nothing is yet. It
    removes no file: one of its own that is gone, somebody else deleted."""
    for _ in range(times):
        if libc.renameat2(parent, b"bait", parent, name, EXCHANGE) != 0:
            libc.renameat2(parent, b"bait", parent, name, NOREPLACE)
    if held is not None:
        if os.fstat(held).st_nlink == 0:
            os.write(report, b".")
        os.close(held)


def _drop(parent, grave, turn):
    """Out of the way, but not removed when it is a file: its link count is what the attacker watches."""
    with contextlib.suppress(OSError):
        kind = os.stat(b"bait", dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            os.rename(b"bait", b"%d-%d" % (turn, parent), src_dir_fd=parent, dst_dir_fd=grave)
        else:
            os.unlink(b"bait", dir_fd=parent)


# -- the race -------------------------------------------------------------------------------------------------


def become(uid):
    """For good; and the process does not outlive the test."""
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl.set_pdeathsig(signal.SIGKILL)


@contextlib.contextmanager
def attacker(uid, arena, outside, victims):
    """The attacker at work; yields where it reports that a file of its own was deleted."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            become(uid)
            attack(arena, outside, victims, writer)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        yield reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def operate(case, uid, arena, attempts, owner):
    """Do it, again and again, in a process of its own; how often it ended in which way."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        outcomes = collections.Counter()
        try:
            become(uid)
            os.umask(0)
            if case.endswith("without O_TMPFILE"):
                no_tmpfile.forbid()
            begin, act, _ = CASES[case]
            for _ in range(attempts):
                outcomes[_once(begin, act, arena, owner)] += 1
        except BaseException:
            outcomes["broken: " + traceback.format_exc()] += 1
        os.write(writer, json.dumps(outcomes).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        outcomes = collections.Counter(json.loads(file.read()))
    os.waitpid(pid, 0)
    return outcomes


def _once(begin, act, arena, owner):
    fd = os.open(arena, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            _clear(fd)
            begin(fd)
            _give(fd, owner)
        try:
            act(fd)
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error.errno))
        except catalog.SandboxError:
            return "refused"
        return "done"
    finally:
        os.close(fd)


def _clear(fd):
    """What the attacker left of the last attempt goes, by a rename: it may be of any kind."""
    for name in fsops.names(fd):
        if name not in (b"grave", b"bait"):
            os.rename(name, b"grave/" + fsops.temporary_name(), src_dir_fd=fd, dst_dir_fd=fd)


def _give(fd, owner):
    """What was made for the attempt is the attacker's, so that it can be moved."""
    if os.geteuid() != 0 or owner == 0:
        return
    for name in fsops.names(fd):
        if name != b"grave":
            with contextlib.suppress(OSError):
                os.chown(name, owner, owner, dir_fd=fd, follow_symlinks=False)
                with fsops.closing(fsops.open_dir(fd, name)) as inner:
                    _give(inner, owner)


def canaries(where, owner):
    """Things that must not change: a file, a directory with one, a setuid program."""
    where.mkdir()
    (where / "canary").write_bytes(SECRET)
    (where / "dir/a/b").mkdir(parents=True)
    for name in ("dir/x", "dir/a/y", "dir/a/b/z"):
        (where / name).write_bytes(SECRET)
    (where / "suid").write_bytes(SECRET)
    for path in (where, *where.rglob("*")):
        os.chown(path, owner, owner)
        path.chmod(0o755 if path.is_dir() else 0o644)
    (where / "suid").chmod(0o4755)
    return where


def state(where):
    """All there is to know of the canaries, the times of change included; not the times of access."""
    found = {}
    for path in (where, *sorted(where.rglob("*"))):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found[str(path)] = (status.st_mode, status.st_ino, status.st_nlink, status.st_uid, status.st_gid, *times, data)
    return found


@pytest.mark.parametrize("same_user", [False, True], ids=["another user", "the same user"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_outside_changes(case, same_user, user, session_area, request):
    if os.geteuid() != 0 and not same_user:
        pytest.skip("the suite was not started as root")
    where = session_area / f"races-{os.urandom(4).hex()}"
    where.mkdir()
    operator = user.uid if same_user else 0
    outside = canaries(where / "outside", operator)
    arena = where / "arena"
    (arena / "grave").mkdir(parents=True)
    for path in (arena, arena / "grave"):
        os.chown(path, user.uid, user.gid)
        path.chmod(0o777)
    before = state(outside)
    attempts = max(ATTEMPTS // SLOW.get(case, 1), 1)
    try:
        with attacker(user.uid, arena, outside, CASES[case][2]) as reports:
            outcomes = operate(case, operator, arena, attempts, user.uid)
            with contextlib.suppress(BlockingIOError):
                deleted = len(os.read(reports, 4096))
                assert case != "delete_file exactly" or not deleted, "it deleted what it was not asked to"
        assert state(outside) == before
        print(f"RACE {request.node.callspec.id}: {attempts} attempts, {dict(outcomes)}")
        assert sum(outcomes.values()) == attempts, outcomes
    finally:
        shutil.rmtree(where, ignore_errors=True)
        shutil.rmtree(where, ignore_errors=True)
