"""`sandbox`: finds the command's module and turns errors into one line and an exit code."""

import contextlib
import os
import signal
import sys
from typing import NoReturn

from sandbox import __version__
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, UsageError, printable, reason

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
_USAGE += "\nsandbox --debug COMMAND ... shows a traceback of what fails.\n"


def main() -> NoReturn:
    """Entry point of the `sandbox` command."""
    words = [os.fsencode(word) for word in sys.argv[1:]]
    debug = words[:1] == [b"--debug"]
    try:
        _reserve_standard_descriptors()
        _make_streams_safe()
        code = _dispatch(words[debug:])
    except SandboxError as error:
        _trace(debug)
        complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except OSError as error:
        what = f": {printable(os.fsencode(error.filename))}" if isinstance(error.filename, (str, bytes)) else ""
        _trace(debug)
        complain(f"cannot go on{what}: {reason(error)} (sandbox doctor looks for what is wrong with this host)")
        code = EXIT_LAUNCHER_FAILED
    except Exception as error:  # a bug; still one line
        _trace(debug)
        complain(f"internal error: {type(error).__name__}: {error} (report it, with what sandbox --debug ... says)")
        code = EXIT_LAUNCHER_FAILED
    _flush()
    os._exit(code)


def _trace(debug: bool) -> None:
    """Where it failed, for who asked for it."""
    if debug:
        import traceback

        traceback.print_exc()


def _reserve_standard_descriptors() -> None:
    """Closed standard descriptors must not be taken by ours; close-on-exec, so the command finds them closed."""
    while (fd := os.open("/", os.O_RDONLY | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _make_streams_safe() -> None:
    """Names are bytes and locales are what they are: printing must not fail for either, nor for a closed stdout."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        else:
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.flush()


def complain(text: str) -> None:
    """One line on stderr."""
    line = "sandbox: " + " ".join(text.split("\n")) + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "surrogateescape"))


def _dispatch(argv: list[bytes]) -> int:
    name = os.fsdecode(argv[0]) if argv else ""
    if name in ("-h", "--help", "help", ""):
        print(_USAGE, end="")
        return 0 if name else EXIT_LAUNCHER_FAILED
    if name in ("-V", "--version"):
        print(f"sandbox {__version__}")
        return 0
    if name == "run":
        from sandbox.cli import run

        return run.main(argv[1:])
    if name == "ci" and argv[1:2] == [b"run"]:
        from sandbox.cli import ci

        ci.run(argv[2:])
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
