"""Which subordinate ids --as-root takes, from the files that say so."""

import os

import pytest

from sandbox import subordinate
from sandbox.isolation import _PIDS, FIRST_UID, LANES
from sandbox.subordinate import BLOCKS, FIRST_BLOCK, MOST, Subordinates


@pytest.fixture
def ranges(tmp_path):
    """The range that these lines give to the user `me`, beside the accounts of the host."""

    def look(lines, accounts=("root:x:0:0", "me:x:1000:1000", "odd", "other:x:1001:1001")):
        (tmp_path / "subuid").write_text("\n".join(lines) + "\n")
        (tmp_path / "passwd").write_text("\n".join(accounts) + "\n")
        return subordinate._range("uid", str(tmp_path / "subuid"), str(tmp_path / "passwd"), "me")

    return look


def test_the_longest_range_of_the_user_counts(ranges):
    lines = ["other:100000:65536", "me:200000:10", "me:300000:4000", "me2:1:9", f"{os.getuid()}:500000:2000"]
    assert ranges(lines) == (300000, 4000)
    assert ranges([*lines, f"{os.getuid()}:600000:65536"]) == (600000, MOST)


def test_lines_that_say_nothing(ranges):
    for line in ("", "me", "me:1000", "me:-5:10", "me:100000:0", "me:x:10", "me:100000:10:1"):
        assert "has no line for me" in ranges([line]), line


def test_no_range_holds_a_user_of_the_host(ranges):
    """Whoever wrote such a line: root inside would be that user as well."""
    for line, number in (("me:1001:65536", 1001), ("me:0:5", 0), ("me:900:102", 1000), ("me:1:1000000", 1000)):
        assert f"holds the uid {number}" in ranges([line])
    assert ranges(["me:1002:70"]) == (1002, 70)


def test_a_range_of_another_user_namespace(ranges):
    assert "not in this user namespace" in ranges(["me:4294967290:10"])


def test_what_could_be_given_to_somebody_who_has_none(tmp_path, monkeypatch):
    files = [tmp_path / "subuid", tmp_path / "subgid"]
    monkeypatch.setattr(subordinate, "_FILES", [(str(file), "") for file in files])
    assert subordinate.free_range() == (100_000, 165_535)
    files[0].write_text("me:100000:65536\nother:300000:1000\n")
    assert subordinate.free_range() == (301_000, 366_535)
    assert not subordinate.is_listed("me")
    files[1].write_text("me:400000:65536\n")
    assert subordinate.free_range() == (465_536, 531_071)
    assert subordinate.is_listed("me")
    assert not subordinate.is_listed("other")


def test_blocks_of_root_s_jobs():
    """Nobody else's uids, jobs of one process in blocks of their own, and never over the last id."""
    assert FIRST_UID + LANES * _PIDS <= FIRST_BLOCK
    assert FIRST_BLOCK + BLOCKS * (MOST + 1) <= 0xFFFFFFFF
    found = set()
    for lane in range(LANES):
        number = FIRST_UID + lane * _PIDS + 4321
        ids = Subordinates((0, 0), (0, 0)).of_job((number, number))
        assert ids.uids == ids.gids
        assert ids.uids[1] == MOST
        found.add(ids.uids[0])
    assert len(found) == LANES
