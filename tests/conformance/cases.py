"""The one list of cases that every engine runs in every mode. A new feature adds its cases here.

A case's `script` is given to `sh -c` inside the sandbox; `{d}` in options is a directory with the inputs that
`make_inputs` makes. What it prints on stdout and its exit code must be exactly as said, whoever carries out the plan.
"""

import signal
from pathlib import Path
from typing import NamedTuple

from tests.support import archives
from tests.support.archives import Entry


class Case(NamedTuple):
    """`stderr` must occur in what is printed there; `code` is the exit code, negative for death by a signal.

    In the modes of `refused_in` the launch must be refused in one line with `refusal` instead. With a `cause` ("limit
    fsize") a report is asked for, and must say so. With a `log` one is asked for, and must be that.
    `many_ids`: the user needs subordinate ids for it. `internet`: on a host with one (tests/support/internet.py).
    """

    name: str
    script: str | None
    options: tuple[str, ...] = ()
    stdout: str = ""
    code: int = 0
    stderr: str = ""
    env: dict[str, str] = {}  # noqa: RUF012
    argv: tuple[str, ...] | None = None
    cwd: str | None = None
    refused_in: str = ""
    cause: str = ""
    refusal: str = "is not supported"
    log: str = ""
    many_ids: bool = False
    internet: bool = False


def make_inputs(where: Path) -> None:
    """Every kind of source with the same small tree, and some odd ones."""
    tree = [
        Entry("f", b"hello\n"),
        Entry.directory("sub"),
        Entry("sub/g", b"g\n"),
        Entry.symlink("link", "f"),
        Entry.symlink("out", "/etc/passwd"),
        Entry.program("tool", 'echo "${0##*/tree/}" "$@"'),
        Entry.symlink("sub/tool", "../tool"),
        Entry("plain", b"not a program\n"),
    ]
    archives.make_squashfs(where / "tree.sfs", tree)
    archives.make_zip(where / "tree.zip", tree)
    archives.make_tar(where / "tree.tar", tree)
    for compression, suffix in (("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")):
        archives.make_tar(where / f"tree.tar.{suffix}", tree, compression=compression)
    archives.make_elf_image(where / "tree.AppImage", where / "tree.sfs")
    archives.make_text(where / "tree.txt", where / "tree.zip")
    archives.make_text(where / "tree-sfs.txt", where / "tree.sfs")
    archives.make_tree(where / "tree", tree)
    archives.make_tree(where / "parent", [Entry.directory("mount"), Entry.directory("other")])
    (where / "env").write_text("# a comment\n\nFROM_FILE=in file\nCALLER\n")


_SOURCES = (
    "tree.sfs",
    "tree.zip",
    "tree.tar",
    "tree.tar.gz",
    "tree.tar.bz2",
    "tree.tar.xz",
    "tree.tar.zst",
    "tree.AppImage",
    "tree.txt",
    "tree-sfs.txt",
    "tree",
)
_READ = 'cd "$SANDBOX_STATIC/t" && cat f sub/g && readlink link out'
_WRITE = """cd "$SANDBOX_DYNAMIC/t" && echo changed > f && rm -r sub && mkdir sub && echo new > sub/n &&
cat f && ls sub && cat link"""


def _source_cases() -> list[Case]:
    cases = []
    for source in _SOURCES:
        src = "t:{d}/" + source
        cases += [
            Case(f"static {source}", _READ, ("-s", src), "hello\ng\nf\n/etc/passwd\n"),
            Case(f"dynamic {source}", _WRITE, ("-d", src), "changed\nn\nchanged\n"),
            Case(f"dynamic is whole again {source}", 'cat "$SANDBOX_DYNAMIC/t/f"', ("-d", src), "hello\n"),
        ]
    for source in ("tree.zip", "tree.tar.gz", "tree"):
        src = "t:{d}/" + source
        cases += [
            Case(f"cached static {source}", _READ, ("--cache", "-s", src), "hello\ng\nf\n/etc/passwd\n"),
            Case(f"cached dynamic {source}", _WRITE, ("--cache", "-d", src), "changed\nn\nchanged\n"),
        ]
    return cases


_READ_ONLY = (
    'touch "$SANDBOX_STATIC/t/x" 2>/dev/null || echo refused; rm -f "$SANDBOX_STATIC/t/f" 2>/dev/null || echo kept'
)

_DETACH = "(setsid sh -c 'exec >/dev/null 2>&1 </dev/null; (sleep 1000 &) ; exec sleep 1000' &)"
_STUBBORN = "trap '' TERM; (setsid sh -c 'sleep 1000 & exec sleep 1000' &); while :; do sleep 0.1; done"
_LOG_CASES = [
    Case("log", "echo a; echo b >&2; exit 3", stdout="a\n", code=3, stderr="b\n", log="a\nb\n"),
    Case("log of a job", "cat; echo $0", ("--isolation", "job"), "sh\n", log="sh\n"),
    Case("log of a strict job", "echo a", ("--isolation", "strict"), "a\n", log="a\n"),
    Case("log of a signal", "echo a; kill -9 $$", stdout="a\n", code=-signal.SIGKILL, log="a\n"),
    Case(
        "log of what runs out of time",
        "echo a; sleep 1000",
        ("--timeout", "0.3"),
        "a\n",
        124,
        "time was up",
        log="a\nsandbox: the command was ended: its time was up (--timeout)\n",
        cause="timeout",
    ),
    Case(
        "log of what is not found",
        None,
        argv=("nosuch",),
        code=127,
        stderr="not found",
        log="sandbox: cannot run nosuch: command not found\n",
        cause="launcher",
    ),
]
_LIMIT_CASES = [
    Case("timeout", "sleep 1000", ("--timeout", "0.3"), code=124, stderr="its time was up", cause="timeout"),
    Case("time enough", "exit 3", ("--timeout", "1h30m"), code=3, cause="exited"),
    Case(
        "timeout and grace",
        "trap 'echo end; exit 3' TERM; sleep 1000 & wait",
        ("--timeout", "0.3"),
        "end\n",
        124,
        cause="timeout",
    ),
    Case(
        "timeout of what ignores it", _STUBBORN, ("--timeout", "0.3", "--kill-after", "0.2s"), code=124, cause="timeout"
    ),
    Case(
        "timeout of what stops itself",
        "kill -STOP $$",
        ("--timeout", "0.3", "--kill-after", "0.2"),
        code=124,
        cause="timeout",
    ),
    Case(
        "timeout ends what may stay",
        _STUBBORN,
        ("--timeout", "0.3", "--kill-after", "0.2", "--leave-running"),
        code=124,
    ),
    Case("processor time", "while :; do :; done", ("--cpu-time", "1"), code=-signal.SIGXCPU, cause="limit cpu-time"),
    Case("open files", "ulimit -n; ulimit -Hn", ("--nofile", "64"), "64\n64\n"),
    Case(
        "more open files than allowed",
        "true",
        ("--nofile", "2147483648"),
        code=125,
        stderr="open files to 2147483648",
        cause="launcher",
    ),
    Case(
        "file size",
        "exec head -c 3M /dev/zero > $SANDBOX_TMPDIR/x",
        ("--fsize", "1M"),
        code=-signal.SIGXFSZ,
        cause="limit fsize",
    ),
    Case(
        "file size of a child",
        "head -c 3M /dev/zero > $SANDBOX_TMPDIR/x",
        ("--fsize", "1M"),
        code=128 + signal.SIGXFSZ,
        cause="limit fsize",
    ),
    Case(
        "a full tmpfs",
        "cat /dev/zero > $SANDBOX_TMPDIR/x 2>/dev/null",
        ("--tmpfs-size", "2M", "--timeout", "60"),
        code=1,
        cause="exited",
    ),
    Case("a detached job", f"{_DETACH}; exit 4", ("--timeout", "60"), code=4, cause="exited"),
    Case(
        "a detached job and its command",
        f"{_DETACH}; sleep 1000",
        ("--timeout", "0.3"),
        code=124,
        stderr="its time was up",
        cause="timeout",
    ),
    Case(
        "closes everything",
        "exec 0<&- 1>&- 2>&-; exec 3>&- 4>&- 5>&-; sleep 1000",
        ("--timeout", "0.3"),
        code=124,
        cause="timeout",
    ),
    Case("nice", "nice", ("--nice", "19"), "19\n"),
]

CASES = [
    Case("exit code", "exit 42", code=42, cause="exited"),
    Case("killed", "kill -KILL $$", code=-9, cause="signalled"),
    Case("terminated", "kill -TERM $$", code=-15),
    Case("not found", None, argv=("no-such-command",), code=127, stderr="command not found", cause="launcher"),
    Case("not found by path", None, argv=("/nowhere/at/all",), code=127, stderr="command not found"),
    Case("a directory", None, argv=("/tmp",), code=126, stderr="cannot run /tmp"),
    Case("not executable", None, argv=("{d}/tree/plain",), code=126, stderr="Permission denied", cause="launcher"),
    Case("arguments", None, argv=("printf", "%s|", "a b", "", "--", "-s"), stdout="a b||--|-s|"),
    Case("stdin", "cat", stdout="input\n"),
    Case("own uid", 'test "$(id -u)" = "$EXPECT_UID" && test "$(id -g)" = "$EXPECT_GID" && echo same', stdout="same\n"),
    Case("own name", 'test "$(id -un)" = "$USER" && echo same', stdout="same\n"),
    Case(
        "working directory",
        'test "$PWD" = "$EXPECT_PWD" && test "$(pwd -P)" = "$EXPECT_PWD" && echo same',
        stdout="same\n",
    ),
    Case(
        "library path survives",
        'echo "$LD_LIBRARY_PATH"',
        env={"LD_LIBRARY_PATH": "/some/where"},
        stdout="/some/where\n",
    ),
    Case("scratch", 'cd "$SANDBOX_TMPDIR" && echo x > f && cat f && stat -c %a .', stdout="x\n700\n"),
    Case(
        "scratch is private", 'stat -c "%a %u" "$SANDBOX_TMPDIR/.." | sed "s/ $EXPECT_UID$/ mine/"', stdout="700 mine\n"
    ),
    Case(
        "variables are unset when not asked for",
        'echo "${SANDBOX_STATIC-none} ${SANDBOX_DYNAMIC-none}"',
        env={"SANDBOX_STATIC": "/old", "SANDBOX_DYNAMIC": "/old"},
        stdout="none none\n",
    ),
    *_source_cases(),
    Case("static is read-only", _READ_ONLY, ("-s", "t:{d}/tree.sfs"), "refused\nkept\n"),
    Case("static directory is read-only", _READ_ONLY, ("-s", "t:{d}/tree"), "refused\nkept\n"),
    Case("static archive is read-only", _READ_ONLY, ("-s", "t:{d}/tree.zip"), "refused\nkept\n"),
    Case(
        "mounts are nosuid and nodev",
        "grep -c '/static/t .*nosuid,nodev' /proc/self/mountinfo",
        ("-s", "t:{d}/tree.zip"),
        "1\n",
    ),
    Case("default names", 'ls "$SANDBOX_STATIC"', ("-s", "{d}/tree.tar.gz"), "tree\n"),
    Case(
        "several trees",
        'ls "$SANDBOX_STATIC"; ls "$SANDBOX_DYNAMIC"',
        ("-s", "a:{d}/tree.sfs", "-d", "b:{d}/tree.sfs", "-d", "c:{d}/tree", "--dynamic-empty", "e"),
        "a\nb\nc\ne\n",
    ),
    Case("empty tree", 'cd "$SANDBOX_DYNAMIC/e" && ls -A && echo x > f && cat f', ("--dynamic-empty", "e"), "x\n"),
    Case("absolute name", "cat {d}/parent/mount/f", ("-s", "{d}/parent/mount:{d}/tree.sfs"), "hello\n"),
    Case(
        "absolute name of a directory",
        "cat {d}/parent/mount/f; touch {d}/parent/mount/x && ls {d}/parent/mount/x | wc -l",
        ("-d", "{d}/parent/mount:{d}/tree"),
        "hello\n1\n",
    ),
    Case(
        "a mount inside a mount",
        "cat {d}/parent/mount/sub/f; ls {d}/parent/mount",
        ("-s", "{d}/parent/mount:{d}/tree.sfs", "-s", "{d}/parent/mount/sub:{d}/tree.zip"),
        "hello\nf\nlink\nout\nplain\nsub\ntool\n",
    ),
    Case(
        "no such mount point",
        "true",
        ("-s", "{d}/parent/none:{d}/tree.sfs"),
        code=125,
        stderr="--mkdir",
        cause="launcher",
    ),
    Case("run", None, ("-s", "tree:{d}/tree.sfs", "--run", "tree/tool"), argv=("x", "y"), stdout="tool x y\n"),
    Case(
        "run through a link in the tree",
        None,
        ("-d", "tree:{d}/tree.zip", "--run", "tree/sub/tool"),
        argv=("x",),
        stdout="tool x\n",
    ),
    Case(
        "run what is no program",
        None,
        ("-s", "tree:{d}/tree.sfs", "--run", "tree/plain"),
        argv=(),
        code=126,
        stderr="not an executable file",
    ),
    Case(
        "run a directory",
        None,
        ("-s", "tree:{d}/tree.sfs", "--run", "tree/sub"),
        argv=(),
        code=126,
        stderr="not an executable file",
    ),
    Case(
        "run what leads out",
        None,
        ("-s", "tree:{d}/tree.sfs", "--run", "tree/out"),
        argv=(),
        code=127,
        stderr="in its tree",
    ),
    Case(
        "run above the tree",
        None,
        ("-s", "tree:{d}/tree.sfs", "--run", "tree/../../../../../../../bin/true"),
        argv=(),
        code=127,
        stderr="in its tree",
    ),
    Case(
        "run no tree",
        None,
        ("-s", "tree:{d}/tree.sfs", "--run", "other/tool"),
        argv=(),
        code=125,
        stderr="names no mounted tree",
    ),
    Case("chdir to a path", "pwd", ("--chdir", "/usr"), "/usr\n"),
    Case("chdir into a tree", "cat g", ("-s", "t:{d}/tree.sfs", "--chdir", "t/sub"), "g\n"),
    Case("chdir nowhere", "true", ("--chdir", "/nowhere"), code=125, stderr="/nowhere"),
    Case(
        "a working directory that is mounted over",
        "cat f; cd sub && cat g",
        ("-s", "{d}/parent/mount:{d}/tree.sfs"),
        "hello\ng\n",
        cwd="{d}/parent/mount",
    ),
    Case("env", 'echo "$A $B"', ("-e", "A=1", "--env", "B=two words"), "1 two words\n"),
    Case("env of the caller", 'echo "$CALLER"', ("-e", "CALLER"), "called\n", env={"CALLER": "called"}),
    Case(
        "env file", 'echo "$FROM_FILE $CALLER"', ("--env-file", "{d}/env"), "in file called\n", env={"CALLER": "called"}
    ),
    Case("unset", 'echo "${GONE-unset}"', ("--unset-env", "GONE"), "unset\n", env={"GONE": "x"}),
    Case(
        "symlinks denied",
        'cat "$SANDBOX_STATIC/t/link" 2>/dev/null || echo denied; cat "$SANDBOX_STATIC/t/f"',
        ("-s", "t:{d}/tree.sfs", "--symlinks", "t=deny"),
        "denied\nhello\n",
    ),
    Case(
        "symlinks denied in a directory",
        'cat "$SANDBOX_DYNAMIC/t/link" 2>/dev/null || echo denied',
        ("-d", "t:{d}/tree", "--symlinks", "deny"),
        "denied\n",
    ),
    Case(
        "symlinks followed", 'cat "$SANDBOX_STATIC/t/link"', ("-s", "t:{d}/tree.sfs", "--symlinks", "follow"), "hello\n"
    ),
    Case(
        "scratch on a disk",
        'cd "$SANDBOX_DYNAMIC/t" && rm -r sub && echo x > f && cat f && stat -f -c %T "$SANDBOX_TMPDIR" | sed s/tmpfs/wrong/ | grep -c wrong',
        ("-d", "t:{d}/tree.sfs", "--scratch", "{w}"),
        "x\n0\n",
        code=1,
        refused_in="setuid",
    ),
    # In mode setuid the default policy does not allow it.
    Case(
        "setuid programs may gain privileges",
        "grep -c 'NoNewPrivs:.0' /proc/self/status",
        ("--allow-new-privs", "-s", "{d}/tree.sfs"),
        "1\n",
        refused_in="setuid userns",
        refusal="gain",
    ),
    Case(
        "tmpfs size",
        'head -c 3M /dev/zero > "$SANDBOX_TMPDIR/x" 2>/dev/null || echo full',
        ("--tmpfs-size", "2M"),
        "full\n",
    ),
    Case(
        "dynamic is limited too",
        'head -c 3M /dev/zero > "$SANDBOX_DYNAMIC/t/x" 2>/dev/null || echo full',
        ("-d", "t:{d}/tree.sfs", "--tmpfs-size", "2M"),
        "full\n",
    ),
    Case("what is left is ended", "sleep 1000 & setsid sleep 1000 & exit 3", code=3),
    *_LIMIT_CASES,
    *_LOG_CASES,
]
