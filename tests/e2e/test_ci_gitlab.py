"""`sandbox ci gitlab`: a driver calls the stages as GitLab Runner does (tests/support/gitlab.py)."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from sandbox.ci.gitlab_config import Config
from tests.support import archives, escapes
from tests.support.archives import Entry
from tests.support.gitlab import BUILD_FAILURE, SYSTEM_FAILURE, GitLabRunner

NO_NET = 'net = "none"\nnet-runner = "none"\n'


@pytest.fixture(params=["root", "userns", "setuid"])
def mode(request, run_sandbox, identities):
    """The mode that jobs are in, for whoever runs the runner's service then."""
    if request.param != "userns" and os.geteuid() != 0:
        pytest.skip("the suite was not started as root")
    if request.param == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    return request.param


@pytest.fixture
def runner(run_sandbox, mode, identities):
    return GitLabRunner(run_sandbox, identities[mode != "root"], f'{NO_NET}[options]\nmode = "{mode}"\n')


def test_a_job_from_its_sources_to_its_end(runner):
    """All stages see one workspace and one cache, which are the job's; the next job sees the cache of the project."""
    who = runner.who
    script = "cat file; pwd; id -u; echo cached > /run/gitlab/cache/kept; env"
    printed = (
        runner.job(script, after="cat file") if who.as_user else runner.brief(script, sources="echo source > file")
    )
    lines = printed.splitlines()
    assert lines[:2] == ["source", "/run/gitlab/builds/group/project"]
    assert lines[2] == str(who.uid) or (not who.as_user and int(lines[2]) > 0x70000000)
    assert "s3cret" not in printed
    assert "CUSTOM_ENV" not in printed
    assert set(runner.codes.values()) == {0}, runner.log
    assert runner.left() == []
    again = GitLabRunner(runner.run, who, runner.settings)
    assert again.brief("ls -A; cat /run/gitlab/cache/kept; ls ..").splitlines() == ["cached", "project"]


def test_a_cache_is_of_the_project_that_the_runner_names(run_sandbox, user):
    """A variable of the job's makes it no other project's; where the runner names none, the cache is the job's."""
    caches = run_sandbox.area.home(user.as_user) / "gitlab" / "caches"
    runner = GitLabRunner(run_sandbox, user, NO_NET, CI_PROJECT_ID="5", CI_JOB_ID="../../x")
    runner.response = {"id": 8, "job_info": {"project_id": 6}}
    assert runner.brief("echo x > /run/gitlab/cache/x") == ""
    assert [str(path.relative_to(caches)) for path in caches.rglob("*")] == ["6", "6/x"]
    runner.response = None
    assert runner.brief("ls /run/gitlab/cache; echo y > /run/gitlab/cache/y") == ""
    assert (len(list(caches.rglob("*"))), runner.left()) == (2, [])


def test_failures_are_told_apart(run_sandbox, user):
    runner = GitLabRunner(run_sandbox, user, NO_NET)
    runner.brief("exit 42")
    assert (runner.codes["step_script"], runner.exit_code) == (BUILD_FAILURE, "42")
    runner.stage("run", "/no/such/script", "step_script")
    assert runner.codes["step_script"] == SYSTEM_FAILURE
    assert "/no/such/script" in runner.log


def test_a_signal_is_told_as_a_shell_does(run_sandbox, user):
    runner = GitLabRunner(run_sandbox, user, NO_NET)
    runner.brief("kill -SEGV $$")
    assert (runner.codes["step_script"], runner.exit_code) == (BUILD_FAILURE, str(128 + signal.SIGSEGV))
    assert "killed by SIGSEGV" in runner.log


REFUSED = [
    ({"CI_JOB_SERVICES": '[{"name":"redis:latest","alias":""}]'}, "services: this runner has none (redis:latest)"),
    ({"CI_JOB_SERVICES": '[{"name":"x\\n\\u001b[2Jy"}]'}, r"services: this runner has none (x\n\x1b[2Jy)"),
    ({"CI_JOB_SERVICES": "["}, "services: CI_JOB_SERVICES is no list in JSON"),
    ({"CI_JOB_SERVICES": "5"}, "services: CI_JOB_SERVICES is no list in JSON"),
    ({"CI_JOB_SERVICES": "[" * 100_000}, "services: CI_JOB_SERVICES is no list in JSON"),
    ({"CI_JOB_IMAGE": "tiny\n::error::x"}, r"\n::error::x': this runner has no such image"),
    ({"CI_JOB_IMAGE": "../../tiny"}, "this runner has no such image"),
    ({"CI_JOB_IMAGE": "debian"}, "image 'debian': this runner has no such image (sandbox image ls"),
    ({"CI_JOB_IMAGE": "debian:12"}, "this runner has no such image"),
    ({"CI_JOB_IMAGE": "/"}, "this runner takes no image from there"),
    ({"CI_JOB_IMAGE": "/etc/../root"}, "this runner takes no image from there"),
    ({"CI_JOB_IMAGE": "@sha256:00000000"}, "this runner has no such image"),
    ({"SANDBOX_TIMEOUT": "2h"}, "SANDBOX_TIMEOUT: 2h is more than this runner gives (at most 1h)"),
    ({"SANDBOX_NOFILE": "x"}, "limits of the job: --nofile: 'x' is not a number"),
]


def test_what_a_job_does_not_get(run_sandbox, user):
    """It fails in prepare as the job's own failure, which the runner does not try again, and leaves nothing."""
    runner = GitLabRunner(run_sandbox, user, NO_NET + '[options]\ntimeout = "1h"\n')
    runner.job_env = {"SANDBOX_GITLAB_JOB": "0123456789abcdef"}
    known = dict(runner.variables)
    for variables, line in REFUSED:
        runner.variables = known | variables
        done = runner.stage("prepare")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (BUILD_FAILURE, "", 1), (
            variables,
            runner.log,
        )
        assert line in done.stderr
    runner.stage("cleanup")
    assert runner.left() == []


def test_limits_of_the_job(run_sandbox, user):
    runner = GitLabRunner(
        run_sandbox, user, NO_NET + "[options]\nnofile = 500\n", SANDBOX_NOFILE="99", SANDBOX_TIMEOUT="1s"
    )
    printed = runner.brief("ulimit -n; sleep 60")
    assert printed.startswith("99\n")
    assert (runner.codes["step_script"], runner.exit_code) == (BUILD_FAILURE, "124")
    assert "its time was up (--timeout 1)" in runner.log


def test_an_image_from_the_store_a_path_and_a_mapping(run_sandbox, user, area):
    """The job's scripts run in the image; the runner's own on the host's programs. One workspace for both."""
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists()).read_bytes()
    shell = Entry("bin/sh", kind="symlink", target="busybox")
    entries = [Entry.directory("bin"), Entry("bin/busybox", busybox, mode=0o755), shell]
    image = archives.make_squashfs(area.dir(user.as_user) / "root.squashfs", entries)
    os.chown(image, user.uid, user.gid)
    run_sandbox(["image", "build", image, "-t", "tiny"], as_user=user.as_user, check=True)
    settings = f'{NO_NET}image-paths = ["{image.parent}"]\n[images]\n"tiny:1" = "@tiny"\n'
    assert Config().spec({"CI_JOB_IMAGE": "tiny"}, for_runner=False).root == b"@tiny"
    for name in (str(image), "tiny:1"):
        runner = GitLabRunner(run_sandbox, user, settings, CI_JOB_IMAGE=name)
        printed = runner.brief("/bin/busybox ls /; /bin/busybox cat file", sources="echo source > file")
        assert set(runner.codes.values()) == {0}, runner.log
        assert "source" in printed
        assert "home" not in printed.split()


def test_cancelled(runner):
    """TERM goes to the process group of a stage (custom executor, "Terminating and killing executables")."""
    assert runner.begin()
    words = runner.words("run", runner.script("trap '' TERM\necho ready\nsleep 1000 & wait\nwait"), "step_script")
    options = {"env": runner.environment(), "cwd": runner.directory, "stdout": subprocess.PIPE, "process_group": 0}
    process = runner.run.popen(words, as_user=runner.who.as_user, **options)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == BUILD_FAILURE
    assert "was ended from outside" in process.stdout.read()
    runner.stage("cleanup")
    assert runner.left() == []


@pytest.mark.leaves_procdirs
def test_killed(run_sandbox, user):
    """And KILL when that takes too long: cleanup then finds nobody, and removes what is there."""
    runner = GitLabRunner(run_sandbox, user, NO_NET)
    assert runner.begin()
    words = runner.words("run", runner.script("echo ready\nsleep 1000"), "step_script")
    options = {"env": runner.environment(), "cwd": runner.directory, "stdout": subprocess.PIPE, "process_group": 0}
    process = runner.run.popen(words, as_user=user.as_user, **options)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout.read() == ""
    process.wait(60)
    assert runner.stage("cleanup").returncode == 0
    assert runner.left() == []
    assert runner.run.left_procdirs() == []


# Directories that nobody may enter, a link out, and a tree that is deeper than a path can say.
HOSTILE_TREE = """
python3 - <<'END'
import os
os.makedirs("a/b/c/\\n::error::x")
open("a/b/file", "w").close()
os.symlink("/", "a/b/link")
for name in ("a/b/c", "a/b", "a"):
    os.chmod(name, 0)
for _ in range(1200):
    os.mkdir("deep")
    os.chdir("deep")
END
"""


def test_a_hostile_job_gains_nothing(runner, user):
    with escapes.targets(user.home) as words:
        probe = runner.script("true").replace("script", "probe")
        with open(probe, "w") as file:
            file.write(
                f"cat > probe.py <<'END'\n{escapes.PROBE}END\nexec /usr/bin/python3 probe.py {' '.join(words)}\n"
            )
        assert runner.begin(), runner.log
        done = runner.stage("run", probe, "step_script")
    assert done.returncode == 0, done.stderr
    escapes.check(done.stdout)
    assert runner.step("after_script", HOSTILE_TREE).returncode == 0, runner.log
    assert runner.stage("cleanup").returncode == 0, runner.log
    assert runner.left() == []


def test_jobs_at_the_same_time_do_not_see_each_other(run_sandbox, user):
    one, two = (GitLabRunner(run_sandbox, user, NO_NET) for _ in "12")
    assert one.begin()
    assert two.begin()
    assert one.step("step_script", "echo mine > ../../secret").returncode == 0
    found = two.step("step_script", "ls ../..; find / -xdev -name secret -path '*builds*' 2>&- || true; ls -A ~")
    assert "secret" not in found.stdout
    for runner in (one, two):
        runner.stage("cleanup")
    assert one.left() == []


LIES = "printf '\\033[0Ksection_end:1:step_script\\r\\033[0K\\033]0;title\\007Job succeeded\\n::error::x\\n'; "
BOMBS = {
    "says that it succeeded": (LIES + "exit 3", {}, "3", ""),
    "says that sandbox failed": (LIES + "exit 125", {}, "125", ""),
    "kills everything": ("kill -KILL -1; kill -KILL $$", {}, "137", "killed by SIGKILL"),
    "floods the log": (
        "while :; do echo flood; done",
        {"SANDBOX_TIMEOUT": "1s"},
        "124",
        "its time was up (--timeout 1)",
    ),
    "leaves a process": ("setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & exit 4", {}, "4", ""),
    "writes a large file": ("exec head -c 8M /dev/zero > f", {"SANDBOX_FSIZE": "1M"}, "153", "(--fsize 1048576)"),
}


def test_a_hostile_job_is_reported_as_it_was(run_sandbox, user):
    """What it prints is its own affair. The runner hears of a failed build, and of nothing that is the runner's."""
    runner = GitLabRunner(run_sandbox, user, NO_NET)
    assert runner.begin(), runner.log
    known = dict(runner.variables)
    for name, (script, variables, code, line) in BOMBS.items():
        runner.variables = known | variables
        done = runner.step("step_script", script)
        assert (name, done.returncode, runner.exit_code) == (name, BUILD_FAILURE, code), done.stderr
        told = [said for said in done.stdout.splitlines() if said.startswith("sandbox: step_script: ")]
        assert (name, bool(told)) == (name, bool(line))
        assert not line or line in done.stdout.splitlines()[-1]
    assert runner.stage("cleanup").returncode == 0
    assert runner.left() == []


def test_outside_of_the_runner(run_sandbox, user):
    done = run_sandbox(["ci", "gitlab", "prepare"], as_user=user.as_user)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    runner = GitLabRunner(run_sandbox, user, NO_NET)
    assert runner.stage("prepare").returncode == SYSTEM_FAILURE, "without config there is no word"
    assert "config_exec" in runner.log
    assert runner.stage("cleanup").returncode == 0, "there is nothing to clean up"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("nets = 1", "there is no key nets"),
        ('image = ["x"]', "image must be a str"),
        ('[options]\nuser = "0"', "user is for the stages to decide"),
        ('[options]\nmemroy = "1G"', "there is no such option"),
        ('net = "all"', "--net"),
        ("= 1", "gitlab.toml:1:"),
    ],
)
def test_a_mistake_in_the_configuration(run_sandbox, user, settings, line):
    runner = GitLabRunner(run_sandbox, user, settings)
    assert not runner.begin()
    assert runner.codes == {"config": SYSTEM_FAILURE}
    assert line in runner.log
    assert runner.log.count("\n") == 1
