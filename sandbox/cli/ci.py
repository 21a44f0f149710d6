"""`sandbox ci`: under the CI systems that are there (docs/ci.md, docs/gitlab.md)."""

import argparse
import os
import re
from typing import Any, NoReturn

from sandbox.cli import run as running
from sandbox.cli.parser import Parser
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, UsageError, complain, printable
from sandbox.spec import validate

_RUN = """\
All options are those of sandbox run, but for the four here, and but for the level: it is job, unless --isolation or a
job of sandbox.toml says otherwise. docs/ci.md tells what is printed."""


def register(commands: Any) -> None:
    ci: argparse.ArgumentParser = commands.add_parser("ci", help="run jobs of CI systems")
    actions = ci.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("run", help="run a command, with marks in the log and summaries", add_help=False)

    gitlab: argparse.ArgumentParser = actions.add_parser("gitlab", help="the stages of GitLab Runner's custom executor")
    stages = gitlab.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, text in _STAGES.items():
        stage = stages.add_parser(name, help=text)
        stage.add_argument("--config", metavar="FILE", help="what jobs get (docs/gitlab.md)")
        if name == "run":
            stage.add_argument("script", metavar="SCRIPT", help="added by the runner")
            stage.add_argument("step", metavar="SUBSTAGE", help="added by the runner")


_STAGES = {
    "config": "print where the job works, as JSON",
    "prepare": "make its directories, and try its sandbox",
    "run": "run a script of the runner's",
    "cleanup": "remove what is left of the job",
}


def main(args: argparse.Namespace) -> int:
    """A stage of GitLab Runner's. Ends with the codes that the runner gave in the environment."""
    from sandbox.ci import gitlab, gitlab_config

    codes = {name: _code(name) for name in ("BUILD_FAILURE_EXIT_CODE", "SYSTEM_FAILURE_EXIT_CODE")}
    try:
        settings = gitlab_config.read(args.config)
        match args.stage:
            case "config":
                print(gitlab.config(os.environ))
            case "prepare":
                gitlab.prepare(os.environ, settings)
            case "cleanup":
                gitlab.cleanup(os.environ)
            case _:
                if (code := gitlab.run(os.environ, settings, args.script, args.step)) != 0:
                    gitlab.tell_exit_code(os.environ, code)
                    return codes["BUILD_FAILURE_EXIT_CODE"]
        return 0
    except gitlab_config.RefusedError as error:
        complain(error)
        return codes["BUILD_FAILURE_EXIT_CODE"]
    except (SandboxError, OSError) as error:
        complain(error if isinstance(error, SandboxError) else SandboxError(str(error)))
        return codes["SYSTEM_FAILURE_EXIT_CODE"]


def _code(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise UsageError(f"{name} is not set", hint="GitLab Runner calls this: docs/gitlab.md")
    return int(text)


def make_parser() -> tuple[Parser, list[argparse.Action], list[argparse.Action]]:
    """The parser of `ci run`, the options of `sandbox run` in it, and those of its own."""
    from sandbox.ci import marks

    parser, actions = running.make_parser()
    parser.prog = "sandbox ci run"
    parser.usage = "sandbox ci run [options] [--] COMMAND [ARGUMENT ...]"
    parser.description = _RUN
    own = [
        parser.add_argument("--marks", choices=marks.NAMES, default="auto", help="whose marks go into the log"),
        parser.add_argument("--title", metavar="TEXT", help="what the log calls the run (default: the command)"),
        parser.add_argument("--junit", metavar="FILE|-|fd:N", help="a summary as JUnit writes it"),
        parser.add_argument("--failure-code", metavar="N", help="what to end with whenever the command failed"),
    ]
    parser.set_defaults(isolation="job")
    return parser, actions, own


def run(argv: list[bytes]) -> NoReturn:
    """`sandbox ci run`: ends like the command."""
    from sandbox.ci import generic

    parser, actions, own = make_parser()
    spec, args = running.parse_with(argv, parser, actions, own)
    if args.explain:
        raise UsageError("ci run: --explain runs nothing", hint="sandbox run --explain shows the plan")
    try:
        validate(spec)
    except UsageError as error:
        # Before a run is begun that has no name to be called by.
        running.report_failure(args, spec.command, error)
        raise
    junit = None if args.junit is None else os.fsencode(args.junit)
    failed = None if args.failure_code is None else _failure_code(args.failure_code)
    ended = generic.run(spec, running.callers_environment(), kind=args.marks, title=args.title, junit=junit)
    from sandbox.engine.supervisor import end_as

    end_as(failed if failed and ended.returncode != 0 and ended.was_launched else ended.returncode)


def _failure_code(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) not in {*range(1, 256)} - {EXIT_LAUNCHER_FAILED}:
        why = f"ci run: --failure-code: '{printable(text)}' is no exit code that tells of a failure"
        raise UsageError(why, hint=f"1 to 255, but for {EXIT_LAUNCHER_FAILED}, which says that sandbox itself failed")
    return int(text)
