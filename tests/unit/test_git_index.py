"""Submodules in git's index, as git writes it."""

import subprocess

import pytest

from sandbox.git_index import submodules

GIT = ("git", "-c", "user.name=n", "-c", "user.email=e@e")


@pytest.mark.parametrize(("version", "hashes"), [(2, "sha1"), (3, "sha1"), (4, "sha1"), (4, "sha256")])
def test_as_git_writes_it(tmp_path, version, hashes):
    def git(*words):
        subprocess.run([*GIT, "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q", f"--object-format={hashes}")
    for name in ("a-rather-long-name/sub", "a-rather-long-name/sub2", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        git("init", "-q", f"--object-format={hashes}", name)
        git("-C", name, "commit", "-q", "--allow-empty", "-m", "x")
    for name in ("a-rather-long-name/file", "b", "later"):
        (tmp_path / name).write_text("text")
    git("add", "a-rather-long-name", "b", "z")
    git("update-index", "--index-version", str(version))
    if version == 3:
        git("add", "--intent-to-add", "later")
    index = (tmp_path / ".git/index").read_bytes()
    assert index[7] == version
    size = 32 if hashes == "sha256" else 20
    assert submodules(index, size) == {b"a-rather-long-name/sub", b"a-rather-long-name/sub2", b"z"}
    for length in range(0, len(index), 7):
        assert submodules(index[:length], size) <= submodules(index, size)
    assert submodules(b"DIRC" + b"\xff" * 200) == set()
