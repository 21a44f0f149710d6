"""`sandbox job`: list and check the jobs of a file; and `sandbox run --job`: a job's options below the caller's."""

import argparse
import functools
import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from sandbox import jobfile, option_file
from sandbox.cli import run, run_options
from sandbox.errors import EXIT_LAUNCHER_FAILED, UsageError, complain, printable
from sandbox.jobfile import Job, JobFile
from sandbox.option_file import Opened
from sandbox.spec import validate

Actions = list[argparse.Action]


def register(commands: Any) -> None:
    job: argparse.ArgumentParser = commands.add_parser("job", help="list and check the jobs of a sandbox.toml")
    actions = job.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (("ls", "the jobs and their commands"), ("check", "whether all of them could be run")):
        action = actions.add_parser(name, help=text)
        action.add_argument("file", metavar="FILE", nargs="?", help="the file (default: sandbox.toml here or above)")
        action.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace) -> int:
    opened = jobfile.find() if args.file is None else jobfile.open_named(args.file)
    parser, actions = run.make_parser()
    file = JobFile(opened, option_file.keys(actions), run_options.LIMITS)
    if args.action == "check":
        for job in file.jobs.values():
            _judge(file, job, parser)
        return _print_problems(file, as_json=args.json)
    file.refuse_problems()
    if args.json:
        print(json.dumps([_facts(job) for job in file.jobs.values()], indent=2))
    else:
        for job in file.jobs.values():
            print(f"{printable(job.name)}\t{printable(shlex.join(_typed(job)))}")
    return 0


def _typed(job: Job) -> tuple[str, ...]:
    """The command as it stands in the file."""
    return job.command if not job.shell else job.command[2:3]


def _facts(job: Job) -> dict[str, Any]:
    return {"name": job.name, "line": job.line, "command": job.command, "options": job.words}


def _print_problems(file: JobFile, *, as_json: bool) -> int:
    problems = sorted(file.problems, key=lambda problem: problem.line)
    if as_json:
        facts = [dict(zip(problem.fields, problem, strict=True)) for problem in problems]
        print(json.dumps({"file": file.name, "jobs": list(file.jobs), "problems": facts}, indent=2))
    else:
        for problem in problems:
            complain(UsageError(f"{file.name}:{problem.line}: {problem.message}", hint=problem.hint))
        if not problems:
            count = len(file.jobs)
            print(f"{file.name}: {count} job{'s' if count != 1 else ''}, no mistake found")
    return EXIT_LAUNCHER_FAILED if problems else 0


def _judge(file: JobFile, job: Job, parser: argparse.ArgumentParser) -> None:
    """Note what a run with nothing but this job would be refused for."""
    try:
        validate(run.make_spec(parser.parse_args(job.words), tuple(map(os.fsencode, job.command))))
    except UsageError as whole:
        # It is the first mistake of the job: each option's own are more to the point.
        errors = [error for word in job.words if (error := _refusal(parser, word))]
        for error in errors or [whole]:
            file.blame(job, error)


def _refusal(parser: argparse.ArgumentParser, word: str) -> UsageError | None:
    try:
        run.make_spec(parser.parse_args([word]), ())
    except UsageError as error:
        return error
    return None


def with_job(
    parser: argparse.ArgumentParser,
    actions: Actions,
    args: argparse.Namespace,
    options: list[str],
    more: tuple[bytes, ...],
    defaults: argparse.Namespace | None = None,
) -> tuple[argparse.Namespace, tuple[bytes, ...]]:
    """The options and the command of a job, on top of the defaults, and of the command line, which wins.

    Raises UsageError.

    Goes to the directory of a file that was found, not to that of one that was named: this may lie anywhere.
    """
    if args.job is None:
        raise UsageError("--job-file: which job of it?", hint="--job NAME")
    opened = jobfile.find() if args.job_file is None else jobfile.open_named(args.job_file)
    file = JobFile(opened, option_file.keys(actions), run_options.LIMITS)
    job = file.job(os.fsencode(args.job).decode("utf-8", "surrogateescape"))
    _judge(file, job, parser)
    file.refuse_problems()
    caller = os.getcwd() if opened.above else ""
    _enter(opened)
    count_paths_from("" if args.job_file is None else os.path.dirname(args.job_file), actions)
    merged = parser.parse_args(job.words, defaults)
    count_paths_from(caller, actions)
    merged = parser.parse_args(options, merged)
    if job.needs_network and merged.isolation != "none" and merged.net is None:
        merged.net = "private"
    return merged, (*map(os.fsencode, job.command), *more)


def _enter(opened: Opened) -> None:
    if opened.above:
        os.fchdir(opened.directory)
        if "PWD" in os.environ:
            os.environ["PWD"] = os.getcwd()
    if opened.directory >= 0:
        os.close(opened.directory)


def count_paths_from(base: str, actions: Sequence[argparse.Action]) -> None:
    """Make paths in the values of options relative to `base`; "": to the working directory."""
    for action in actions:
        if action.metavar == "[NAME:]SRC" or action.metavar in jobfile.PLACES:
            action.type = functools.partial(jobfile.place, str(action.metavar), base) if base else None
