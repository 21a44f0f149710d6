"""What docs/ci.md, gitlab.md, buildbot.md and hpc.md tell people to type and to write into files, tried as it is."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sandbox.ci import gitlab_config
from tests.support import archives
from tests.support.archives import Entry
from tests.support.gitlab import GitLabRunner

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _block(page, language, word):
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return next(block for block in blocks if word in block)


def _shell(run_sandbox, who, script, **changes):
    """A shell of theirs, in which `sandbox` is the command that is tested."""
    env = run_sandbox.environment(who.as_user, changes)
    env["PATH"] = f"{run_sandbox.command.parent}:{env['PATH']}"
    how = {**who.popen_options(), "env": env, "cwd": run_sandbox.area.dir(who.as_user), "stdin": subprocess.DEVNULL}
    done = subprocess.run(["sh", "-c", script], **how, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_of_any_system(run_sandbox, user, area):
    where = area.dir(user.as_user)
    (where / "Makefile").write_text("test:\n\tmkdir dist\n\techo made >dist/file\n")
    assert "sandbox: begin: unit tests" in _shell(run_sandbox, user, _block("ci.md", "sh", "ci run"))
    assert (where / "dist-of-job" / "file").read_text() == "made\n"
    assert json.loads((where / "report.json").read_text())["exit_code"] == 0
    assert (where / "junit.xml").exists()


def test_the_files_of_gitlab_s_runner(run_sandbox, user):
    """The runner's own file names the stages and their order of words; the other is taken as it is."""
    custom = tomllib.loads(_block("gitlab.md", "toml", "[[runners]]"))["runners"][0]["custom"]
    for stage in ("config", "prepare", "run", "cleanup"):
        assert custom[f"{stage}_exec"] == "/usr/bin/sandbox"
        assert custom[f"{stage}_args"] == ["ci", "gitlab", stage, "--config", "/etc/sandbox/gitlab.toml"]
    runner = GitLabRunner(run_sandbox, user, _block("gitlab.md", "toml", "image-paths"))
    settings = gitlab_config.read(runner.options[1])
    for image, root in (("", b"@debian-12"), ("ruby:3", b"/srv/images/ruby.squashfs"), ("mine", b"@mine")):
        spec = settings.spec({"CI_JOB_IMAGE": image}, for_runner=False)
        assert (spec.root, spec.isolation, spec.limits.timeout) == (root, "strict", 7200)
    assert json.loads(runner.stage("config").stdout)["builds_dir"] == "/run/gitlab/builds"


def test_the_master_s_configuration_for_buildbot(run_sandbox, user, area, monkeypatch):
    """Its steps, without Buildbot (test_ci_buildbot.py has a real one): each runs, its directory stays."""
    made = []
    keep = SimpleNamespace(ShellCommand=lambda **options: made.append(options), Git=lambda **_: None)
    plugins = ModuleType("buildbot.plugins")
    plugins.steps, plugins.util = keep, SimpleNamespace(BuildFactory=list)
    monkeypatch.setitem(sys.modules, "buildbot.plugins", plugins)
    exec(_block("buildbot.md", "python", "BuildFactory"), {})
    where = area.dir(user.as_user)
    (where / "Makefile").write_text("all:\n\techo built >built\ntest:\n\tcat built\n")
    printed = [run_sandbox(step["command"][1:], as_user=user.as_user, check=True).stdout for step in made]
    assert "built\n" in printed[1]
    assert (where / "junit.xml").exists()
    line = re.search(r"`command=(\[.*?\])", (DOCS / "buildbot.md").read_text())[1]
    assert run_sandbox([*json.loads(line)[1:-1], "false"], as_user=user.as_user).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount /projects in a namespace of its own")
def test_a_job_of_slurm_s_its_prolog_and_its_epilog(run_sandbox, user, area):
    """On a node whose /projects is a mount, as far as that namespace goes; the next one has none."""
    where = area.dir(user.as_user)
    python = Entry("bin/python", b'#!/bin/sh\necho "trained with $1"\n', mode=0o755)
    image = archives.make_squashfs(area.path / "env.sfs", [Entry.directory("bin"), python])
    prolog = _block("hpc.md", "sh", "mountpoint")
    job, epilog = _block("hpc.md", "sh", "#SBATCH --ntasks"), _block("hpc.md", "sh", "SLURM_JOB_USER")
    shares = {"/home": area.path / "home", "/projects": area.path / "projects"}
    for name, path in shares.items():
        path.mkdir()
        prolog, job = (re.sub(rf"(?<![\w.]){name}\b", str(path), text) for text in (prolog, job))
    scripts = {"prolog": prolog, "job": job, "epilog": epilog.replace("'sandbox ", f"'{run_sandbox.command} ")}
    for name, text in scripts.items():
        (area.path / name).write_text(text)
        (area.path / name).chmod(0o755)
    env = run_sandbox.environment(
        user.as_user, {"SLURM_JOB_ID": "7", "SLURM_JOB_USER": user.name, "TMPDIR": str(where)}
    )
    env["PATH"] = f"{run_sandbox.command.parent}:{env['PATH']}"
    node = f"""
        cd {area.path}
        ! ./prolog || exit 90
        for share in home projects; do mount -t tmpfs none $share; done
        ./prolog || exit 91
        mkdir -p projects/lab && cp {image} projects/lab/env.sfs
        (cd {where} && exec setpriv --reuid={user.uid} --regid={user.gid} --clear-groups {area.path}/job) || exit 92
        ./epilog || exit 93
    """
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", node]
    done = subprocess.run(alone, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "trained with train.py\nnothing is left behind\n"), done.stderr
    assert json.loads((where / "report-7.json").read_text())["cause"] == "exited"
