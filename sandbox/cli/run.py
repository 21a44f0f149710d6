"""`sandbox run`: parse, run, leave as the command left."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sandbox import launch, preparing
from sandbox.cli import words
from sandbox.cli.parser import HelpFormatter, Parser
from sandbox.errors import LOG_FORMATS, TIMED_OUT, SandboxError, complain, note, speak
from sandbox.spec import (
    DEFAULT_LOG_SIZE,
    DEFAULT_MAX_UNPACKED,
    ENGINES,
    LEVELS,
    MODES,
    NETS,
    WORKSPACES,
    Refinement,
    Spec,
    Tree,
    TreeKind,
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
LIMITS = {
    "timeout": ("DURATION", "end the job after this long: 20m, 1h30m, 90s"),
    "kill_after": ("DURATION", "kill what is left this long after the end was asked for (default 10s)"),
    "cpu_time": ("DURATION", "processor time of each process"),
    "nofile": ("N", "open files of each process"),
    "fsize": ("SIZE", "the largest file that can be written"),
    "memory": ("SIZE", "memory of the whole job (cgroup v2)"),
    "pids": ("N", "processes and threads of the whole job (cgroup v2)"),
    "cpus": ("N", "processors' worth of time for the whole job (cgroup v2), as in 1.5"),
    "limits": ("enforce|best-effort", "refuse to run with a limit that cannot be enforced, or do what can be done"),
    "nice": ("N", "the job's nice value, -20 to 19"),
}


class _AddTree(argparse.Action):
    """--static and --dynamic go into one list: mounts are made in the order given."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _option: Any = None) -> None:
        namespace.trees = [*namespace.trees, Tree(self.const, os.fsencode(values))]


class _AddRefinement(argparse.Action):
    """What refines a level goes into one list: it is done in the order given."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        added = Refinement(str(option).removeprefix("--"), os.fsencode(values))
        namespace.refinements = [*namespace.refinements, added]


_REFINEMENTS = {
    "bind": ("SRC[:DEST]", "SRC of the host at DEST, writable; at every level, as all that follow"),
    "ro-bind": ("SRC[:DEST]", "the same read-only"),
    "bind-try": ("SRC[:DEST]", "the same as --bind, where there is a SRC"),
    "device": ("NODE", "a device node of /dev that you can open yourself"),
    "hide": ("PATH", "nothing at PATH"),
    "tmpfs": ("DEST[:SIZE]", "an empty directory in RAM at DEST"),
    "symlink": ("TARGET:LINK", "a symlink, below what is the run's own"),
    "file": ("DEST=TEXT", "a read-only file that holds TEXT"),
}


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

    tree = {"action": _AddTree, "dest": "trees", "default": []}
    option(
        "-s",
        "--static",
        metavar="[NAME:]SRC",
        const=TreeKind.STATIC,
        help="SRC read-only at $SANDBOX_STATIC/NAME, or at NAME if that is absolute",
        **tree,
    )
    option(
        "-d",
        "--dynamic",
        metavar="[NAME:]SRC",
        const=TreeKind.DYNAMIC,
        help="SRC writable at $SANDBOX_DYNAMIC/NAME; changes vanish",
        **tree,
    )
    option("--dynamic-empty", metavar="NAME", const=TreeKind.EMPTY, help="an empty writable tree", **tree)
    option("--save", metavar="NAME=IMAGE", action="append", default=[], help="keep the changes of a dynamic tree")
    option("--save-full", metavar="NAME=IMAGE", action="append", default=[], help="the same with all that is in it")
    option("--cache", action="store_true", help="keep converted images in $SANDBOX_HOME/cache")
    option("--run", metavar="NAME/PATH", help="start this executable of a mounted tree; COMMAND is then its arguments")
    option("--mode", choices=MODES, default="auto", help="where the right to mount comes from")
    option("--engine", choices=ENGINES, default="auto", help="who carries out the plan")
    option(
        "-e",
        "--env",
        metavar="K[=V]",
        action="append",
        default=[],
        help="set a variable; K alone takes the caller's value",
    )
    option("--env-file", metavar="FILE", action="append", default=[], help="K=V lines")
    option("--unset-env", metavar="K", action="append", default=[], help="remove a variable")
    option("--chdir", metavar="DIR", help="working directory: a path, or NAME[/PATH] of a mounted tree")
    option("--mkdir", action="store_true", help="make missing mount points of absolute NAMEs (they stay)")
    option(
        "--scratch", metavar="tmpfs|DIR", default="tmpfs", help="where changes go: RAM, or a private directory in DIR"
    )
    option("--tmpfs-size", metavar="SIZE", help="limit of each tmpfs (bytes, or with K, M, G; default half of RAM)")
    option(
        "--max-unpacked",
        metavar="SIZE",
        help=f"refuse archives that unpack to more (default {DEFAULT_MAX_UNPACKED >> 30}G)",
    )
    option(
        "--symlinks",
        metavar="[NAME=]follow|deny",
        action="append",
        default=[],
        help="whether links in a tree are followed",
    )
    option("--leave-running", action="store_true", help="do not end what the command leaves behind")
    _isolation_options(option)
    for name, (metavar, text) in LIMITS.items():
        option("--" + name.replace("_", "-"), metavar=metavar, help=text)
    option("--report", metavar="FILE|-|fd:N", help="an account of the run as JSON, written when it is over")
    option("--trace", metavar="FILE|-|fd:N", help="the phases of the launch, in the Chrome trace format")
    option("--status-fd", metavar="FD", help="a line of JSON to this descriptor when the run is ready, started, ended")
    option("--log", metavar="FILE", help="what the command writes to its standard output and error, in FILE as well")
    option("--log-size", metavar="SIZE", help="how large FILE may become, beside one FILE.1 (default 10M)")
    option("--allow-new-privs", action="store_true", help="let setuid programs work (setuid mode: if its policy does)")
    option(
        "--require-mount",
        metavar="FILE",
        action="append",
        default=[],
        help="refuse to start while nothing is mounted on this directory",
    )
    option("--name", metavar="NAME", help="what sandbox ps, exec and kill call it; one running sandbox of yours has it")
    option("--job", metavar="NAME", help="start with the options and the command of this job of sandbox.toml")
    option("--job-file", metavar="FILE", help="where that job is (default: sandbox.toml here or above)")
    option("--args", metavar="FD", help="more options, in this place: from this descriptor, each ended by a NUL byte")
    option("--no-config", action="store_true", help="without the defaults of config.toml (sandbox config shows them)")
    option("--no-plan-cache", action="store_true", help="compile this launch anew, and do not store it")
    option("--explain", action="store_true", help="print the plan and run nothing")
    option(
        "--log-format", choices=LOG_FORMATS, default="text", help="what sandbox itself says, as lines of JSON or not"
    )
    option("-v", "--verbose", action="store_true", help="say what is being done, each step when it is done")
    return parser, actions


def _isolation_options(option: Callable[..., None]) -> None:
    option("--isolation", choices=LEVELS, default="none", help="what the command is kept from (docs/security.md)")
    option(
        "--net",
        choices=NETS,
        help="none: loopback only (default of job, strict), host: the host's, private: outgoing only",
    )
    for access, text in (("read", "read and execute"), ("write", "read and write")):
        option(
            f"--allow-{access}",
            metavar="PATH",
            action="append",
            default=[],
            help=f"a Landlock fence: {text} only there",
        )
    for name, (metavar, text) in _REFINEMENTS.items():
        option(f"--{name}", metavar=metavar, action=_AddRefinement, dest="refinements", default=[], help=text)
    option("--root", metavar="IMAGE|DIR", help="the root of level strict; what changes in it vanishes")
    option("--root-ro", action="store_true", help="nothing changes in that root")
    option("--as-root", action="store_true", help="the command is root, in a user namespace that holds nothing else")
    option(
        "--workspace", choices=WORKSPACES, default="overlay", help="the working directory: changes vanish, stay, fail"
    )
    option(
        "--workspace-unprotected", action="store_true", help="with rw: .git, hooks and editor settings can be changed"
    )
    option("--keep", metavar="SRC[=DEST]", action="append", default=[], help="copy SRC out of the job when it is over")
    option("-t", "--tty", action="store_true", help="give the job a terminal of its own")
    option("--pass-env", metavar="K", action="append", default=[], help="a variable that an isolated command gets")
    option("--pass-fd", metavar="N", action="append", default=[], help="a descriptor that an isolated command gets")
    option("--user", metavar="UID[:GID]", help="who an isolated command of root's is (default: nobody else)")
    option("--hostname", metavar="NAME", help="the host name (default of an isolated command: sandbox)")
    option("--seccomp", metavar="FILE|none", default="default", help="another filter of system calls (BPF), or none")
    option("--allow-syscall", metavar="NAME", action="append", default=[], help="a system call to allow as well")
    option("--audit", action="store_true", help="say which system calls the filter refused")
    option("--as-pid-1", action="store_true", help="without an init: the command is pid 1")


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
        _report_failure(args, command, error)
        raise


def _defaults(parser: Parser, actions: list[argparse.Action]) -> argparse.Namespace | None:
    """What a site or a user has configured. Raises UsageError."""
    from sandbox import config

    if not any(os.path.lexists(place.path) for place in config.places(os.environb)):
        return None
    from sandbox.cli import config as command

    return command.defaults(parser, actions)


def _report_failure(args: argparse.Namespace, command: tuple[bytes, ...], error: SandboxError) -> None:
    """A report is written of a launch that failed this early, too."""
    report, trace = (None if name is None else os.fsencode(name) for name in (args.report, args.trace))
    if report is None and trace is None and args.status_fd is None:
        return
    from sandbox.report import Reporter

    with contextlib.suppress(SandboxError):
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
    texts = {name: text for name in LIMITS if (text := getattr(args, name)) is not None}
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
