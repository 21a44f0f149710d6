"""The custom executor of GitLab Runner: docs.gitlab.com/runner/executors/custom has the contract.

`config` gives a job a word that nobody can guess; the runner hands it to the other stages beside the job's variables,
which all begin with CUSTOM_ENV_ and so cannot replace it. The job's directories have that word as their name. What the
job says of itself (its id, its project) is believed of nothing but the runner's own file.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from sandbox import __version__, fsops, home, isolation, records, running
from sandbox.ci import summary
from sandbox.ci.gitlab_config import Config, RefusedError
from sandbox.ci.running import GRACE
from sandbox.ci.running import run as run_beside
from sandbox.engine.native import memory
from sandbox.errors import SandboxError, SourceError, UsageError, printable, reason, remedy
from sandbox.home import Home
from sandbox.images import names
from sandbox.images.store import Store

BUILDS, CACHE = "/run/gitlab/builds", "/run/gitlab/cache"
# Stages that the runner writes the scripts of; what is in the others comes from the job (custom executor, "Run").
_RUNNERS = frozenset(
    (
        "prepare_script",
        "get_sources",
        "clear_worktree",
        "restore_cache",
        "download_artifacts",
        "archive_cache",
        "archive_cache_on_failure",
        "upload_artifacts_on_success",
        "upload_artifacts_on_failure",
        "cleanup_file_variables",
    )
)
_JOB, _PROJECT = "SANDBOX_GITLAB_JOB", "SANDBOX_GITLAB_PROJECT"
_PREFIX = "CUSTOM_ENV_"
_LONGEST = 16 << 20
_SHELL = 'command -v bash >/dev/null && exec bash "$1"; exec sh "$1"'


class Job:
    """One job, as the variables of a stage tell of it. Raises UsageError outside GitLab Runner."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.variables = {k.removeprefix(_PREFIX): v for k, v in environ.items() if k.startswith(_PREFIX)}
        self.word, self.project = environ.get(_JOB, ""), environ.get(_PROJECT, "")
        if len(self.word) != 16 or set(self.word + self.project) - set("0123456789abcdef"):
            raise UsageError(
                f"{_JOB} is not set", hint="config_exec of config.toml must be sandbox too: docs/gitlab.md"
            )

    @property
    def name(self) -> str:
        """What `sandbox ps` calls its stages."""
        return f"gitlab-{self.word}"

    @property
    def owner(self) -> tuple[int, int]:
        """Whom its files belong to, and who it is: as root, somebody for each project, beyond the lanes of runs."""
        if os.getuid() != 0:
            return os.getuid(), os.getgid()
        uid = isolation.project_uid(int(self.project or self.word, 16 if not self.project else 10))
        return uid, uid


def config(environ: Mapping[str, str]) -> str:
    """What the runner is to know of the job's surroundings, as JSON."""
    job = {_JOB: secrets.token_hex(8)}
    if project := _project(environ):
        job[_PROJECT] = project
    facts: dict[str, Any] = {"builds_dir": BUILDS, "cache_dir": CACHE, "builds_dir_is_shared": False}
    facts |= {"hostname": os.uname().nodename, "driver": {"name": "sandbox", "version": __version__}, "job_env": job}
    return json.dumps(facts)


def _project(environ: Mapping[str, str]) -> str:
    """The project's number from the runner's own file; a job may set the variable of that name as it likes."""
    path = environ.get("JOB_RESPONSE_FILE")
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            number = json.loads(file.read(_LONGEST))["job_info"]["project_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(number) if isinstance(number, int) and number > 0 else ""


def prepare(environ: Mapping[str, str], settings: Config) -> None:
    """Make the job's directories, and try what its stages will need. Raises SandboxError."""
    job = Job(environ)
    _refuse_services(job)
    spec = settings.spec(job.variables, for_runner=False)
    with _directories(job) as (where, jobs, caches):
        # One that the configuration names is the administrator's mistake: the trial says so.
        if spec.root == b"@" + os.fsencode(job.variables.get("CI_JOB_IMAGE", "")):
            _refuse_missing(where, spec.root)
        for parent, name in ((jobs, b"builds"), (caches, _cache_name(job))):
            os.close(fsops.make_dirs(os.dup(parent), name, 0o700, owner=job.owner))
    print(f"sandbox: level {spec.isolation}, image {os.fsdecode(spec.root or b'of the host')}, network {spec.net}")
    code = _run(job, settings, "trial", b":\n")
    if code != 0:
        raise SandboxError(f"a first command in the sandbox of the job ended with {code}", hint="its line is above")


def _refuse_services(job: Job) -> None:
    try:
        services = json.loads(job.variables.get("CI_JOB_SERVICES") or "[]")
    except (ValueError, RecursionError):
        services = None
    if not isinstance(services, list):
        raise RefusedError("services: CI_JOB_SERVICES is no list in JSON", hint="remove services: from the job")
    if services:
        named = [str(one.get("name")) if isinstance(one, dict) else str(one) for one in services]
        raise RefusedError(
            f"services: this runner has none ({printable(', '.join(named))})",
            hint="remove services: from the job, or give it another runner with tags:",
        )


def _refuse_missing(where: Home, image: bytes) -> None:
    with Store(where.fd) as images:
        try:
            names.resolve(images, image)
        except SourceError:
            shown = printable(image.removeprefix(b"@"))
            raise RefusedError(
                f"image '{shown}': this runner has no such image", hint="sandbox image ls, as its user, says which"
            ) from None


@contextlib.contextmanager
def _directories(job: Job) -> Iterator[tuple[Home, int, int]]:
    """The home, the job's own directory and that of the caches of its project, or of the job where none is known."""
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(home.open_home(dict(os.environb), say=lambda _: None))
        if b":" in where.path:
            raise UsageError(f"{printable(where.path)}: a home with a colon in its path cannot be bound")
        held = [where.fd]
        for name in (b"gitlab", b"jobs", job.word.encode()):
            held.append(stack.enter_context(fsops.closing(fsops.make_dir(held[-1], name))))
        caches = stack.enter_context(fsops.closing(fsops.make_dir(held[1], b"caches"))) if job.project else held[3]
        yield where, held[3], caches


def _cache_name(job: Job) -> bytes:
    return job.project.encode() if job.project else b"cache"


def run(environ: Mapping[str, str], settings: Config, script: str, stage: str) -> int:
    """Run one script of the runner's. The exit code of what it runs. Raises SandboxError when it could not be run."""
    try:
        with open(script, "rb") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise SandboxError(f"cannot read the script {printable(script)}: {reason(error)}", hint=remedy(error)) from None
    if len(text) > _LONGEST:
        raise SandboxError(f"the script {printable(script)} is longer than {_LONGEST >> 20} MiB")
    return _run(Job(environ), settings, stage, text)


def _run(job: Job, settings: Config, stage: str, script: bytes) -> int:
    # The runner's directory, where this was started, has the job's token in it.
    os.chdir("/")
    fd = memory("gitlab-script", script)
    with fsops.closing(fd), _directories(job) as (where, _, _):
        base = f"{os.fsdecode(where.path)}/gitlab"
        cache = f"caches/{job.project}" if job.project else f"jobs/{job.word}/cache"
        own: dict[str, Any] = {"bind": [f"{base}/jobs/{job.word}/builds:{BUILDS}", f"{base}/{cache}:{CACHE}"]}
        own |= {"chdir": BUILDS, "name": job.name, "pass_fd": fd}
        if os.getuid() == 0:
            own["user"] = ":".join(map(str, job.owner))
        spec = settings.spec(job.variables, for_runner=stage in _RUNNERS, **own)
        command = ("sh", "-c", _SHELL, "sh", f"/proc/self/fd/{fd}")
        spec = spec.replace(command=tuple(map(os.fsencode, command)))
        ended = run_beside(spec, dict(os.environb), grace=GRACE, stdin=-3)
    if not ended.was_launched:
        raise SandboxError(f"stage {printable(stage)} could not be run", hint="its line is above")
    if ended.signals:
        print(f"sandbox: stage {printable(stage)} was ended from outside", flush=True)
    elif ended.report["cause"] != "exited":
        print(f"sandbox: {printable(stage)}: {summary.failure(ended, spec)}", flush=True)
    return ended.exit_code


def tell_exit_code(environ: Mapping[str, str], code: int) -> None:
    """For `allow_failure: exit_codes:`, where the runner wants to know: nothing but the number. Raises OSError."""
    if path := os.fsencode(environ.get("BUILD_EXIT_CODE_FILE", "")):
        with fsops.closing(os.open(os.path.dirname(path) or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as parent:
            fsops.replace_file(parent, os.path.basename(path), b"%d" % code)


def cleanup(environ: Mapping[str, str]) -> None:
    """End what is left of the job, and remove its directory. Raises SandboxError."""
    if _JOB not in environ:
        return  # The runner cleans up behind a config that failed, too.
    job = Job(environ)
    with home.open_home(dict(os.environb), say=lambda _: None) as where:
        for one in running.mine(where):
            if one.called == job.name:
                running.kill(one, kill_after=GRACE)
        records.clean_stale(where, say=lambda _: None, thorough=True)
        with contextlib.ExitStack() as stack:
            held = where.fd
            for name in (b"gitlab", b"jobs"):
                held = stack.enter_context(fsops.closing(fsops.make_dir(held, name)))
            try:
                fsops.remove_tree(held, job.word.encode())
            except OSError as error:
                raise SandboxError(
                    f"cannot remove the directory of job {job.word}: {reason(error)}", hint=remedy(error)
                ) from None
