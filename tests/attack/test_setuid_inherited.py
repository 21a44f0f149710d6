"""What a process inherits and its caller chose: arguments, environment, descriptors, limits."""

import ctypes
import os
import resource
import subprocess

import pytest

from sandbox.setuid import HELPER
from tests.support.helper import can_raise_limits, settled
from tests.support.launcher import memory_file, source


def test_no_arguments(helper):
    """CVE-2021-4034: pkexec, started with an empty argv, took its environment for arguments."""
    execve, none = ctypes.CDLL(None).execve, (ctypes.c_char_p * 1)(None)
    path = os.fsencode(HELPER)
    got, err = helper.attempt(["x"], then=lambda: execve(path, none, none))
    assert (got, err.count("\n")) == (125, 1)
    assert "usage" in err


def test_bad_descriptors(helper):
    reader, writer = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    plan, huge, empty = memory_file(helper.plan()), memory_file(b""), memory_file(b"")
    os.ftruncate(huge, 1 << 40)
    keep = (reader, directory, plan, huge, empty)
    for plan_fd, env_fd, text in (
        (reader, empty, "must be handed over as a file"),
        (directory, empty, "must be handed over as a file"),
        (huge, empty, "longer than"),
        (empty, plan, "cannot decode"),
        (plan, reader, "must be handed over as a file"),
        (plan, huge, "longer than"),
        (plan, plan, "named twice"),
        (plan, 999, "descriptor"),
        (plan, "-", "must be handed over in a descriptor"),
    ):
        code, err = helper.attempt(["x", "run", str(plan_fd), str(env_fd), "--", "id"], pass_fds=keep)
        assert (code, err.count("\n")) == (125, 1), err
        assert text in err
    for fd in (*keep, writer):
        os.close(fd)


def test_environment_beside_the_plan(helper):
    hostile = {
        "LD_PRELOAD": "/x.so",
        "LD_LIBRARY_PATH": "/x",
        "LD_AUDIT": "/x.so",
        "LD_DEBUG_OUTPUT": str(helper.disk / "debug"),
        "LD_DEBUG": "all",
        "GLIBC_TUNABLES": "glibc.malloc.check=3:" * 50,
        "GCONV_PATH": "/x",
        "LOCPATH": "/x",
        "MALLOC_CHECK_": "3",
        "MALLOC_TRACE": str(helper.disk / "trace"),
        "RUST_BACKTRACE": "full",
        "RUST_LOG": "trace",
        "TMPDIR": str(helper.disk),
        "PATH": "/x",
        "SANDBOX_POLICY": str(helper.area / "policy.toml"),
        **{f"HUGE{number}": "x" * 100_000 for number in range(11)},  # over 1 MB
    }
    (helper.area / "policy.toml").write_text('images = "any"\n')
    env = b"PATH=/usr/bin:/bin\0LD_LIBRARY_PATH=/opt/mine\0"
    helper.refused(helper.image_plan(source(helper.own_image())), "names no builder", program_env=hostile)
    got, out, err = helper.run(helper.plan(), "env", env=env, program_env=hostile)
    assert os.listdir(helper.disk) == []
    names = sorted(line.split("=")[0] for line in out.splitlines())
    assert (got, names, err) == (0, ["LD_LIBRARY_PATH", "PATH", "T"], "")


@pytest.mark.parametrize("limit", [0, 1, 8])
def test_limits_at_their_minimum(helper, limit):
    plan = helper.image_plan(helper.roots_source())
    for name in ("NOFILE", "FSIZE", "NPROC", "STACK", "CORE", "AS", "DATA", "MEMLOCK", "CPU", "SIGPENDING"):
        number = getattr(resource, f"RLIMIT_{name}", 11)
        try:
            got, _, err = helper.run(
                plan, "true", then=lambda number=number: resource.setrlimit(number, (limit, limit))
            )
        except (OSError, subprocess.SubprocessError):
            continue  # exec itself was refused, or Python's own part failed before it
        assert got in (0, 125, 126, 127) or got < 0, (name, got, err)
        helper.check(helper.plan(), "true", "")
    assert settled(helper) == []


@pytest.mark.parametrize("count", [900, 1000, 4000])
def test_many_descriptors(helper, count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"this process may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, hard))
    try:
        many = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
        plan = helper.image_plan(helper.roots_source())
        got, out, err = helper.run(plan, "sh", "-c", "ls /proc/$$/fd | wc -l", pass_fds=many)
        for fd in many:
            os.close(fd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (got, err) == (0, "")
    assert count <= int(out) < count + 6


def test_no_room_for_a_descriptor(helper):
    """All that the limit allows are open: one line, from a helper that can open nothing and has no right to more."""
    (helper.area / "plan").write_bytes(helper.plan())
    fill = 'ulimit -n 30; for n in {10..29}; do eval "exec $n</dev/null"; done; exec 3<&0 4<&0 5<&0 6<&0 7<&0'
    script = f"{fill} 8<{helper.area}/plan 9</dev/zero; exec {HELPER} run 8 8 -- true"
    for other in ("8", "9", "7"):
        started = helper.as_user("bash", "-c", script.replace("run 8 8", f"run 8 {other}"), stderr=subprocess.PIPE)
        err = started.communicate()[1]
        assert (started.returncode, err.count("\n")) == (125, 1), err
    empty = script.replace("9</dev/zero", f"9<{helper.area}/env")
    (helper.area / "env").write_bytes(b"")
    started = helper.as_user("bash", "-c", empty.replace("run 8 8", "run 8 9"), stderr=subprocess.PIPE)
    err = started.communicate()[1]
    wanted = (0, 0, False) if can_raise_limits() else (125, 1, True)
    assert (started.returncode, err.count("\n"), "Too many open files" in err) == wanted, err


def test_nothing_leaks(helper):
    helper.check(helper.image_plan(helper.roots_source()), "ls -x /proc/$$/fd", "0  1  2\n")


def test_closed_standard_descriptors(helper):
    def close():
        for number in (0, 1, 2):
            os.close(number)

    plan = helper.image_plan(helper.roots_source())
    process = helper.start(plan, "sh", "-c", f"echo $T >{helper.disk}/out", then=close)
    process.communicate()
    assert process.returncode == 0
    assert (helper.disk / "out").read_text().startswith(str(helper.home))
