"""Jobs that take what they get, stay at their limit until their standard input ends, and then take more."""

import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support import reports
from tests.support.runner import Area
from tests.support.users import Identity

_HELD = """
print("full", flush=True)
sys.stdin.read()
"""
_FORKS = f"""
import os, sys, time
def bomb():
    # Numbers of the job's own: without its limit it would take the machine along.
    while os.getpid() < 1000:
        try: os.fork()
        # What a refused fork had so far is freed later; an emulated machine comes to that more slowly than all of these
        # ask, and is out of memory within a minute.
        except BlockingIOError: time.sleep(0.01)
try:
    while os.fork(): pass
    sys.exit(bomb())
except BlockingIOError: pass
{_HELD}
sys.exit(3)
"""
_MEMORY = f"""
import sys
held = [b"x" * (1 << 20) for _ in range(40)]
{_HELD}
try: held.append(b"x" * (1 << 30))
except MemoryError: sys.exit(3)
"""
_FILES = f"""
import errno, os, sys
files = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in ("/tmp/f", "/dev/shm/f")]
def fill(file):
    try:
        while True: os.write(file, bytes(1 << 16))
    except OSError as error: return error.errno
assert [fill(file) for file in files] == [errno.ENOSPC] * 2
{_HELD}
sys.exit(3 if [fill(file) for file in files] == [errno.ENOSPC] * 2 else 0)
"""
# What the same user does outside meanwhile: more of each than the job may have, and none of it is refused.
_WORK = """
import os, tempfile
x = b"x" * (80 << 20)
for pid in [os.fork() or os._exit(0) for _ in range(2)]: assert os.waitpid(pid, 0)[1] == 0
with tempfile.TemporaryFile(dir="/dev/shm") as file: file.write(bytes(16 << 20))
print("done")
"""
_ROUNDS = 2


class Bomb(NamedTuple):
    """Options, the Python program, and how it ends with a cgroup: code, and cause with the limit.

    Without one a limit is each process's or user's, and what is refused is no death: `_REFUSED`.
    """

    options: tuple[str, ...]
    program: str
    ends: tuple[int, str]


_REFUSED = (3, "exited")
BOMBS = {
    "forks": Bomb(("--pids", "60"), _FORKS, (3, "limit pids")),
    "memory": Bomb(("--memory", "64M"), _MEMORY, (-9, "oom")),
    "files": Bomb(("--tmpfs-size", "8M"), _FILES, _REFUSED),
}


def explode(name: str, launch: Callable[..., Any], who: Identity, area: Area) -> bool:
    """While the bomb is at its limit the host does the work of others; then it ends, with the right cause.

    Whether it had a cgroup.
    """
    bomb = BOMBS[name]
    options = ["--limits", "best-effort", *bomb.options, "--timeout", "300", "--report", "r.json"]
    words = [*options, "--", "/usr/bin/python3", "-c", bomb.program]
    process = launch(*words, popen=True, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdout.readline() == "full\n", process.communicate()
    for _ in range(_ROUNDS):
        work: dict[str, Any] = {"cwd": "/", "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run(["/usr/bin/python3", "-c", _WORK], check=False, **work, **who.popen_options())
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert process.poll() is None
    _, errors = process.communicate(timeout=60)
    told = reports.read(area.dir(who.as_user) / "r.json")
    ended = (process.returncode, " ".join(filter(None, (told["cause"], told["limit"]))))
    has_cgroup = told["forks_refused"] is not None
    assert ended == (bomb.ends if has_cgroup else _REFUSED), errors
    return has_cgroup
