"""A hostile neighbour of the same launch: components that change while the sandbox is being set up."""

import os

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine
from tests.support.racing import swapping

TREE = [Entry("marker", b"x")]
LAUNCHES = int(os.environ.get("SANDBOX_SOAK", "1")) * 25


@pytest.fixture(params=["python", "native"])
def engine(request):
    if request.param == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    return request.param


def test_a_mount_point_that_is_swapped_for_a_link(run_sandbox, who, area, engine):
    """The mount lands where the name led when it was first looked at, or the launch says that it was changed."""
    where = area.dir(who.as_user)
    archives.make_squashfs(where / "t.sfs", TREE)
    for name in ("victim", "parent/mount"):  # the link leads to the first
        (where / name).mkdir(parents=True)
        os.chown(where / name, who.uid, who.gid)
    os.chown(where / "parent", who.uid, who.gid)
    (where / "parent/link").symlink_to(where / "victim")
    script = f"grep -c ' {where}/.* squashfs ' /proc/self/mountinfo"
    args = ["run", "--engine", engine, "-s", f"{where}/parent/mount:t.sfs", "--", "sh", "-c", script]
    codes = set()
    with swapping(where / "parent/mount", where / "parent/link"):
        for _ in range(LAUNCHES):
            done = run_sandbox(args, as_user=who.as_user)
            codes.add(done.returncode)
            assert done.returncode in (0, 1, 125), done.stderr
            assert len(done.stderr.splitlines()) <= 1, done.stderr
            assert "Traceback" not in done.stderr
    assert 125 in codes, "the race was never lost: the test does not race"


def test_a_source_directory_that_is_swapped(run_sandbox, who, area, engine):
    """What is bound is the directory that was opened first, or nothing."""
    where = area.dir(who.as_user)
    for name, text in (("a", "good"), ("b", "evil")):
        (where / name).mkdir()
        (where / name / "text").write_text(text)
        os.chown(where / name, who.uid, who.gid)
    script = "cat $SANDBOX_STATIC/t/text"
    args = ["run", "--engine", engine, "-v", "-s", "t:a", "--", "sh", "-c", script]
    seen = set()
    with swapping(where / "a", where / "b"):
        for _ in range(LAUNCHES):
            done = run_sandbox(args, as_user=who.as_user)
            seen.add((done.returncode, done.stdout))
            assert done.returncode in (0, 125), done.stderr
    assert {out for code, out in seen if code == 0} <= {"good", "evil"}


def test_a_fifo_as_a_source_does_not_hang(run_sandbox, who, area):
    where = area.dir(who.as_user)
    os.mkfifo(where / "f", 0o666)
    done = run_sandbox(["run", "-s", "f", "--", "true"], as_user=who.as_user, timeout=20)
    assert done.returncode == 125
    assert "neither a regular file nor a directory" in done.stderr


def test_a_home_that_is_a_link_to_somebody_elses(run_sandbox, user, area):
    link = area.dir(as_user=True) / "link"
    link.symlink_to("/etc")
    done = run_sandbox(["run", "--", "true"], as_user=True, env={"SANDBOX_HOME": str(link)})
    assert done.returncode == 125
    assert "belongs to uid 0" in done.stderr


@pytest.mark.parametrize("home", ["/", "/proc/self/fd/0", "/dev/null", "", "\n"])
def test_odd_homes(run_sandbox, who, home):
    if home == "/" and not who.as_user:
        pytest.skip("root may have / as its home")
    env = {"SANDBOX_HOME": home, "HOME": "/nonexistent" if who.as_user else None}
    done = run_sandbox(["run", "--", "true"], as_user=who.as_user, env=env)
    assert done.returncode in (0, 125)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_a_thousand_inherited_descriptors(run_sandbox, who, engine):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(900)]
    try:
        args = ["run", "--engine", engine, "--", "sh", "-c", "ls /proc/self/fd | wc -l"]
        done = run_sandbox(args, as_user=who.as_user, pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    assert (done.returncode, int(done.stdout or 0)) == (0, 904), done.stderr


def test_a_large_environment(run_sandbox, who, engine):
    env = {f"VARIABLE_{number}": "x" * 1000 for number in range(900)}
    args = ["run", "--engine", engine, "--", "sh", "-c", "env | grep -c ^VARIABLE_"]
    assert run_sandbox(args, as_user=who.as_user, env=env).stdout == "900\n"
