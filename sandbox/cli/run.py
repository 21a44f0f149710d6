"""`sandbox run`: parse, run, leave as the command left."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandbox import launch, outputs, preparing
from sandbox.cli import run_options, words
from sandbox.cli.parser import HelpFormatter, Parser
from sandbox.errors import LOG_FORMATS, TIMED_OUT, SandboxError, complain, note, speak
from sandbox.spec import (
    DEFAULT_LOG_SIZE,
    DEFAULT_MAX_UNPACKED,
    Spec,
    parse_descriptor,
    parse_hostname,
    parse_keep,
    parse_run_name,
    parse_save,
    parse_size,
    parse_symlinks,
    parse_user,
)

if TYPE_CHECKING:
    from sandbox.limits import Limits

_EPILOG = """\
SRC is a squashfs image, a zip (also .whl, .jar), a tar (plain, gzip, bzip2, xz, zstd), a directory, an AppImage, or
base64 text of a zip or squashfs; or several of them, BASE+LAYER..., stacked. The kind is told by content. What a job
switches on, --no-OPTION switches off. Exit codes: 125 sandbox itself failed, 126 the command cannot be executed, 127
it was not found, otherwise the command's own."""
# What the native front starts: this package, without the front.
FRONTS_PYTHON = "sandbox-python"


def make_parser() -> tuple[Parser, list[argparse.Action]]:
    parser = Parser(
        prog="sandbox run",
        usage="sandbox run [options] [--] COMMAND [ARGUMENT ...]",
        description="Run a command with private, throw-away filesystems.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add, actions = parser.add_argument, []

    def option(*names: str, **settings: Any) -> None:
        actions.append(action := add(*names, **settings))
        # What a job file switches on, the command line can switch off.
        if settings.get("action") == "store_true" and not names[-1].startswith("--no-"):
            add(f"--no-{names[-1][2:]}", action="store_false", dest=action.dest, default=False, help=argparse.SUPPRESS)

    run_options.add_all(option)
    return parser, actions


def parse(argv: list[bytes]) -> tuple[Spec, argparse.Namespace]:
    """The spec of a command line. Raises UsageError."""
    return parse_with(argv, *make_parser())


def parse_with(
    argv: list[bytes], parser: Parser, actions: list[argparse.Action], more: Sequence[argparse.Action] = ()
) -> tuple[Spec, argparse.Namespace]:
    """The same with a parser that was added to: `more` are options that are about no spec. Raises UsageError."""
    known = [*actions, *more]
    typed, words_of_command = words.split_command([os.fsdecode(word) for word in argv], known)
    if (log_format := words.last_value(typed, "--log-format")) in LOG_FORMATS:
        # What is wrong with the other options is said in it, too.
        speak(log_format)
    options = words.with_args(typed, known)
    args = parser.parse_args(options)
    command = tuple(map(os.fsencode, words_of_command))
    try:
        defaults = None if args.no_config else _defaults(parser, actions)
        if args.job is not None or args.job_file is not None:
            from sandbox.cli import job

            args, command = job.with_job(parser, actions, args, options, command, defaults)
        elif defaults is not None:
            args = parser.parse_args(options, defaults)
        args.args = options != typed
        return make_spec(args, command), args
    except SandboxError as error:
        report_failure(args, command, error)
        raise


def _defaults(parser: Parser, actions: list[argparse.Action]) -> argparse.Namespace | None:
    """What a site or a user has configured. Raises UsageError."""
    from sandbox import config

    if not any(os.path.lexists(place.path) for place in config.places(os.environb)):
        return None
    from sandbox.cli import config as command

    return command.defaults(parser, actions)


def report_failure(args: argparse.Namespace, command: tuple[bytes, ...], error: SandboxError) -> None:
    """A report is written of a launch that failed this early, too."""
    report, trace, log = (None if name is None else os.fsencode(name) for name in (args.report, args.trace, args.log))
    if report is None and trace is None and args.status_fd is None:
        return
    from sandbox.report import Reporter

    with contextlib.suppress(SandboxError):
        outputs.refuse_shared(Spec(command, report=report, trace=trace, log=log))
        status = None if args.status_fd is None else _status_fd(args.status_fd)
        with contextlib.closing(Reporter(report, trace, command, status=status)) as reporter:
            reporter.failed(error)


def _status_fd(text: str) -> int:
    return parse_descriptor(text, option="--status-fd", least=1)


def make_spec(args: argparse.Namespace, command: tuple[bytes, ...]) -> Spec:
    raw = os.fsencode
    return Spec(
        command=command,
        trees=tuple(args.trees),
        run=None if args.run is None else raw(args.run),
        mode=args.mode,
        engine=args.engine,
        cache=args.cache,
        env=tuple(map(raw, args.env)),
        env_files=tuple(map(raw, args.env_file)),
        unset_env=tuple(map(raw, args.unset_env)),
        chdir=None if args.chdir is None else raw(args.chdir),
        mkdir=args.mkdir,
        scratch=None if args.scratch == "tmpfs" else raw(args.scratch),
        tmpfs_size=args.tmpfs_size and parse_size(args.tmpfs_size, option="--tmpfs-size"),
        max_unpacked=DEFAULT_MAX_UNPACKED
        if args.max_unpacked is None
        else parse_size(args.max_unpacked, option="--max-unpacked"),
        symlinks=tuple(parse_symlinks(raw(text)) for text in args.symlinks),
        leave_running=args.leave_running,
        isolation=args.isolation,
        net=args.net,
        hostname=None if args.hostname is None else parse_hostname(raw(args.hostname)),
        as_pid_1=args.as_pid_1,
        pass_env=tuple(map(raw, args.pass_env)),
        pass_fds=tuple(parse_descriptor(text, option="--pass-fd") for text in args.pass_fd),
        user=None if args.user is None else parse_user(args.user),
        workspace=args.workspace,
        workspace_unprotected=args.workspace_unprotected,
        keeps=tuple(parse_keep(raw(text)) for text in args.keep),
        audit=args.audit,
        tty=args.tty,
        allow_syscalls=tuple(map(raw, args.allow_syscall)),
        seccomp=raw(args.seccomp),
        limits=_limits(args),
        report=None if args.report is None else raw(args.report),
        trace=None if args.trace is None else raw(args.trace),
        status_fd=None if args.status_fd is None else _status_fd(args.status_fd),
        log=None if args.log is None else raw(args.log),
        log_format=args.log_format,
        log_size=DEFAULT_LOG_SIZE if args.log_size is None else parse_size(args.log_size, option="--log-size"),
        allow_new_privs=args.allow_new_privs,
        allow_read=tuple(map(raw, args.allow_read)),
        allow_write=tuple(map(raw, args.allow_write)),
        refinements=tuple(args.refinements),
        root=None if args.root is None else raw(args.root),
        root_ro=args.root_ro,
        as_root=args.as_root,
        require_mounts=tuple(map(raw, args.require_mount)),
        name=None if args.name is None else parse_run_name(raw(args.name)),
        saves=(
            *(parse_save(raw(text), full=False) for text in args.save),
            *(parse_save(raw(text), full=True) for text in args.save_full),
        ),
    )


def _limits(args: argparse.Namespace) -> "Limits | None":
    """Only who limits something pays for knowing how."""
    texts = {name: text for name in run_options.LIMITS if (text := getattr(args, name)) is not None}
    if not texts:
        return None
    from sandbox import limits

    return limits.parse(texts)


def main(argv: list[bytes]) -> int:
    """Run, and end like the command. Returns only for --explain."""
    spec, args = parse(argv)
    say = note if args.verbose else _silent
    if args.explain:
        for line in launch.explain(spec, callers_environment(), say=say):
            print(line)
        return 0
    hint = note if args.verbose or os.isatty(2) else _silent
    environ, calling = callers_environment(), preparing.Calling(verbose=args.verbose)
    if _may_be_stored(args):
        from sandbox import stored

        environ = stored.Consulted(environ)
        calling = preparing.Calling(keeper=stored.Keeper([b"run", *argv], len(argv) - len(spec.command) + 1))
    result = launch.run(spec, environ, say=say, hint=hint, calling=calling)
    if result.timed_out:
        complain(TIMED_OUT)
    from sandbox.engine.supervisor import end_like

    return end_like(result)


def _may_be_stored(args: argparse.Namespace) -> bool:
    """Whether the front started this, nobody switched its store off, and the words say it all."""
    if os.path.basename(sys.argv[0]) != FRONTS_PYTHON or os.environb.get(b"SANDBOX_PLAN_CACHE") == b"0":
        return False
    return not (args.verbose or args.args or args.no_plan_cache or args.job is not None or args.job_file is not None)


def callers_environment() -> dict[bytes, bytes]:
    """The environment this process was started with: Python may add LC_CTYPE to its own (PEP 538)."""
    env = dict(os.environb)
    if env.get(b"LC_CTYPE") in (b"C.UTF-8", b"C.utf8", b"UTF-8"):
        with open("/proc/self/environ", "rb") as file:
            if not any(item.startswith(b"LC_CTYPE=") for item in file.read().split(b"\0")):
                del env[b"LC_CTYPE"]
    return env


def _silent(_: str) -> None:
    pass
