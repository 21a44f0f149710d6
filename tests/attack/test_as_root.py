"""Root inside with subordinate ids: nobody of the host is among them, and no hostile surroundings decide who maps."""

import os
import pwd
import signal
import time

import pytest

from sandbox.isolation import FIRST_UID
from tests.support import users

ENGINES = pytest.mark.parametrize("engine", ["python", "native"])
MODES = pytest.mark.parametrize("mode", ["root", "userns"])
JOB = ("--isolation", "job", "--as-root")


@pytest.fixture(autouse=True)
def _subordinates(user):
    if why := users.no_subordinates(user):
        pytest.skip(why)


@pytest.fixture
def job(run_sandbox):
    def run(engine, mode, *words, **options):
        return run_sandbox(["run", "--engine", engine, "--mode", mode, *JOB, *words], as_user=mode != "root", **options)

    return run


def outside(text):
    """The ids of the host that a map has, as ranges."""
    lines = [list(map(int, line.split())) for line in text.splitlines()]
    return [range(first, first + count) for _, first, count in lines]


@ENGINES
@MODES
def test_no_user_of_the_host_is_mapped(job, user, engine, mode):
    done = job(engine, mode, "--", "cat", "/proc/self/uid_map")
    # From inside the numbers outside are those of the parent namespace, where they are the host's in both modes.
    ranges = outside(done.stdout)
    assert len(ranges) == 2, done.stderr
    own = user.uid if mode == "userns" else ranges[0].start
    assert list(ranges[0]) == [own]
    assert mode == "userns" or own >= FIRST_UID
    hosts = {entry.pw_uid for entry in pwd.getpwall()} - {own}
    assert not [number for number in hosts if any(number in found for found in ranges)]


@ENGINES
def test_hostile_surroundings(job, area, engine):
    """Programs of those names in $PATH, and words for the dynamic linker: what maps is the system's own."""
    trap = area.dir(True) / "trap"
    trap.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (trap / name).write_text(f"#!/bin/sh\ntouch {trap}/$0.ran\n")
        (trap / name).chmod(0o755)
    env = {"PATH": f"{trap}:/usr/bin:/bin", "LD_PRELOAD": f"{trap}/none.so", "GCONV_PATH": str(trap), "IFS": "/"}
    done = job(engine, "userns", "--", "sh", "-c", "id -u; grep -c . /proc/self/uid_map", env=env, cwd=trap)
    assert (done.stdout, done.returncode) == ("0\n2\n", 0), done.stderr
    assert sorted(os.listdir(trap)) == ["newgidmap", "newuidmap"]


@ENGINES
def test_no_file_of_the_host_becomes_another_user_s(job, user, area, engine):
    """Root's own directory, which the job may write to: what it gives away there goes to nobody's numbers."""
    where = area.dir(False)
    script = f"for id in 1 5 {user.uid} 65534; do touch f$id; chown $id:$id f$id; done"
    done = job(engine, "root", "--workspace", "rw", "--", "sh", "-c", script, cwd=where)
    assert done.returncode == 0, done.stderr
    found = [path.stat() for path in where.glob("f*")]
    assert len(found) == 4
    assert all(status.st_uid >= FIRST_UID and status.st_gid >= FIRST_UID for status in found)


@ENGINES
@MODES
def test_processes_of_other_ids_end_with_their_supervisor(run_sandbox, user, area, engine, mode):
    """Killed, it asks for nothing any more; nobody inside, whatever their ids, survives."""
    mark = area.dir(mode != "root") / "mark"
    script = "setpriv --reuid 7 --regid 7 --clear-groups setsid sleep 1000 & cat /proc/self/uid_map; echo; wait"
    words = ["run", "--engine", engine, "--mode", mode, *JOB, "--", "sh", "-c", script]
    with mark.open("w") as output:
        running = run_sandbox.popen(words, as_user=mode != "root", stdout=output)
        deadline = time.monotonic() + 50
        # One more than the map begins with: the first of the range is 1 inside.
        while not (mark.read_text().endswith("\n\n")) and time.monotonic() < deadline:
            time.sleep(0.02)
        number = outside(mark.read_text().strip())[1].start + 6
        while not users.processes_of(number) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert users.processes_of(number)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    while users.processes_of(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not users.processes_of(number)
    run_sandbox(["cleanup"], as_user=mode != "root", check=True)


@ENGINES
@MODES
def test_artefacts_of_other_ids_are_kept_as_the_users(job, user, area, engine, mode):
    """Closed to all but one of the ids inside; a link beside them leads nowhere."""
    where = area.dir(mode != "root")
    script = (
        "mkdir /tmp/o && echo x > /tmp/o/f && chown 5:42 /tmp/o/f && chmod 600 /tmp/o/f && "
        "ln -s /etc/shadow /tmp/o/l && chown 6:6 /tmp/o && chmod 700 /tmp/o"
    )
    done = job(engine, mode, "--keep", "/tmp/o=out", "--", "sh", "-c", script, cwd=where)
    assert done.returncode == 0, done.stderr
    status = (where / "out" / "f").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (user.uid if mode == "userns" else 0, 0o600)
    assert os.readlink(where / "out" / "l") == "/etc/shadow"


@ENGINES
def test_what_the_job_cannot_read_is_not_kept_for_it(job, area, engine):
    """Root launches, and reads for the job what root inside could: not the host's files that are shown to it."""
    secret = area.dir(False) / "secret"
    secret.mkdir()
    (secret / "f").write_text("secret")
    (secret / "f").chmod(0o600)
    where = area.dir(True)
    words = ("--ro-bind", f"{secret}:/mnt", "--keep", "/mnt/f=out", "--", "true")
    done = job(engine, "root", *words, cwd=where)
    assert (done.returncode, (where / "out").exists()) == (125, False)
    assert "cannot keep" in done.stderr
