"""Job files as a user meets them: where they are found, whose are believed, what a job sees, what is refused."""

import json
import os
import stat

import pytest

from tests.support import reports
from tests.support.archives import Entry, make_zip

JOB = """
[job.where]
command = 'pwd; echo "$A:$#:$*"'
env = { A = "file" }
"""


@pytest.fixture
def own(area, who):
    """A project of the identity, with a directory below."""
    where = area.dir(who.as_user)
    write(where / "sandbox.toml", JOB, who)
    (where / "sub").mkdir()
    return where


def write(path, text, who, mode=0o644):
    path.write_text(text)
    os.chown(path, who.uid, who.gid)
    path.chmod(mode)


def refusal(done):
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (125, "", 1), done.stderr
    return done.stderr.removeprefix("sandbox: ").rstrip()


def test_a_job_starts_where_its_file_was_found(run_sandbox, own, who):
    done = run_sandbox(["run", "--job", "where", "-e", "A=x", "a", "b c"], as_user=who.as_user, cwd=own / "sub")
    assert (done.stdout, done.stderr) == (f"{own}\nx:2:a b c\n", "")


def test_a_job_of_a_named_file_starts_where_the_caller_is(run_sandbox, own, who):
    args = ["run", "--job=where", "--job-file=../sandbox.toml", "--report=r.json"]
    done = run_sandbox(args, as_user=who.as_user, cwd=own, check=False)
    assert "cannot open ../sandbox.toml" in refusal(done)
    assert reports.read(own / "r.json")["cause"] == "launcher"
    os.chown(own / "sub", who.uid, who.gid)
    done = run_sandbox(args, as_user=who.as_user, cwd=own / "sub", check=True)
    assert done.stdout == f"{own}/sub\nfile:0:\n"
    assert reports.read(own / "sub" / "r.json")["command"][:2] == ["sh", "-c"]


@pytest.mark.parametrize("engine", ["python", "native"])
def test_sources_count_from_the_file(run_sandbox, own, who, engine):
    (own / "sub" / "ci").mkdir()
    make_zip(own / "sub" / "ci" / "a.zip", [Entry("f", b"hello")])
    text = f'[job.a]\ncommand = "cat $SANDBOX_STATIC/a/f"\nstatic = ["a.zip"]\nengine = "{engine}"'
    write(own / "sub" / "ci" / "sandbox.toml", text, who)
    args = ["run", "--job", "a", "--job-file", "sub/ci/sandbox.toml"]
    assert run_sandbox(args, as_user=who.as_user, check=True).stdout == "hello"
    assert run_sandbox(["run", "--job", "a"], as_user=who.as_user, cwd=own / "sub" / "ci").stdout == "hello"


def test_an_isolated_job(run_sandbox, own, who):
    text = '[job.a]\ncommand = "hostname; touch new; ls"\nlevel = "job"\nhostname = "inner"\nlimits = { nofile = 99 }\n'
    write(own / "sub" / "sandbox.toml", text, who)
    done = run_sandbox(["run", "--job", "a"], as_user=who.as_user, cwd=own / "sub", check=True)
    assert done.stdout == "inner\nnew\nsandbox.toml\n"
    assert not (own / "sub" / "new").exists()


def test_through_the_setuid_helper(run_sandbox, setuid_system, area, user):
    run_sandbox.system = setuid_system
    where = area.dir(True)
    write(where / "sandbox.toml", f'{JOB}mode = "setuid"\nstatic = ["a.zip"]', user)
    make_zip(where / "a.zip", [Entry("f", b"x")])
    done = run_sandbox(["run", "--job", "where", "x"], as_user=True, check=True)
    assert done.stdout == f"{where}\nfile:1:x\n"


def test_bytes_are_utf_8_in_every_locale(run_sandbox, own, who):
    write(own / "sandbox.toml", '[job."ö"]\ncommand = ["printf", "%s", "ü€"]\nenv = { "Ä" = "ß" }', who)
    latin = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_sandbox(["run", "--job=ö"], as_user=who.as_user, env=latin, check=True).stdout == "ü€"
    assert "has no job" in refusal(run_sandbox(["run", "--job=ü"], as_user=who.as_user, env=latin))


# -- whose file ------------------------------------------------------------------------------------------------

NOT_USED = "(look at it, then name it: --job-file ../sandbox.toml)"


def test_a_file_above_that_somebody_else_put_there_is_not_used(run_sandbox, own, who):
    """The attack: a sandbox.toml in a directory above, as in /tmp/sandbox.toml."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file to somebody else")
    own.chmod(0o1777)
    os.chown(own / "sandbox.toml", 65534, 65534)
    args = ["run", "--job", "where"]
    done = run_sandbox(args, as_user=who.as_user, cwd=own / "sub")
    assert refusal(done) == f"../sandbox.toml is not used: it belongs to uid 65534 {NOT_USED}"
    assert "is not used" in refusal(run_sandbox(["job", "check"], as_user=who.as_user, cwd=own / "sub"))
    named = run_sandbox([*args, "--job-file", "../sandbox.toml"], as_user=who.as_user, cwd=own / "sub")
    assert named.stdout == f"{own}/sub\nfile:0:\n"


def test_a_directory_of_somebody_else_s_is_not_trusted(run_sandbox, own, who):
    """The attack: somebody moves or links a file of the caller's into a directory of their own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory to somebody else")
    os.chown(own, 65534, 65534)
    done = run_sandbox(["run", "--job", "where"], as_user=who.as_user, cwd=own / "sub")
    assert refusal(done) == f"../sandbox.toml is not used: its directory belongs to uid 65534 {NOT_USED}"


@pytest.mark.parametrize(("of", "mode"), [("sandbox.toml", 0o666), (".", 0o777)])
def test_what_everybody_may_change_is_not_trusted(run_sandbox, own, who, of, mode):
    (own / of).chmod(mode)
    done = run_sandbox(["run", "--job", "where"], as_user=who.as_user, cwd=own / "sub")
    assert refusal(done) == f"../sandbox.toml is not used: everybody may change it {NOT_USED}"


@pytest.mark.parametrize(("of", "mode", "what"), [("sandbox.toml", 0o664, "it"), (".", 0o775, "its directory")])
def test_what_a_group_of_others_may_change_is_not_trusted(run_sandbox, own, who, of, mode, what):
    """A user's private group is the user; a group that the user shares is others, and so is every group for root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file to any group")
    shared = who.groups[0] if who.as_user else 12345
    args = ["run", "--job", "where"]
    (own / of).chmod(mode)
    assert run_sandbox(args, as_user=who.as_user, cwd=own / "sub").returncode == 0
    os.chown(own / of, -1, shared)
    (own / of).chmod(mode)
    done = run_sandbox(args, as_user=who.as_user, cwd=own / "sub")
    assert refusal(done) == f"../sandbox.toml is not used: group {shared} may change {what} {NOT_USED}"
    named = run_sandbox([*args, "--job-file", "../sandbox.toml"], as_user=who.as_user, cwd=own / "sub")
    assert named.returncode == 0
    # Sticky, a directory lets nobody replace what is the user's.
    if of == ".":
        (own / of).chmod(0o1775)
        assert run_sandbox(args, as_user=who.as_user, cwd=own / "sub").returncode == 0


def test_a_link_is_not_followed(run_sandbox, own, who):
    (own / "sub" / "sandbox.toml").symlink_to(own / "sandbox.toml")
    done = run_sandbox(["run", "--job", "where"], as_user=who.as_user, cwd=own / "sub")
    assert "sandbox.toml is a symbolic link" in refusal(done)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFDIR, 0])
def test_what_is_no_file_is_refused_at_once(run_sandbox, own, who, kind):
    (own / "sandbox.toml").unlink()
    if kind == stat.S_IFIFO:
        os.mkfifo(own / "sandbox.toml")
        os.chown(own / "sandbox.toml", who.uid, who.gid)
    elif kind:
        (own / "sandbox.toml").mkdir()
        os.chown(own / "sandbox.toml", who.uid, who.gid)
    expected = "sandbox.toml is not a regular file" if kind else "there is no sandbox.toml here or in a directory above"
    assert expected in refusal(run_sandbox(["run", "--job", "where"], as_user=who.as_user))
    if kind:
        done = run_sandbox(["run", "--job", "where", "--job-file", "sandbox.toml"], as_user=who.as_user)
        assert expected in refusal(done)


# -- listing and checking --------------------------------------------------------------------------------------


def test_ls_and_check(run_sandbox, own, who):
    call = {"as_user": who.as_user, "cwd": own / "sub"}
    assert run_sandbox(["job", "ls"], **call).stdout == "where\t'pwd; echo \"$A:$#:$*\"'\n"
    (job,) = json.loads(run_sandbox(["job", "ls", "--json", "../sandbox.toml"], **call).stdout)
    assert (job["name"], job["line"], job["options"]) == ("where", 2, ["--env=A=file"])
    assert run_sandbox(["job", "check"], **call).stdout == "../sandbox.toml: 1 job, no mistake found\n"


SOON = "'soon' is not a duration (seconds, or as in 90s, 20m, 1h30m; more than 0)"
NO_SIZE = "'-1' is not a size (a number of bytes, or with K, M, G, T, as in 512M)"


def test_check_names_every_mistake_and_does_nothing(run_sandbox, own, who):
    """A stranger's file: nothing that it names is started, opened or made."""
    text = """
        [job.a]
        command = ["touch", "made"]
        report = "made.json"
        trace = "made.trace"
        scratch = "made.d"
        timeout = "soon"
        limits = { nofile = 1.5, memory = "-1" }
        [job.b]
        comand = ["touch", "made"]
        env-file = ["/proc/self/environ"]
        [other]
        """
    write(own / "sandbox.toml", text, who)
    before = sorted(os.listdir(own))
    done = run_sandbox(["job", "check", "sandbox.toml"], as_user=who.as_user)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        f"sandbox: sandbox.toml:7: job a: --timeout: {SOON}",
        "sandbox: sandbox.toml:8: job a: --nofile: '1.5' is not a number from 1 to 2147483648",
        f"sandbox: sandbox.toml:8: job a: --memory: {NO_SIZE}",
        "sandbox: sandbox.toml:10: job b: unknown key comand (did you mean command?)",
        "sandbox: sandbox.toml:12: unknown key other (a job file has tables [job.NAME] and nothing else)",
    ]
    told = json.loads(run_sandbox(["job", "check", "--json"], as_user=who.as_user).stdout)
    assert [problem["line"] for problem in told["problems"]] == [7, 8, 8, 10, 12]
    assert "sandbox.toml:10: " in refusal(run_sandbox(["job", "ls"], as_user=who.as_user))
    assert sorted(os.listdir(own)) == before
