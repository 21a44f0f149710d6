"""Binds and their kin, and roots, that cannot be: one line each, and nothing is left."""

import pytest

WRONG = {
    "without '..'": ("--tmpfs", "/tmp/../etc"),
    "not /": ("--bind", "/usr:/"),
    "--ro-bind: cannot open": ("--ro-bind", "/nowhere:/mnt"),
    "cannot mount on /mnt/none": ("--ro-bind", "/usr:/mnt/none"),
    "cannot mount a file on the directory /mnt": ("--ro-bind", "/etc/passwd:/mnt"),
    "cannot mount a directory on the file /etc/passwd": ("--tmpfs", "/etc/passwd"),
    "--root: cannot open /nowhere": ("--isolation", "strict", "--root", "/nowhere"),
    "on the host, where nothing is changed": ("--symlink", "x:/srv/link"),
    "is not a device node": ("--device", "/usr"),
    "not a size": ("--tmpfs", "/mnt:many"),
    "no text": ("--file", "/mnt/f"),
    "no target": ("--symlink", "/mnt/f"),
    "level strict": ("--root", "/usr"),
    "which root": ("--isolation", "strict", "--root-ro"),
    "takes a user namespace": ("--as-root", "--mode", "setuid"),
    "mode landlock": ("--mode", "landlock", "--bind", "/usr:/mnt"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be(run_sandbox, text):
    done = run_sandbox(["run", *WRONG[text], "--", "true"], as_user=False)
    assert (done.stdout, done.returncode) == ("", 125)
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_source_of_bind_try_and_a_colon_in_a_name(run_sandbox, area):
    odd = area.dir(False) / "a:b"
    odd.mkdir()
    (odd / "f").write_text("odd\n")
    words = ("--bind-try", "/nowhere:/mnt", "--tmpfs", "/mnt", "--ro-bind", odd, "--ro-bind", f"{odd}:/mnt/x")
    done = run_sandbox(["run", "--isolation", "strict", *words, "--", "cat", odd / "f", "/mnt/x/f"], as_user=False)
    assert done.stdout == "odd\nodd\n", done.stderr


def test_a_job_file_refines(run_sandbox, area):
    """Relative sources count from the file's directory; lists stay in their order within a key."""
    where = area.dir(False)
    (where / "data").mkdir()
    (where / "data" / "f").write_text("data\n")
    (where / "sandbox.toml").write_text(
        """[job.one]
command = ["sh", "-c", "cat /mnt/f /etc/motto; hostname"]
level = "strict"
ro-bind = ["data:/mnt"]
file = { "/etc/motto" = "slowly\\n" }
hostname = "box"
"""
    )
    done = run_sandbox(["run", "--job", "one", "--job-file", where / "sandbox.toml"], as_user=False)
    assert done.stdout == "data\nslowly\nbox\n", done.stderr
    explained = run_sandbox(["run", "--explain", "--job", "one", "--job-file", where / "sandbox.toml"], as_user=False)
    assert "is the new root" in explained.stdout
    assert f"{where}/data of the host" in explained.stdout
