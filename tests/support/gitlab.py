"""GitLab Runner, as far as a custom executor sees it: the stages in their order, with their variables and scripts."""

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.support.runner import Runner
from tests.support.users import Identity

BUILD_FAILURE, SYSTEM_FAILURE = 17, 18
# The scripts that the runner writes for a job, but for the job's own.
BEFORE = ("prepare_script", "get_sources", "restore_cache", "download_artifacts")
# As its bash shell writes them: generated lines within one eval, whose standard input is empty.
_SCRIPT = "#!/usr/bin/env bash\n\nset -eo pipefail\nset +o noclobber\n: | eval $'{lines}'\nexit 0\n"


class GitLabRunner:
    """`job(...)` runs all stages; `stage(...)` one. `codes` has each stage's exit code, `log` all that was printed."""

    def __init__(self, run: Runner, who: Identity, settings: str = "", **variables: str) -> None:
        self.run, self.who, self.settings = run, who, settings
        self.directory = run.area.dir(who.as_user) / f"runner-{secrets.token_hex(4)}"
        self.directory.mkdir(mode=0o700)
        os.chown(self.directory, who.uid, who.gid)
        self.options = ["--config", self.file("gitlab.toml", settings)] if settings else []
        self.variables = {"CI_JOB_ID": "7", "CI_PROJECT_ID": "5", "CI_PROJECT_DIR": "/run/gitlab/builds/group/project"}
        self.variables |= variables
        self.response: Mapping[str, Any] | None = {"id": 7, "token": "s3cret", "job_info": {"project_id": 5}}
        self.job_env: dict[str, str] = {}
        self.codes: dict[str, int] = {}
        self.log = ""

    def file(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o700)
        os.chown(path, self.who.uid, self.who.gid)
        return str(path)

    def environment(self) -> dict[str, str]:
        env = {f"CUSTOM_ENV_{name}": value for name, value in self.variables.items()}
        env |= {"BUILD_FAILURE_EXIT_CODE": str(BUILD_FAILURE), "SYSTEM_FAILURE_EXIT_CODE": str(SYSTEM_FAILURE)}
        env |= {"TMPDIR": str(self.directory), "BUILD_EXIT_CODE_FILE": str(self.directory / "exit_code")}
        if self.response is not None:
            env["JOB_RESPONSE_FILE"] = self.file("response.json", json.dumps(self.response))
        return self.job_env | env

    def words(self, stage: str, *more: str) -> list[str]:
        return ["ci", "gitlab", stage, *self.options, *more]

    def stage(self, stage: str, *more: str) -> subprocess.CompletedProcess[str]:
        done = self.run(self.words(stage, *more), as_user=self.who.as_user, env=self.environment(), cwd=self.directory)
        self.log += done.stdout + done.stderr
        self.codes[more[-1] if more else stage] = done.returncode
        return done

    def begin(self) -> bool:
        """The stages up to the job's own; False when one of them failed."""
        done = self.stage("config")
        if done.returncode != 0:
            return False
        told = json.loads(done.stdout)
        assert told["builds_dir"] == "/run/gitlab/builds"
        self.job_env = told["job_env"]
        return self.stage("prepare").returncode == 0

    def script(self, lines: str) -> str:
        quoted = f"mkdir -p {self.variables['CI_PROJECT_DIR']} && cd {self.variables['CI_PROJECT_DIR']}\n{lines}\n"
        quoted = quoted.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return self.file(f"script{secrets.token_hex(4)}", _SCRIPT.replace("{lines}", quoted))

    def step(self, name: str, lines: str) -> subprocess.CompletedProcess[str]:
        return self.stage("run", self.script(lines), name)

    def job(self, script: str, *, sources: str = "echo source > file", after: str = "true") -> str:
        """All stages; what the job itself printed. The outcome is in `outcome`."""
        printed = ""
        if self.begin() and all(
            self.step(name, sources if name == "get_sources" else "true").returncode == 0 for name in BEFORE
        ):
            printed = self.step("step_script", script).stdout
            self.step("after_script", after)
            failed = self.codes["step_script"] != 0
            self.step("archive_cache_on_failure" if failed else "archive_cache", "true")
            self.step("upload_artifacts_on_failure" if failed else "upload_artifacts_on_success", "true")
            self.step("cleanup_file_variables", "true")
        self.stage("cleanup")
        return printed

    def brief(self, script: str, *, sources: str = "") -> str:
        """The same with the stages that matter most."""
        printed = ""
        if self.begin() and (not sources or self.step("get_sources", sources).returncode == 0):
            printed = self.step("step_script", script).stdout
        self.stage("cleanup")
        return printed

    @property
    def exit_code(self) -> str:
        path = self.directory / "exit_code"
        return path.read_text() if path.exists() else ""

    def left(self) -> list[str]:
        """What is still there of jobs."""
        jobs = self.run.area.home(self.who.as_user) / "gitlab" / "jobs"
        return os.listdir(jobs) if jobs.exists() else []
