"""Copies of --keep that were killed in the middle: they go with the next run, and nothing else does."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox import copies, fsops, processes
from sandbox.home import Home
from tests.support import no_tmpfile
from tests.support.living import wait_for

FILES = 3000
MAKE = f"mkdir out; cd out; i=0; while [ $i -lt {FILES} ]; do echo $i > f$i; i=$((i+1)); done"
NAME = ".tmp-" + "0a" * 8
CLEANERS = {"cleanup": ["cleanup"], "native": ["run", "--engine", "native", "true"]}


def drafts(where: Path) -> list[Path]:
    return list(where.glob(".tmp-*"))


def halt(process: subprocess.Popen[str], number: int) -> None:
    """Send it to all of the run, the ones that start others first."""
    for pid in (process.pid, *processes.below(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def half_copied(launch, own: Path) -> subprocess.Popen[str]:
    """A run that stands still in the middle of its copy."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        process = launch("--keep", "out=kept", "--", "sh", "-c", MAKE, popen=True)
        while process.poll() is None:
            if any(any(draft.iterdir()) for draft in drafts(own)):
                halt(process, signal.SIGSTOP)
                break
            time.sleep(0.001)
        if drafts(own):
            return process
        halt(process, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(own / "kept", ignore_errors=True)
    pytest.fail("it is never seen while it copies")


@pytest.mark.parametrize("cleaner", ["run", "cleanup"])
def test_a_copy_goes_with_the_next_run_and_not_before_its_end(launch, run_sandbox, area, cleaner):
    own = area.dir(launch.as_user)
    process = half_copied(launch, own)
    command = ["cleanup"] if cleaner == "cleanup" else ["run", "--engine", launch.engine, "true"]

    def clean() -> str:
        return str(run_sandbox(command, as_user=launch.as_user, check=True).stdout)

    try:
        clean()
        (draft,) = drafts(own)
        assert any(draft.iterdir())
        # It is no run.
        listed = json.loads(run_sandbox(["ps", "--json"], as_user=launch.as_user, check=True).stdout)
        assert "--keep" not in [row["command"][0] for row in listed]
    finally:
        halt(process, signal.SIGKILL)
        process.communicate()
    told = []
    wait_for(lambda: told.append(clean()) or not drafts(own))
    if cleaner == "cleanup":
        assert f"removed: copy {draft}\n" in "".join(told)
    assert not os.path.lexists(own / "kept")
    assert not list((area.home(launch.as_user) / "records").iterdir())


@pytest.fixture
def home(run_sandbox, who, area):
    run_sandbox(["run", "true"], as_user=who.as_user, check=True)
    return area.home(who.as_user)


def directory(area, as_user: bool) -> Path:
    """An empty one."""
    path = area.dir(as_user) / "own"
    path.mkdir()
    return path


def record(home: Path, **changes: object) -> Path:
    """That of a dead one: a list for `copy`, or what is to differ."""
    facts = {"id": "ab" * 16, "host": os.uname().nodename, "boot_id": "-", "command": ["--keep", "x"], **changes}
    path = home / "records" / "copy-1"
    path.write_text(json.dumps(facts) + "\n")
    return path


def numbers(path: Path) -> list[str]:
    status = path.lstat()
    return [f"{status.st_dev:020}", f"{status.st_ino:020}"]


def tree(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "f").write_text("keep")
    return path


def named(where: Path, name: str = NAME, made: Path | None = None, parent: Path | None = None) -> list[str]:
    """What a record says: `made` is what it calls its own, by default what has the name; `parent` is where that is."""
    return [str(where), *numbers(parent or where), name, *numbers(made or where / name)]


def no_such_name(where: Path) -> list[str]:
    tree(where / "precious")
    return named(where, "precious")


def longer_name(where: Path) -> list[str]:
    tree(where / (NAME + "0"))
    return named(where, NAME + "0")


def way_up(where: Path) -> list[str]:
    tree(where / "a")
    tree(where / NAME)
    return named(where / "a", f"../{NAME}", made=where / NAME)


def other_tree(where: Path) -> list[str]:
    """Somebody renamed another directory to it."""
    tree(where / "precious")
    tree(where / NAME)
    return named(where, made=where / "precious")


def full_before_it_was_said(where: Path) -> list[str]:
    tree(where / NAME)
    return [*named(where)[:4], "0", "0"]


def link_for_the_copy(where: Path) -> list[str]:
    tree(where / "precious")
    (where / NAME).symlink_to(where / "precious")
    return named(where, made=where / "precious")


def link_that_is_the_copy(where: Path) -> list[str]:
    tree(where / "precious")
    (where / NAME).symlink_to(where / "precious")
    return named(where)


def link_for_the_parent(where: Path) -> list[str]:
    tree(where / "there" / NAME)
    (where / "here").symlink_to(where / "there")
    return named(where / "here", parent=where / "there")


def link_on_the_way(where: Path) -> list[str]:
    tree(where / "there" / "d" / NAME)
    (where / "here").symlink_to(where / "there")
    return named(where / "here" / "d")


def other_parent(where: Path) -> list[str]:
    tree(where / "there" / NAME)
    return named(where / "there", parent=where)


def relative(where: Path) -> list[str]:
    tree(where / NAME)
    return [".", *named(where)[1:]]


def no_numbers(where: Path) -> list[str]:
    tree(where / NAME)
    return [*named(where)[:4], "x", ""]


FOREIGN = [
    no_such_name,
    longer_name,
    way_up,
    other_tree,
    full_before_it_was_said,
    link_for_the_copy,
    link_that_is_the_copy,
    link_for_the_parent,
    link_on_the_way,
    other_parent,
    relative,
    no_numbers,
]


def clean(run_sandbox, cleaner: str, home: Path, where: Path, who) -> None:
    for path in (*home.rglob("*"), where, *where.rglob("*")):
        os.chown(path, who.uid, who.gid, follow_symlinks=False)
    done = run_sandbox(CLEANERS[cleaner], as_user=who.as_user, cwd=where)
    assert done.returncode == 0, done.stderr


def everything(where: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_ino) for path in where.rglob("*")}


@pytest.mark.parametrize("cleaner", CLEANERS)
@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: case.__name__)
def test_a_record_that_names_something_else_removes_nothing(run_sandbox, home, who, area, case, cleaner):
    where = directory(area, who.as_user)
    made = record(home, copy=case(where))
    before = everything(where)
    clean(run_sandbox, cleaner, home, where, who)
    assert everything(where) == before
    assert not made.exists()


@pytest.mark.parametrize("cleaner", CLEANERS)
@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize("is_file", [True, False])
def test_what_it_names_goes(run_sandbox, home, who, area, cleaner, is_file, is_said):
    """And until it says which one it made, only what is empty."""
    where = directory(area, who.as_user)
    tree(where / "precious")
    if is_file:
        (where / NAME).write_text("half" if is_said else "")
    else:
        (where / NAME).mkdir()
        if is_said:
            tree(where / NAME / "sub")
            (where / NAME / "link").symlink_to(where / "precious")
    record(home, copy=named(where) if is_said else [*named(where)[:4], "0" * 20, "0" * 20])
    clean(run_sandbox, cleaner, home, where, who)
    assert sorted(path.name for path in where.rglob("*")) == ["f", "precious"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
@pytest.mark.parametrize("cleaner", CLEANERS)
def test_what_belongs_to_somebody_else_stays(run_sandbox, identities, area, cleaner):
    """Also where root cleans up, who could remove it."""
    home, where = area.home(as_user=False), directory(area, as_user=False)
    run_sandbox(["run", "true"], as_user=False, check=True)
    os.chown(tree(where / NAME), identities[True].uid, identities[True].gid)
    record(home, copy=named(where))
    run_sandbox(CLEANERS[cleaner], as_user=False, check=True)
    assert (where / NAME / "f").read_text() == "keep"


def test_a_file_without_o_tmpfile_is_recorded_as_well(tmp_path):
    """As on NFS: killed at any moment, it goes."""
    for name in ("home", "own"):
        (tmp_path / name).mkdir()
    if (pid := os.fork()) == 0:
        try:
            no_tmpfile.forbid()
            fd = os.open(tmp_path / "home", os.O_RDONLY)
            with contextlib.ExitStack() as stack:
                claim = copies.Claim(Home(b"", fd, b"", fd, fd, fd), _open(tmp_path / "own"), b"x")
                draft = stack.enter_context(fsops.Draft(_open(tmp_path / "own"), called=lambda: claim.name))
                claim.made(os.fstat(draft.fd))
                os.write(draft.fd, b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (made,) = drafts(tmp_path / "own")
    assert made.read_text() == "half"
    (line,) = [path.read_text() for path in (tmp_path / "home").glob("copy-*")]
    copies.remove(json.loads(line))
    assert not drafts(tmp_path / "own")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
