"""`sandbox`: finds the command's module and turns errors into one line and an exit code."""

import contextlib
import errno
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from sandbox import __version__, dispositions, errors
from sandbox.errors import LOG_FORMATS, HostError, SandboxError, UsageError, printable, reason

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COMMANDS = {
    "run": "run a command in a sandbox",
    "image": "build, name, roll back, verify and carry images",
    "config": "show the defaults of config.toml",
    "job": "list and check the jobs of a sandbox.toml",
    "ci": "run jobs of CI systems",
    "cache": "list and clean converted images",
    "ps": "list the sandboxes that run",
    "top": "watch them, the busiest first",
    "inspect": "all that is known of a running one",
    "exec": "run a command inside a running one",
    "kill": "end running ones, cleanly",
    "guard": "protect mount points that may be offline",
    "cleanup": "undo what crashes left behind",
    "report": "show what a run reported about itself",
    "setuid": "install, look at and remove the setuid helper",
    "doctor": "what this host can do, and the remedy for what it cannot",
    "completion": "a shell's completion of this command line",
}
_USAGE = "usage: sandbox COMMAND ...\n\n" + "".join(f"  {name:10} {text}\n" for name, text in COMMANDS.items())
_USAGE += """
sandbox COMMAND --help lists the options of one.
sandbox --debug COMMAND ... shows a traceback of what fails, sandbox --log-format json COMMAND ... says what goes wrong
and how it goes as lines of JSON.
"""


def main() -> NoReturn:
    """Entry point of the `sandbox` command."""
    try:
        dispositions.take()
        _hear_interrupts()
        code = _code()
        _flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        code = 128 + signal.SIGINT
    os._exit(code)


def _code() -> int:
    """Do it. The exit code; whatever went wrong has been said."""
    words = [os.fsencode(word) for word in sys.argv[1:]]
    debug = False
    try:
        _reserve_standard_descriptors()
        _make_streams_safe()
        debug, log_format, words = _own_options(words)
        code = _written(words, log_format)
    except SandboxError as error:
        code = _complain(error, debug)
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except OSError as error:
        code = _complain(_unforeseen(error), debug)
    except Exception as error:  # a bug; still one line
        hint = "report it, with what sandbox --debug ... says"
        code = _complain(SandboxError(f"internal error: {type(error).__name__}: {error}", hint=hint), debug)
    return code


def _written(words: list[bytes], log_format: list[bytes]) -> int:
    """Do it, and write out what it printed. The exit code."""
    try:
        code = _dispatch(words, log_format)
    except SystemExit:  # argparse, after --help
        code = 0
    sys.stdout.flush()
    return code


def _unforeseen(error: OSError) -> SandboxError:
    """Of something that no module expects to fail."""
    what = f": {printable(os.fsencode(error.filename))}" if isinstance(error.filename, (str, bytes)) else ""
    why, hint = reason(error), "sandbox doctor looks for what is wrong with this host"
    if error.errno == errno.EMFILE:
        why = f"{why}, of which there may be {os.sysconf('SC_OPEN_MAX')}"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        hint = errors.remedy(error)
    return HostError(f"cannot go on{what}: {why}", hint=hint)


def _hear_interrupts() -> None:
    """From here on Ctrl-C ends this silently. Until now the native front has it wait, where that started this."""
    if os.environ.pop("SANDBOX_HELD", None) is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _complain(error: SandboxError, debug: bool) -> int:
    """Say it, with where it failed for who asked for that; the exit code."""
    trace = ""
    if debug:
        import traceback

        trace = traceback.format_exc()
    errors.complain(error, trace=trace)
    return error.exit_code


def _own_options(words: list[bytes]) -> tuple[bool, list[bytes], list[bytes]]:
    """What stands before the command: --debug, the words of --log-format; and the words from the command on.

    Raises UsageError.
    """
    debug, log_format = False, list[bytes]()
    while words[:1] == [b"--debug"] or (words and words[0].partition(b"=")[0] == b"--log-format"):
        option, equals, value = words[0].partition(b"=")
        if option == b"--debug":
            debug, words = True, words[1:]
            continue
        log_format, words = ([option, value], words[1:]) if equals else (words[:2], words[2:])
        if (wanted := os.fsdecode(b"".join(log_format[1:]))) not in LOG_FORMATS:
            raise UsageError(f"--log-format: there is no format {wanted!r}", hint=f"one of: {', '.join(LOG_FORMATS)}")
        errors.speak(wanted)
    return debug, log_format, words


def _reserve_standard_descriptors() -> None:
    """Closed standard descriptors must not be taken by ours; close-on-exec, so the command finds them closed."""
    while (fd := os.open("/", os.O_RDONLY | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


class _Output(io.FileIO):
    """The standard output, whose errors are no other file's, wherever something is printed."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            if (written := super().write(data)) is None:  # it does not block, as its other holders want it
                raise BlockingIOError(errno.EAGAIN, "")
        except BrokenPipeError:
            raise
        except OSError as error:
            hint = "make room there, or redirect it to where it can be written"
            raise HostError(f"cannot write to standard output: {reason(error)}", hint=hint) from None
        return written


def _make_streams_safe() -> None:
    """Names are bytes and locales are what they are: printing must not fail for either, nor for a closed stdout."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        else:
            stream.reconfigure(errors="backslashreplace")
    if sys.__stdout__ is not None:
        buffer, encoding = io.BufferedWriter(_Output(1, "w", closefd=False)), sys.__stdout__.encoding
        sys.stdout = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=os.isatty(1))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, SandboxError):
            if stream is not None:
                stream.flush()


def _dispatch(argv: list[bytes], log_format: list[bytes]) -> int:
    """`log_format` is an option of `sandbox run` too, and what that leaves for the front to start depends on it."""
    if not argv:
        raise UsageError("there is no command", hint="sandbox --help lists them")
    name = os.fsdecode(argv[0])
    if name in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if name in ("-V", "--version"):
        print(f"sandbox {__version__}")
        return 0
    if name == "run":
        from sandbox.cli import run

        return run.main([*log_format, *argv[1:]])
    if name == "ci" and argv[1:2] == [b"run"]:
        from sandbox.cli import ci

        ci.run([*log_format, *argv[2:]])
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}", hint=f"one of: {', '.join(COMMANDS)}")
    return _other(name, [os.fsdecode(word) for word in argv[1:]])


def _other(name: str, argv: list[str]) -> int:
    import argparse
    import importlib

    from sandbox.cli.parser import Parser

    module = importlib.import_module(f"sandbox.cli.{name}")
    parser = Parser(prog="sandbox", allow_abbrev=False)
    module.register(parser.add_subparsers(parser_class=Parser, required=True))
    args: argparse.Namespace = parser.parse_args([name, *argv])
    if name in ("ci", "completion", "config", "doctor", "job", "report", "setuid"):
        return int(module.main(args))
    from sandbox.home import open_home

    with open_home(dict(os.environb), say=lambda _: None) as home:
        return int(module.main(args, home))
