"""Only sandbox/fsops changes the user's filesystem: what else in the package could is listed here, with its reason."""

from pathlib import Path

import pytest

from tests.support import mutations

PACKAGE = Path(__file__).resolve().parents[2] / "sandbox"

# Module, function and what it does: why it need not go through fsops.
ALLOWED = {
    (
        "engine/ranges.py",
        "write_map",
        "os.open for writing",
    ): "/proc/PID/uid_map and its like: no file system of the user's",
    ("cgroups.py", "control", "os.open for writing"): "a control file of cgroupfs",
    ("doctor.py", "_loop_devices", "os.open for writing"): "a device node, which is opened and closed",
    ("doctor.py", "_fuse_device", "os.open for writing"): "a device node, which is opened and closed",
    (
        "engine/steps.py",
        "id_map",
        "os.open for writing",
    ): "/proc/self/uid_map and its like: no file system of the user's",
    (
        "images/worker.py",
        "_see_all",
        "os.open for writing",
    ): "/proc/self/uid_map and its like: no file system of the user's",
    ("engine/syscalls.py", "renameat2", ".renameat2"): "the binding that fsops uses",
    ("terminal.py", "_without_waiting", "os.open for writing"): "the caller's own terminal or pipe, once more",
    ("trials.py", "in_user_namespace", ".write_text"): "/proc/self/uid_map and its like",
    ("trials.py", "_try_xattr", ".touch"): "on a tmpfs of its own, in a child that dies with it",
    ("trials.py", "_try_xattr", "os.setxattr"): "on a tmpfs of its own, in a child that dies with it",
    ("trials.py", "_try_overlay", "os.mkdir"): "on a tmpfs of its own, in a child that dies with it",
}


def _modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "fsops"]


def test_nothing_but_fsops_changes_the_filesystem():
    found = {
        (str(path.relative_to(PACKAGE)), mutation.function, mutation.what): mutation.line
        for path in _modules()
        for mutation in mutations.find(path.read_text())
    }
    assert len(_modules()) > 40
    unjustified = {f"{where}:{line} in {function}: {what}" for (where, function, what), line in found.items()} - {
        f"{where}:{found.get((where, function, what))} in {function}: {what}" for where, function, what in ALLOWED
    }
    assert not unjustified, "use sandbox.fsops"
    assert not ALLOWED.keys() - found.keys(), "allowed, but no longer there"


@pytest.mark.parametrize(
    "bad",
    [
        "os.unlink(name, dir_fd=fd)",
        "os.rename(a, b)",
        "os.replace(a, b)",
        "os.mkdir(path)",
        "os.makedirs(path)",
        "os.rmdir(path)",
        "os.symlink(a, b)",
        "os.link(a, b)",
        "os.chmod(path, 0o600)",
        "os.chown(path, 0, 0)",
        "os.utime(path)",
        "os.truncate(path, 0)",
        "os.setxattr(path, 'user.a', b'')",
        "stack.callback(os.rmdir, path)",
        "remove = os.remove",
        "from os import unlink",
        "from os import open as o",
        "import os as system",
        "import shutil as s",
        "getattr(os, 'unlink')(path)",
        "os.open(path, os.O_RDWR)",
        "os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600)",
        "flags = os.O_WRONLY\nos.open(path, flags)",
        "FLAGS = os.O_RDONLY\nFLAGS |= os.O_TRUNC\nos.open(path, FLAGS)",
        "os.open(path, given)",
        "os.open(path, 1)",
        "opener = os.open",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, 'r+')",
        "open(path, mode)",
        "open(fd, 'wb')",
        "path.open('w')",
        "shutil.rmtree(path)",
        "shutil.copyfile(a, b)",
        "from shutil import rmtree",
        "tempfile.mkdtemp()",
        "from tempfile import TemporaryDirectory",
        "Path(name).write_text('x')",
        "path.write_bytes(b'')",
        "path.touch()",
        "path.mkdir()",
        "self.path.unlink()",
        "path.rename(other)",
        "path.replace(other)",
        "path.symlink_to(other)",
        "syscalls.renameat2(a, b, c, d, 0)",
        "from sandbox.engine.syscalls import renameat2",
        "def f():\n    async def g():\n        os.unlink(path)",
    ],
)
def test_it_sees(bad):
    assert mutations.find(bad), "the check cannot fail"


@pytest.mark.parametrize(
    "good",
    [
        "os.open(path, os.O_RDONLY | os.O_CLOEXEC)",
        "_DIR = os.O_PATH | os.O_DIRECTORY\nos.open(name, _DIR, dir_fd=fd)",
        "os.open('/dev/fuse', os.O_RDWR)",
        "os.open(os.devnull, os.O_RDWR)",
        "open(path)",
        "open(path, 'rb')",
        "open(fd, 'wb', closefd=False)",
        "open(os.memfd_create('x'), 'w+b')",
        "os.write(fd, b'')",
        "os.fchmod(fd, 0o600)",
        "text.replace('a', 'b')",
        "record.replace(field=1)",
        "shutil.which('true')",
        "if spec.mkdir: pass",
        "fsops.touch(fd)",
    ],
)
def test_it_lets_pass(good):
    assert not mutations.find(good)
