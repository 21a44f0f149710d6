"""What `sandbox` is started with, and did not choose: dispositions, a directory, a umask, a stack."""

import os
import resource
import signal
import stat

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine

TREE = [Entry("f", b"hello\n")]
# What is tried here ends at once, or never.
SECONDS = 30


@pytest.fixture(params=["python", "native"])
def engine(request):
    if request.param == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    return request.param


# -- SIGCHLD ignored, as many daemons hand it down: the kernel reaps children, and tells nobody (wait(2)) ----------


def ignore_children():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


IGNORED = {"preexec_fn": ignore_children, "timeout": SECONDS}
OPTIONS = {
    "plain": [],
    "unstored": ["--no-plan-cache"],
    "job": ["--isolation", "job"],
    "strict": ["--isolation", "strict"],
    "time": ["--isolation", "job", "--timeout", "20", "--kill-after", "1"],
    "log": ["--log", "log"],
    "keep": ["--isolation", "job", "--keep", "f"],
    "archive": ["-s", "t.tar"],
    "image": ["-s", "t.sfs", "-d", "u:t.sfs"],
    "report": ["--report", "r.json"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_children_ignored_the_exit_code_is_the_commands(run_sandbox, engine, who, area, options):
    """Twice: what Python compiled, the front starts."""
    own = area.dir(who.as_user)
    archives.make_squashfs(own / "t.sfs", TREE)
    archives.make_tar(own / "t.tar", TREE)
    words = ["run", "--engine", engine, *options, "--"]
    for _ in range(2):
        done = run_sandbox([*words, "sh", "-c", "echo x > f; exit 7"], as_user=who.as_user, **IGNORED)
        assert done.returncode == 7, done.stderr
        (own / "f").unlink(missing_ok=True)


@pytest.mark.parametrize("options", [[], ["--isolation", "job"], ["--log", "log"]], ids=["plain", "job", "log"])
def test_the_command_finds_children_ignored_as_its_caller_had(run_sandbox, engine, who, area, options):
    """Not of a shell, which takes the default for itself."""
    words = ["run", "--engine", engine, *options, "--", "grep", "SigIgn", "/proc/self/status"]
    for _ in range(2):
        done = run_sandbox(words, as_user=who.as_user, **IGNORED)
        assert int(done.stdout.split()[-1], 16) & 1 << signal.SIGCHLD - 1, done


def test_with_children_ignored_changes_are_saved(run_sandbox, engine, who, area):
    archives.make_tar(area.dir(who.as_user) / "t.tar", TREE)
    done = run_sandbox(["image", "build", "t.tar", "-t", "base"], as_user=who.as_user, **IGNORED)
    assert done.returncode == 0, done.stderr
    script = "echo x > $SANDBOX_DYNAMIC/t/g"
    args = ["run", "--engine", engine, "-d", "t:@base", "--save", "t=more", "--", "sh", "-c", script]
    done = run_sandbox(args, as_user=who.as_user, **IGNORED)
    assert done.returncode == 0, done.stderr
    done = run_sandbox(["run", "-s", "t:@base+@more", "--", "sh", "-c", "cat $SANDBOX_STATIC/t/g"], as_user=who.as_user)
    assert done.stdout == "x\n", done.stderr


@pytest.mark.parametrize("options", [[], ["-e", "A=1"]], ids=["native", "python"])
def test_with_children_ignored_a_run_is_joined(run_sandbox, who, area, options):
    running = ["run", "--name", "one", "--isolation", "job", "--", "sh", "-c", "echo; exec sleep 60"]
    process = run_sandbox.popen(running, as_user=who.as_user, stdout=-1)
    assert process.stdout.readline() == "\n"
    words = ["exec", *options, "one", "--", "sh", "-c", "exit 7"]
    done = run_sandbox(words, as_user=who.as_user, **IGNORED)
    process.terminate()
    assert (done.stdout, done.returncode) == ("", 7), done.stderr
    process.wait(SECONDS)


def test_with_children_ignored_the_doctor_looks(run_sandbox, who):
    done = run_sandbox(["doctor"], as_user=who.as_user, preexec_fn=ignore_children)
    assert "cannot go on" not in done.stderr
    assert done.returncode == run_sandbox(["doctor"], as_user=who.as_user).returncode


@pytest.mark.parametrize("options", [[], ["--isolation", "job"]], ids=["none", "job"])
@pytest.mark.parametrize("kind", ["-s", "-d"])
def test_with_children_ignored_images_are_shown_by_the_helper(run_sandbox, setuid_system, area, kind, options):
    """Whoever starts the helper chose what it inherits: rebuilding an image, it waits for programs."""
    run_sandbox.system = setuid_system
    archives.make_squashfs(area.dir(as_user=True) / "t.sfs", TREE)
    args = [
        "run",
        "--mode",
        "setuid",
        *options,
        kind,
        "t.sfs",
        "--",
        "sh",
        "-c",
        "cat ${SANDBOX_STATIC:-$SANDBOX_DYNAMIC}/t/f; exit 7",
    ]
    done = run_sandbox(args, as_user=True, **IGNORED)
    assert (done.stdout, done.returncode) == ("hello\n", 7), done.stderr


API = """
import asyncio, signal, sys
import sandbox.errors
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
engine, source = sys.argv[1:]
how = {"engine": engine, "isolation": "job", "static": [source], "capture_output": True}
def tell(result): print(result.returncode, result.stdout.decode().split(), result.cause)
tell(sandbox.run(["sh", "-c", "grep -c hello $SANDBOX_STATIC/t/f; exit 7"], **how))
tell(sandbox.run(["sh", "-c", "kill -KILL $$"], **how))
tell(sandbox.Sandbox(engine=engine, timeout=0.2).run(["sleep", "60"]))
tell(asyncio.run(sandbox.run_async(["sh", "-c", "exit 7"], **how)))
with sandbox.Sandbox(engine=engine) as box, box.spawn(["sh", "-c", "echo; exec sleep 60"], stdout=-1) as process:
    process.stdout.readline()
    process.terminate()
    print(process.wait(), process.poll(), process.returncode)
try: sandbox.run(["no such command"], engine=engine)
except sandbox.errors.CommandError as error: print(error.exit_code)
try: sandbox.run(["true"], static=["broken.tar"], engine=engine)
except sandbox.SandboxError as error: print("refused")
print(signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN)
"""


def test_a_program_that_ignores_its_children_gets_their_codes(run_sandbox, engine, who, area):
    """A library changes nothing of its caller's, so what the kernel does not tell is in the account of the run."""
    own = area.dir(who.as_user)
    archives.make_tar(own / "t.tar", TREE)
    (own / "broken.tar").write_bytes((own / "t.tar").read_bytes()[:700] + b"rubbish" * 100)
    run_sandbox.command = run_sandbox.command.with_name("python")
    done = run_sandbox(["-c", API, engine, "t.tar"], as_user=who.as_user, timeout=120)
    wanted = "7 ['1'] exited\n-9 [] signalled\n124 [] timeout\n7 [] exited\n-15 -15 -15\n127\nrefused\nTrue\n"
    assert done.stdout == wanted, done.stderr


# -- a working directory that was deleted ---------------------------------------------------------------------------


def in_a_deleted_directory(run_sandbox, who, area, *words):
    gone = area.dir(who.as_user) / "gone"
    gone.mkdir()
    os.chown(gone, who.uid, who.gid)

    def enter():
        os.chdir(gone)
        os.rmdir(gone)

    return run_sandbox(words, as_user=who.as_user, preexec_fn=enter, timeout=SECONDS)


JOBS = {
    "copy": ["--isolation", "job"],
    "rw": ["--isolation", "job", "--workspace", "rw"],
    "ro": ["--isolation", "job", "--workspace", "ro"],
    "strict": ["--isolation", "strict"],
}


@pytest.mark.parametrize("options", JOBS.values(), ids=JOBS)
def test_a_job_in_a_deleted_directory_is_refused(run_sandbox, engine, who, area, options):
    """It worked in the root directory, which nobody had asked for."""
    done = in_a_deleted_directory(run_sandbox, who, area, "run", "--engine", engine, *options, "--", "pwd")
    assert (done.stdout, done.returncode) == ("", 125)
    assert "the working directory was deleted" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_job_told_where_to_work_needs_no_directory_of_the_callers(run_sandbox, engine, who, area):
    words = ["run", "--engine", engine, "--isolation", "job", "--chdir", "/usr", "--", "pwd"]
    done = in_a_deleted_directory(run_sandbox, who, area, *words)
    assert (done.stdout, done.returncode) == ("/usr\n", 0), done.stderr


def test_without_isolation_a_deleted_directory_is_the_commands(run_sandbox, engine, who, area):
    script = "readlink /proc/self/cwd"
    done = in_a_deleted_directory(run_sandbox, who, area, "run", "--engine", engine, "--", "sh", "-c", script)
    assert done.stdout.endswith("/gone (deleted)\n"), done.stderr


@pytest.mark.parametrize("option", ["-s", "-d"])
def test_a_relative_path_in_a_deleted_directory_is_named(run_sandbox, who, area, option):
    archives.make_zip(area.dir(who.as_user) / "s.zip", TREE)
    done = in_a_deleted_directory(run_sandbox, who, area, "run", option, "../s.zip", "--", "true")
    assert done.returncode == 125
    assert "../s.zip" in done.stderr
    assert "the working directory was deleted" in done.stderr
    assert len(done.stderr.splitlines()) == 1


API_GONE = """
import os, sandbox
os.mkdir("there"); os.chdir("there"); os.rmdir("../there")
try: print(sandbox.run(["pwd"], isolation="job", capture_output=True).stdout)
except sandbox.SandboxError as error: print(error)
"""


def test_a_program_in_a_deleted_directory_is_told(run_sandbox, who):
    run_sandbox.command = run_sandbox.command.with_name("python")
    done = run_sandbox(["-c", API_GONE], as_user=who.as_user)
    assert "the working directory was deleted" in done.stdout, done.stderr


# -- a strict umask: what is made has the mode that it is meant to have ---------------------------------------------


@pytest.mark.parametrize("umask", [0o777, 0o277, 0o377])
def test_a_strict_umask_leaves_the_home_as_it_should_be(run_sandbox, engine, who, area, umask):
    own = area.dir(who.as_user)
    archives.make_zip(own / "s.zip", TREE)
    archives.make_tar(own / "s.tar", TREE)
    home = area.home(who.as_user)
    words = ["--engine", engine, "--isolation", "job", "--cache", "-s", "s.zip", "--", "sh", "-c", "umask"]
    for _ in range(2):
        done = run_sandbox(["run", *words], as_user=who.as_user, umask=umask)
        assert (done.stdout, done.returncode) == (f"{umask:04o}\n", 0), done.stderr
    done = run_sandbox(["image", "build", "s.tar", "-t", "um"], as_user=who.as_user, umask=umask)
    assert done.returncode == 0, done.stderr
    for args in (["ps"], ["image", "ls"], ["cache", "ls"], ["cleanup"]):
        done = run_sandbox(args, as_user=who.as_user, umask=umask)
        assert done.returncode == 0, done.stderr
    assert {path: mode for path, mode in modes_of(directories(home)).items() if mode != 0o700} == {}
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if not path.stat().st_mode & stat.S_IRUSR]


def test_a_strict_umask_leaves_the_front_its_plans(front):
    words = ["--isolation", "job", "--", "true"]
    assert front.compile(*words, umask=0o777).returncode == 0
    assert front.files()
    assert front.again(*words, umask=0o777).returncode == 0


def directories(home):
    return [home, *(path for path in home.rglob("*") if path.is_dir())]


def modes_of(paths):
    return {path: stat.S_IMODE(path.stat().st_mode) for path in paths}


# -- a stack that is too small for Python, which dies of it without a word -----------------------------------------


@pytest.mark.parametrize("kilobytes", [32, 64])
def test_a_stack_too_small_for_python_is_named(front, kilobytes):
    """The front itself needs less, and so does what it starts without Python."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_STACK, (kilobytes << 10, -1))}
    words = ["--isolation", "job", "--", "true"]
    done = front.compile(*words, **limit)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert f"a stack of {kilobytes} KiB" in done.stderr
    assert front.compile(*words).returncode == 0
    done = front.again(*words, **limit)
    assert (done.stderr, done.returncode) == ("", 0)
