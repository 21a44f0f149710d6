"""Which records a launch looks at, so that it does not depend on how many others run."""

import fcntl
import os

import pytest

from sandbox import records
from sandbox.home import Home

RUNNING = 40


@pytest.fixture
def where(tmp_path):
    for name in ("procdirs", "records"):
        (tmp_path / name).mkdir()
    fds = [os.open(path, os.O_RDONLY) for path in (tmp_path, tmp_path / "procdirs", tmp_path / "records")]
    running = []
    for number in range(RUNNING):
        running.append(os.open(tmp_path / "records" / f"r{number}", os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(running[-1], fcntl.LOCK_EX)
    yield Home(bytes(tmp_path), fds[0], bytes(tmp_path), *fds)
    for fd in (*fds, *running):
        os.close(fd)


@pytest.fixture
def looks(monkeypatch):
    """The names that are looked at."""
    seen, clean_one = [], records.clean_one
    monkeypatch.setattr(records, "clean_one", lambda home, name: (seen.append(name), clean_one(home, name))[1])
    return seen


@pytest.mark.parametrize(("dice", "thorough"), [(b"\1", False), (b"\0", False), (b"\1", True)])
def test_some_or_all(where, looks, monkeypatch, dice, thorough):
    monkeypatch.setattr(records.os, "urandom", lambda count: dice * count)
    records.clean_stale(where, say=print, thorough=thorough)
    assert len(looks) == (RUNNING if thorough or dice == b"\0" else 8)


def test_one_that_is_dead_is_a_reason_to_look_at_all(where, looks, monkeypatch):
    """Whoever finds something nobody made a record for looks on."""
    monkeypatch.setattr(records.os, "urandom", lambda count: b"\1" * count)
    os.mkdir("nobody's", dir_fd=where.procdirs_fd)
    records.clean_stale(where, say=print)
    assert os.listdir(where.procdirs_fd) == []
    assert len(set(looks)) == RUNNING


def test_what_is_no_procdir_is_no_reason(where, looks, monkeypatch):
    """It stays, so every launch would look at all."""
    monkeypatch.setattr(records.os, "urandom", lambda count: b"\1" * count)
    os.mkdir("full", dir_fd=where.procdirs_fd)
    os.mkdir("full/of", dir_fd=where.procdirs_fd)
    records.clean_stale(where, say=print)
    assert os.listdir(where.procdirs_fd) == ["full"]
    assert len(looks) == 8
