"""What is left of a job: artefacts that --keep copies out, the count of what vanished, the refused system calls."""

import os
import shutil
import stat

import pytest

from tests.support import reports

MAKE = """
mkdir -p out/sub && echo text > out/file && chmod 4755 out/file && ln -s /etc/passwd out/link && mkfifo out/pipe
echo deep > out/sub/deep && touch -d @1000000000 out/sub/deep && truncate -s 8M out/holes && echo x > /tmp/x
"""

# Every way to change a name, or to make one; what is allowed comes last.
CHANGE = """
import os, sys
def attempt(what, *words):
    try: what(*words)
    except OSError: return
    print(what.__name__, *words)
def write(name): open(name, "w").write("x")
for name in sys.argv[1:]: attempt(write, name)
for name in (".git", ".git/hooks", ".git/config", ".vscode", ".idea", ".envrc"):
    for what in (os.rmdir, os.unlink): attempt(what, name)
    attempt(os.rename, name, "moved")
    attempt(os.rename, "/tmp", name)
attempt(os.mkdir, ".zed"); attempt(os.symlink, "/tmp", ".devcontainer"); attempt(os.link, "/etc/hostname", ".envrc/x")
for name in ("src", ".git/objects/o"): write(name)
print("wrote")
"""


@pytest.fixture
def own(launch, area):
    return area.dir(launch.as_user)


def test_artefacts_are_copied_out(launch, own):
    """Also of a job that failed; permissions and times stay, setuid bits and what is no file do not."""
    (own / "to").mkdir()
    os.chown(own / "to", own.stat().st_uid, own.stat().st_gid)
    keeps = ["--keep", "out", "--keep", "/tmp/x=y", "--keep", "out/file=to/"]
    done = launch(*keeps, "--report", "r.json", "--", "sh", "-c", MAKE + "exit 3")
    assert done.returncode == 3, done.stderr
    assert "kept out without 1 that are no files" in done.stderr
    assert "changed files of the working directory were discarded" in done.stderr
    out = own / "out"
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == {"file", "link", "sub", "sub/deep", "holes"}
    assert stat.S_IMODE((out / "file").stat().st_mode) == 0o755
    assert os.readlink(out / "link") == "/etc/passwd"
    assert (out / "sub/deep").stat().st_mtime == 1_000_000_000
    assert (out / "holes").stat().st_size == 8 << 20 > (out / "holes").stat().st_blocks * 512
    assert (own / "y").read_text() == "x\n"
    assert (own / "to/file").read_text() == "text\n"
    assert out.stat().st_uid == own.stat().st_uid
    told = reports.read(own / "r.json")
    assert [kept["target"] for kept in told["kept"]] == ["out", "y", "to/"]
    assert (told["discarded"], told["kept"][0]["files"], told["kept"][0]["skipped"]) == (5, 3, 1)


def test_after_a_timeout_and_a_signal(launch, own):
    stubborn = "echo half > half; trap '' TERM; while :; do sleep 1; done"
    done = launch("--keep", "half", "--timeout", "1", "--kill-after", "0.2s", "--", "sh", "-c", stubborn)
    assert (done.returncode, (own / "half").read_text()) == (124, "half\n"), done.stderr
    done = launch("--keep", "dying", "--", "sh", "-c", "echo last > dying; kill -SEGV $$")
    assert (own / "dying").read_text() == "last\n", done.stderr


def test_nothing_is_overwritten(launch, own):
    """What is there stays, and the job does not even start; what comes while it runs stays as well."""
    (own / "there").write_text("mine\n")
    done = launch("--keep", "a=there", "--", "sh", "-c", "echo ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "there exists" in done.stderr
    late = own / "late"
    script = "echo job > late; echo ready; read -r _; exit 0"
    process = launch("--keep", "late", "--", "sh", "-c", script, popen=True, stdin=-1, stdout=-1, stderr=-1)
    assert process.stdout.readline() == "ready\n"
    late.write_text("mine\n")
    _out, err = process.communicate("go\n", timeout=60)
    assert (process.returncode, late.read_text()) == (125, "mine\n")
    assert "cannot keep late: File exists" in err


def test_what_would_be_copied_into_itself(launch, own):
    """Refused before the job starts, and by the copy where only that can know; nothing of it is left."""
    (own / "src/x").mkdir(parents=True)
    for path in (own / "src", own / "src/x"):
        os.chown(path, own.stat().st_uid, own.stat().st_gid)
    for workspace in ("overlay", "rw"):
        for target in ("src/", "src/x/", "src/x/y", "./src/x/../y"):
            done = launch("--workspace", workspace, "--keep", f"src={target}", "--", "echo", "ran")
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
            assert f"--keep: {target} lies in src" in done.stderr
    into = ["--chdir", "src", "--keep", "x=src/x/", "--", "true"]
    done = launch("--workspace", "rw", *into)
    assert (done.returncode, "cannot keep x: DEST lies in it" in done.stderr) == (125, True), done.stderr
    # Whether an overlay shows what comes below it is not defined; what is kept is whole where it does not.
    launch(*into)
    assert list((own / "src/x").rglob("*")) in ([], [own / "src/x/x"])
    done = launch("--workspace", "rw", "--keep", "moved=src/x/", "--", "mv", "src", "moved")
    assert "cannot keep moved: DEST lies in it" in done.stderr
    assert list((own / "moved").iterdir()) == [own / "moved/x"]
    done = launch("--keep", "moved=beside", "--keep", "moved/x=moved/y", "--", "true", check=True)
    assert ((own / "beside/x").is_dir(), (own / "moved/y").is_dir()) == (True, True)


def test_an_audit_names_what_was_refused(launch, own):
    script = "unshare -U true; unshare -U true; python3 -c 'import ctypes; ctypes.CDLL(None).syscall(9999)'"
    done = launch("--audit", "--report", "r.json", "--", "sh", "-c", script)
    calls = {call["call"]: (call["error"], call["count"]) for call in reports.read(own / "r.json")["refused_calls"]}
    assert (calls["unshare"], calls["number 9999"]) == (("EPERM", 2), ("ENOSYS", 1))
    assert "refused: unshare (EPERM, 2 times)" in done.stderr


HOOKS = """
import os
def attempt(what, *words):
    try: what(*words)
    except OSError: pass
def write(name): open(name, "w").write("evil")
def make(name): os.makedirs(os.path.dirname(name)); write(name)
for name in (".husky/_/pre-commit", ".husky/pre-commit", "tools/git/hooks/pre-commit", "new/hooks/pre-commit"):
    attempt(write, name)
    attempt(make, name)
    for above in (os.path.dirname(name), name.split("/")[0]):
        attempt(os.rename, above, "moved" + above.replace("/", "-"))
        attempt(os.rename, "plain", above)
    attempt(make, name)
write("tools/free")
print("wrote")
"""


def test_hooks_that_git_has_elsewhere(launch, own):
    """core.hooksPath: in a hidden directory, in a deeper one, in one that is not there."""
    for name in (".git", ".husky/_", "tools/git/hooks", "plain"):
        (own / name).mkdir(parents=True)
    lines = (
        "[Core]\n\tHooksPath = .husky/_  # x\n",
        '[core] hookspath="tools/git/hooks"\n',
        f"[core]\nhooksPath={own}/new/hooks\n",
    )
    for line in lines:
        (own / ".git/config").write_text(line)
        for path in own.iterdir():
            for each in (path, *path.rglob("*")):
                os.chown(each, own.stat().st_uid, own.stat().st_gid)
        done = launch("--workspace", "rw", "--", "/usr/bin/python3", "-c", HOOKS)
        assert done.stdout == "wrote\n", done.stderr
        wanted = next(name for name in (".husky", "tools/git/hooks", "new/hooks") if name in line)
        assert not [path for path in (own / wanted).rglob("*") if path.is_file()], line
        for path in own.iterdir():
            if path.name.startswith("moved") or path.name == "new":
                shutil.rmtree(path)
        for name in (".husky/_", "tools/git/hooks", "plain"):
            shutil.rmtree(own / name, ignore_errors=True)
            (own / name).mkdir(parents=True, exist_ok=True)


def test_what_the_host_executes_is_not_the_jobs(launch, own):
    """With a writable workspace neither git's hooks and configuration nor editors' settings change or come to be."""
    for name in (".git/hooks", ".git/objects", ".vscode"):
        (own / name).mkdir(parents=True)
    (own / ".git/config").write_text("[core]\n")
    for path in (own / ".git", *(own / ".git").rglob("*"), own / ".vscode"):
        os.chown(path, own.stat().st_uid, own.stat().st_gid)
    names = [
        f".git/{name}" for name in ("hooks/x", "config", "modules/m", "worktrees/w", "config.worktree", "commondir")
    ]
    names += [".vscode/x", ".idea/x", ".envrc", ".cursor/x", ".mcp.json"]
    done = launch("--workspace", "rw", "--", "/usr/bin/python3", "-c", CHANGE, *names)
    assert done.stdout == "wrote\n", done.stderr
    left = sorted(str(path.relative_to(own)) for path in own.rglob("*") if "sandbox-home" not in str(path))
    assert left == [".git", ".git/config", ".git/hooks", ".git/objects", ".git/objects/o", ".vscode", "src"]
    assert (own / ".git/config").read_text() == "[core]\n"
    script = "echo x > .git/hooks/x && echo x > .envrc && echo wrote"
    done = launch("--workspace", "rw", "--workspace-unprotected", "--", "sh", "-c", script)
    assert (done.stdout, (own / ".envrc").read_text()) == ("wrote\n", "x\n"), done.stderr
    (own / ".idea").symlink_to(".vscode")
    done = launch("--workspace", "rw", "--", "true")
    assert (done.returncode, ".idea is a symbolic link" in done.stderr) == (125, True)
