"""The options of `sandbox run`, by what they are about: in the order of its help, its man page and job files."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from sandbox.errors import LOG_FORMATS
from sandbox.spec import DEFAULT_MAX_UNPACKED, ENGINES, LEVELS, MODES, NETS, WORKSPACES, Refinement, Tree, TreeKind

Option = Callable[..., None]
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


def add_all(option: Option) -> None:
    """Each is given to `option`, which is like add_argument of argparse."""
    for add in (_trees, _command, _isolation, _refinements, _job, _limits, _account, _start):
        add(option)


def _trees(option: Option) -> None:
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


def _command(option: Option) -> None:
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


def _isolation(option: Option) -> None:
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


def _refinements(option: Option) -> None:
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


def _job(option: Option) -> None:
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


def _limits(option: Option) -> None:
    for name, (metavar, text) in LIMITS.items():
        option("--" + name.replace("_", "-"), metavar=metavar, help=text)


def _account(option: Option) -> None:
    option("--report", metavar="FILE|-|fd:N", help="an account of the run as JSON, written when it is over")
    option("--trace", metavar="FILE|-|fd:N", help="the phases of the launch, in the Chrome trace format")
    option("--status-fd", metavar="FD", help="a line of JSON to this descriptor when the run is ready, started, ended")
    option("--log", metavar="FILE", help="what the command writes to its standard output and error, in FILE as well")
    option("--log-size", metavar="SIZE", help="how large FILE may become, beside one FILE.1 (default 10M)")


def _start(option: Option) -> None:
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
