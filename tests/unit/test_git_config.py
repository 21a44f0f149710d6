"""What of git's configuration names files."""

import subprocess

from sandbox import git_config

TEXT = rb"""
# a comment
[core] editor = "vi -u \"x y\"" ; another
	hooksPath = .husky/_   # kept
	fsmonitor
[filter "a.b [c]"]
	clean = one \
two
	SMUDGE = a"b ; c"d\\e
[Include.old]
path=~/x
"""


def test_as_git_reads_it(tmp_path):
    file = tmp_path / "config"
    file.write_bytes(TEXT)
    out = subprocess.check_output(["git", "config", "-f", file, "--list", "-z"])
    wanted = [entry.partition(b"\n") for entry in out.split(b"\0") if entry]
    keys = [(key.split(b".")[0] + b"." + key.rsplit(b".", 1)[1].lower(), value) for key, _, value in wanted]
    assert list(git_config.entries(TEXT)) == keys


def test_includes_are_read_once_each(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("[include]\npath = second\npath = absent\n[core]\nhooksPath = a\n")
    second.write_text(f'[includeIf "onbranch:x"]\npath = {first}\n[core]\nhooksPath = b\n')
    files, said = git_config.read_all([bytes(first)])
    assert files == [bytes(first), bytes(second), bytes(tmp_path / "absent")]
    assert [value for key, value in said if key == b"core.hookspath"] == [b"a", b"b"]


def test_whatever_a_file_holds(tmp_path):
    assert list(git_config.entries(bytes(range(256)) * 4)) is not None
    (tmp_path / "big").write_bytes(b"[include]\n" + b"".join(b"path = %d\n" % number for number in range(1000)))
    assert len(git_config.read_all([bytes(tmp_path / "big")])[0]) == 64
    assert git_config.read_all([bytes(tmp_path), b"/dev/zero", b"/\0"])[1] == []
