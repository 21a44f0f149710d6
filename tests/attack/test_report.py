"""A report goes where its user may write, and nowhere else: whatever stands in its place, and through the helper."""

import os
import stat
import struct
import threading

import pytest

from sandbox import setuid
from sandbox.report import Kind
from tests.support import modes, reports

ENGINES = ("python", "native")


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "native" and modes.native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    return ["--engine", request.param]


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "socket"])
def test_what_stands_there_is_left_alone(run_sandbox, engine, who, area, kind):
    where = area.dir(who.as_user)
    victim, name = where / "victim", where / "r.json"
    victim.write_text("precious")
    if kind == "directory":
        name.mkdir()
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "socket":
        os.mknod(name, stat.S_IFSOCK | 0o666)
    else:
        name.symlink_to(victim if kind == "link" else "nowhere")
    before = name.lstat()
    done = run_sandbox(["run", *engine, "--report", "r.json", "--", "touch", "ran"], as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "no regular file" in done.stderr
    after = name.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert victim.read_text() == "precious"
    assert not (where / "nowhere").exists()
    assert not (where / "ran").exists()


def test_a_file_of_somebody_else_is_left_alone(run_sandbox, engine, area, identities):
    if False not in identities:
        pytest.skip("needs root for a second owner")
    for as_user in identities:
        where = area.dir(as_user)
        (where / "r.json").write_text("precious")
        other = identities[not as_user]
        os.chown(where / "r.json", other.uid, other.gid)
        done = run_sandbox(["run", *engine, "--report", "r.json", "--", "true"], as_user=as_user)
        assert (done.returncode, "somebody else" in done.stderr) == (125, True)
        assert (where / "r.json").read_text() == "precious"


def test_a_link_that_appears_later_is_replaced_not_followed(run_sandbox, engine, who, area):
    where = area.dir(who.as_user)
    (where / "victim").write_text("precious")
    run_sandbox(
        ["run", *engine, "--report", "r.json", "--", "ln", "-s", "victim", "r.json"], as_user=who.as_user, check=True
    )
    assert (where / "victim").read_text() == "precious"
    assert not (where / "r.json").is_symlink()
    reports.read(where / "r.json")


def test_a_directory_that_appears_later_is_an_error(run_sandbox, engine, who, area):
    args = ["run", *engine, "--report", "r.json", "--", "mkdir", "r.json"]
    done = run_sandbox(args, as_user=who.as_user)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "cannot write the report" in done.stderr
    assert sorted(os.listdir(area.dir(who.as_user))) == ["r.json", "sandbox-home"], "no temporary file is left"


def test_a_parent_that_is_swapped_stays_the_one_that_was_opened(run_sandbox, engine, who, area):
    where = area.dir(who.as_user)
    script = "mv d gone && mkdir elsewhere && ln -s elsewhere d"
    (where / "d").mkdir()
    os.chown(where / "d", who.uid, who.gid)
    args = ["run", *engine, "--report", "d/r.json", "--", "sh", "-c", script]
    run_sandbox(args, as_user=who.as_user, check=True)
    assert os.listdir(where / "elsewhere") == []
    reports.read(where / "gone" / "r.json")


def test_racing_links(run_sandbox, engine, who, area):
    """While somebody swaps links and files at the name, the victim never changes."""
    where = area.dir(who.as_user)
    (where / "victim").write_text("precious")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.symlink("victim", where / "link")
            os.rename(where / "link", where / "r.json")
            (where / "r.json").unlink(missing_ok=True)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(6 * int(os.environ.get("SANDBOX_SOAK", "1"))):
            done = run_sandbox(["run", *engine, "--report", "r.json", "--", "true"], as_user=who.as_user)
            assert done.returncode in (0, 125)
    finally:
        stop.set()
        swapper.join()
    assert (where / "victim").read_text() == "precious"


# -- the helper, by hand ----------------------------------------------------------------------------------------


def helper(system, user, where, meta: bytes, out: str, name: str = "meta"):
    """What the installed helper answers to a plan that is none, and to this report, as the user."""
    (where / name).write_bytes(meta)
    (where / "junk").write_bytes(b"no plan")
    script = f"exec 7<junk 8<junk 9<{name} {out}; exec {setuid.HELPER} run 7 8 report=9,6 -- true"
    return system.private.run(["bash", "-c", script], who=user, groups=(system.gid,), cwd=where)


def handed_over(name: bytes, *, kind: int = 1, mode: int = 0o644) -> bytes:
    return struct.pack("<BIQI", kind, mode, 0, len(name)) + name + b'{"phases": [{}'


@pytest.fixture
def as_root(setuid_system):
    if setuid_system.private is None:
        pytest.skip("needs root to install a helper of its own")
    return setuid_system


def test_the_helper_writes_with_its_user_s_rights(as_root, user, area):
    where = area.dir(as_user=True)
    done = helper(as_root, user, where, handed_over(b"sbx-evil"), "6</etc")
    # It tries, as it does below, and of a launch that fails only that is said.
    assert done.stderr.startswith("sandbox: cannot decode the plan")
    assert as_root.private.root("test", "-e", "/etc/sbx-evil").returncode == 1
    done = helper(as_root, user, where, handed_over(b"mine", mode=0o4777), "6<.")
    assert "cannot decode the plan" in done.stderr
    assert (where / "mine").stat().st_uid == user.uid
    assert (where / "mine").stat().st_mode & 0o7777 == 0o777
    assert '"cause": "launcher"' in (where / "mine").read_text()


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        handed_over(b"../x"),
        handed_over(b".."),
        handed_over(b"/etc/x"),
        handed_over(b"a\0b"),
        handed_over(b"x" * 256),
        handed_over(b"x", kind=max(Kind) + 1),
        struct.pack("<BIQI", 1, 0, 0, 0xFFFFFFFF),
    ],
)
def test_the_helper_refuses_what_is_no_report(as_root, user, area, meta):
    done = helper(as_root, user, area.dir(as_user=True), meta, "6<.")
    assert done.returncode == 125
    assert "damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_helper_refuses_shared_and_closed_descriptors(as_root, user, area):
    where = area.dir(as_user=True)
    for pair in ("7,6", "9,9", "9,99", "9", "9,", "-1,6"):
        (where / "meta").write_bytes(handed_over(b"x"))
        (where / "junk").write_bytes(b"no plan")
        script = f"exec 7<junk 8<junk 9<meta 6<.; exec {setuid.HELPER} run 7 8 report={pair} -- true"
        done = as_root.private.run(["bash", "-c", script], who=user, groups=(as_root.gid,), cwd=where)
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) == 1
        assert not (where / "x").exists()
