"""The supervisor, as seen from outside: signals, job control, what is left behind, many at once; both engines."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to set the scene")
TREE = [Entry("f", b"hello\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")]


@pytest.fixture(params=["python", "native"])
def engine(request):
    """Options that choose each engine in turn: what concerns the supervisor must hold for both."""
    if request.param == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    return ["--engine", request.param]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)
    return value


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# -- signals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "USR2", "INT", "QUIT", "WINCH"])
def test_signals_are_forwarded(run_sandbox, engine, who, area, name):
    mark = area.dir(who.as_user) / "mark"
    script = f"trap 'echo got > {mark}; exit 9' {name}; echo ready > {mark}; while :; do sleep 0.05; done"
    process = run_sandbox.popen(["run", *engine, "--", "sh", "-c", script], as_user=who.as_user)
    wait_for(lambda: read(mark) == "ready\n")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(20) == 9
    assert read(mark) == "got\n"


def test_a_command_that_ignores_a_signal_goes_on(run_sandbox, engine, who, area):
    mark = area.dir(who.as_user) / "mark"
    script = f"trap '' TERM; echo ready > {mark}; sleep 0.5; exit 4"
    process = run_sandbox.popen(["run", *engine, "--", "sh", "-c", script], as_user=who.as_user)
    wait_for(lambda: read(mark) == "ready\n")
    process.terminate()
    assert process.wait(20) == 4


def test_stop_and_continue_as_a_shell_sees_it(run_sandbox, engine, who, area):
    mark = area.dir(who.as_user) / "mark"
    script = f"echo ready > {mark}; kill -STOP $$; echo again > {mark}; exit 6"
    process = run_sandbox.popen(["run", *engine, "--", "sh", "-c", script], as_user=who.as_user)
    wait_for(lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT))
    assert read(mark) == "ready\n"
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 6
    assert read(mark) == "again\n"


def test_job_control_on_a_terminal(run_sandbox, engine, who, area):
    """^Z stops the job, fg continues it, ^C ends the command and not more than that."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(area.dir(who.as_user))
            if who.as_user:
                os.setgroups(who.groups)
                os.setresgid(who.gid, who.gid, who.gid)
                os.setresuid(who.uid, who.uid, who.uid)
            env = run_sandbox.environment(who.as_user, {"PS1": "$ ", "TERM": "dumb", "ENV": None})
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], env)
        except BaseException as error:
            os.write(1, repr(error).encode())
        os._exit(1)
    with contextlib.closing(os.fdopen(terminal, "r+b", buffering=0)) as tty:
        seen = bytearray()

        def expect(words: bytes) -> None:
            end = time.monotonic() + 20
            while words not in seen:
                ready = select.select([tty], [], [], max(end - time.monotonic(), 0))[0]
                assert ready, seen.decode(errors="replace")
                seen.extend(tty.read(4096))
            del seen[: seen.index(words) + len(words)]

        # Nothing is forked here: a shell that is stopped between vfork and exec of a child cannot stop itself.
        script = "trap 'echo inter''rupted; exit 7' INT; echo rea''dy; while :; do read -r line; done"
        tty.write(f'{run_sandbox.command} run {" ".join(engine)} -- sh -c "{script}"\n'.encode())
        expect(b"ready")
        tty.write(b"\x1a")
        expect(b"Stopped")
        tty.write(b"echo in the she''ll; fg\n")
        expect(b"in the shell")
        time.sleep(0.3)
        tty.write(b"\x03")
        expect(b"interrupted")
        tty.write(b"echo status $?.\n")
        expect(b"status 7.")
        tty.write(b"exit\n")
    os.waitpid(pid, 0)


# -- what is left behind --------------------------------------------------------------------------------------


def test_what_the_command_left_running_is_ended(run_sandbox, engine, who, area):
    pids = area.dir(who.as_user) / "pids"
    stubborn = f"trap '' TERM; echo $$ >> {pids}; sleep 1000; :"
    script = f'sleep 1000 & echo $! >> {pids}; (setsid sh -c "$1" & ); sleep 0.3'
    assert run_sandbox(["run", *engine, "--", "sh", "-c", script, "sh", stubborn], as_user=who.as_user).returncode == 0
    started = [int(pid) for pid in read(pids).split()]
    assert len(started) == 2
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_leave_running(run_sandbox, engine, who, area):
    pids = area.dir(who.as_user) / "pids"
    script = f"cd $SANDBOX_TMPDIR && (sleep 1000; :) >/dev/null 2>&1 & echo $! > {pids}"
    assert (
        run_sandbox(["run", *engine, "--leave-running", "--", "sh", "-c", script], as_user=who.as_user).returncode == 0
    )
    pid = int(read(pids))
    # Its mounts are alive as long as it is, whatever runs and cleans meanwhile.
    assert run_sandbox(["run", *engine, "--", "true"], as_user=who.as_user).returncode == 0
    assert "/procdirs/" in Path(f"/proc/{pid}/mountinfo").read_text()
    assert list((area.home(who.as_user) / "procdirs").iterdir())
    for victim in (*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()), pid):
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not list((area.home(who.as_user) / "procdirs").iterdir()))


@pytest.mark.parametrize("scratch", ["tmpfs", "."])
def test_a_killed_supervisor_is_cleaned_up_by_the_next_run(run_sandbox, engine, who, area, scratch):
    where = area.dir(who.as_user)
    archives.make_squashfs(where / "t.sfs", TREE)
    script = "setsid sleep 1000 & echo ready > mark; sleep 1000"
    args = ["run", *engine, "--scratch", scratch, "-s", "t.sfs", "-d", "w:t.sfs", "--", "sh", "-c", script]
    process = run_sandbox.popen(args, as_user=who.as_user)
    wait_for(lambda: read(where / "mark") == "ready\n")
    process.kill()
    process.wait()
    assert list((area.home(who.as_user) / "procdirs").iterdir())
    done = run_sandbox(["run", *engine, "-v", "--", "true"], as_user=who.as_user)
    assert done.returncode == 0
    assert "dead run" in done.stderr or "native" in engine
    assert not list(where.glob("sandbox-*-*")), "the scratch directory on disk is removed as well"
    # Procdirs, records, mounts, loop devices and processes are looked at by the fixture.


def test_a_dead_run_among_many_live_ones_is_cleaned_up(run_sandbox, engine, who, area):
    """The native engine looks at a few records each time, and at all of them every so often."""
    where, home = area.dir(who.as_user), area.home(who.as_user)
    script = f"echo >> {where}/ready; exec sleep 1000"
    runs = [run_sandbox.popen(["run", *engine, "--", "sh", "-c", script], as_user=who.as_user) for _ in range(12)]
    wait_for(lambda: read(where / "ready").count("\n") == len(runs))
    records = [home / "records" / str(run.pid) for run in runs]
    assert all(record.exists() for record in records)
    for run in runs[::4]:
        run.kill()
        run.wait()
    # One launch in 64 looks at all: after two thousand of them the odds of none are 1 to 10 to the 13.
    for _ in range(2000):
        if not any(record.exists() for record in records[::4]):
            break
        assert run_sandbox(["run", *engine, "--", "true"], as_user=who.as_user).returncode == 0
    assert [record.exists() for record in records] == [bool(number % 4) for number in range(12)]
    for run in runs:
        if run.poll() is None:
            run.terminate()
            run.wait()


def test_a_live_procdir_is_never_removed(run_sandbox, engine, who, area):
    where = area.dir(who.as_user)
    script = 'cd "$SANDBOX_TMPDIR"; echo x > f; echo ready > $M/mark; until [ -e $M/go ]; do sleep 0.02; done; cat f'
    args = ["run", *engine, "-e", f"M={where}", "--", "sh", "-c", script]
    process = run_sandbox.popen(args, as_user=who.as_user, stdout=subprocess.PIPE)
    wait_for(lambda: read(where / "mark") == "ready\n")
    for _ in range(3):
        assert run_sandbox(["run", *engine, "--", "true"], as_user=who.as_user).returncode == 0
    # Somebody in another pid namespace sees no such pid, and still must see that it lives.
    inside = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    subprocess.run(
        [*inside, run_sandbox.command, "run", "--mode", "userns", "--", "true"],
        **who.popen_options(),
        env=run_sandbox.environment(who.as_user),
        cwd=where,
        capture_output=True,
    )
    (where / "go").touch()
    assert process.communicate(timeout=20)[0] == "x\n"


@ROOT_ONLY
def test_records_of_another_host_are_left_alone(run_sandbox, engine, area):
    run_sandbox(["run", *engine, "--", "true"], as_user=False, check=True)
    home = area.home(as_user=False)
    (home / "records" / "1").write_text('{"id": "0", "host": "elsewhere", "boot_id": "other"}\n')
    (home / "procdirs" / "1").mkdir()
    run_sandbox(["run", *engine, "--", "true"], as_user=False, check=True)
    assert (home / "procdirs" / "1").is_dir()
    (home / "records" / "1").unlink()
    (home / "procdirs" / "1").rmdir()


def test_nothing_shows_in_a_host_whose_mounts_are_shared(run_sandbox, engine, who, area):
    """In a mount namespace made shared, as systemd makes the host's, nothing of a run appears."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a host of its own")
    where = area.dir(who.as_user)
    archives.make_squashfs(where / "t.sfs", TREE)
    (where / "d").mkdir()
    (where / "d/f").write_text("x")
    wait = "echo ready > mark; until [ -e go ]; do sleep 0.02; done"
    inner = f"{run_sandbox.command} run {' '.join(engine)} -s t.sfs -d w:t.sfs -s d -d e:d -- sh -c '{wait}'"
    become = f"setpriv --reuid {who.uid} --regid {who.gid} --clear-groups" if who.as_user else "env"
    script = f"""mount --make-rshared / && mount --bind . . && cat /proc/self/mountinfo > before
    {become} sh -c "{inner.replace('"', chr(34))}" & while [ ! -e mark ]; do sleep 0.02; done
    cat /proc/self/mountinfo > during; touch go; wait; cat /proc/self/mountinfo > after"""
    env = run_sandbox.environment(who.as_user)
    subprocess.run(["unshare", "-m", "sh", "-c", script], env=env, cwd=where, check=True, timeout=60)
    before, during, after = (read(where / name) for name in ("before", "during", "after"))
    assert "shared:" in before
    assert during == before
    assert after == before


# -- many at once ---------------------------------------------------------------------------------------------


@ROOT_ONLY
def test_a_hundred_at_once_share_one_loop_device(run_sandbox, engine, area):
    where = area.dir(as_user=False)
    image = archives.make_squashfs(where / "t.sfs", TREE)
    script = "echo . >> ready; while [ ! -e go ]; do sleep 0.1; done; cat $SANDBOX_STATIC/t/f"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    args = ["run", *engine, "-s", "t.sfs", "--", "sh", "-c", script]
    started = [run_sandbox.popen(args, as_user=False, **options) for _ in range(100)]
    wait_for(lambda: len(read(where / "ready")) == 200, seconds=120)
    backing = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert backing.count(str(image)) == 1
    (where / "go").touch()
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (out, err, process.returncode) == ("hello\n", "", 0)
