"""Cases of level strict and of a root of the run's own, for the list in cases.py."""

import shutil
from pathlib import Path

from tests.conformance.cases import Case
from tests.support import archives
from tests.support.archives import Entry

STRICT = ("--isolation", "strict")
_DENIED = "2>/dev/null || echo denied"


def strict(name: str, script: str | None, *options: str, **rest) -> Case:
    return Case(f"strict: {name}", script, (*STRICT, *options), **rest)


def make_inputs(where: Path) -> None:
    """A root that holds one static program, with links on the way to what setup mounts; and what is bound."""
    busybox = shutil.which("busybox")
    assert busybox, "make setup installs a static busybox"
    program = Path(busybox).read_bytes()
    tools = [Entry.symlink(f"usr/bin/{name}", "busybox") for name in ("sh", "cat", "echo", "id", "ls", "awk", "chown")]
    names = ("usr", "usr/bin", "etc", "proc", "dev", "tmp", "var", "data", "root", "home")
    links = [Entry.symlink("bin", "usr/bin"), Entry.symlink("var/tmp", "../tmp"), Entry.symlink("shortcut", "/data")]
    files = [Entry("usr/bin/busybox", program, mode=0o755), Entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")]
    tree = [*(Entry.directory(name) for name in names), *files, *tools, *links]
    archives.make_tree(where / "root", tree)
    archives.make_squashfs(where / "root.sfs", tree)
    archives.make_tree(where / "bound", [Entry("f", b"bound\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")])
    # The runs of every user write here.
    (where / "open").mkdir(mode=0o777)
    (where / "open").chmod(0o777)


def refined(level: str) -> Case:
    return Case(
        f"refined: {level}",
        "cat /mnt/sub/g /media/bound/f; ls /srv; (echo x > /mnt/f) 2>/dev/null || echo read-only;"
        "echo y > {d}/open/$$ && rm {d}/open/$$ && echo written; readlink /media/l; cat /media/t;"
        "(echo x > /media/t) 2>/dev/null || echo kept; ls /usr/share/doc | wc -l; hostname;"
        "ls -A $SANDBOX_TMPDIR/.. | wc -l",
        (
            *("--isolation", level, "--ro-bind", "{d}/bound:/mnt", "--tmpfs", "/media:1M"),
            *(
                "--bind",
                "{d}/bound:/media/bound",
                "--tmpfs",
                "/srv",
                "--bind",
                "{d}/open",
                "--symlink",
                "../x:/media/l",
            ),
            *("--file", "/media/t=a text\n", "--hide", "/usr/share/doc", "--hostname", "box"),
            *("--bind-try", "{d}/missing:/srv/missing", "--bind-try", "{d}/bound/f:/media/file"),
        ),
        stdout="g\nbound\nread-only\nwritten\n../x\na text\nkept\n0\nbox\n1\n",
    )


def rooted(name: str, script: str, *options: str, **rest) -> Case:
    options = (*STRICT, *options)
    return Case(f"root: {name}", script, options, **rest)


_IN_ROOT = (
    "cat /etc/passwd; ls /usr /usr/share /boot /sys 2>/dev/null; ls /home; echo x > /tmp/f && cat /tmp/f;"
    "echo new > /etc/new && cat /etc/new; cat /data/b/f; pwd"
)
_ROOTED = {
    "stdout": "root:x:0:0::/root:/bin/sh\n/usr:\nbin\nx\nnew\nbound\n/\n",
    "code": 0,
}
_AS_ROOT = {"refused_in": "setuid", "refusal": "--as-root"}


CASES = [
    *map(refined, ("none", "job", "strict")),
    Case(
        "refined: a device",
        "head -c 1 /dev/zero | wc -c; test -c /dev/urandom && echo there",
        ("--isolation", "strict", "--device", "/dev/zero"),
        stdout="1\nthere\n",
    ),
    rooted("a directory", _IN_ROOT, "--root", "{d}/root", "--bind", "{d}/bound:/shortcut/b", "--chdir", "/", **_ROOTED),
    rooted(
        "an image", _IN_ROOT, "--root", "{d}/root.sfs", "--bind", "{d}/bound:/shortcut/b", "--chdir", "/", **_ROOTED
    ),
    rooted(
        "nothing of it changes",
        "(echo x > /etc/new) 2>/dev/null || echo kept; echo x > /tmp/f && cat /tmp/f",
        *("--root", "{d}/root.sfs", "--root-ro"),
        stdout="kept\nx\n",
    ),
    rooted(
        "as root",
        "id -u; echo x > /etc/passwd && chown 0:0 /etc/passwd && ls -ln /etc/passwd | awk '{print $3 $4}';"
        "mount -t tmpfs none /mnt 2>/dev/null; awk '/^Cap(Prm|Bnd)/ {print $2}' /proc/self/status; cat /etc/passwd",
        *("--root", "{d}/root.sfs", "--as-root"),
        stdout="0\n00\n000001ffffffffff\n000001ffffffffff\nx\n",
        **_AS_ROOT,
    ),
    Case(
        "as root: the host's files",
        f"id -u; cat /etc/shadow {_DENIED}; mount --bind /usr /mnt {_DENIED}; umount /proc/keys {_DENIED}",
        ("--isolation", "job", "--as-root"),
        stdout="0\ndenied\ndenied\ndenied\n",
        **_AS_ROOT,
    ),
    Case(
        "as root: not isolated",
        f"id -u; mount --bind /usr /mnt {_DENIED};"
        "awk '/^Cap(Prm|Bnd)/ {print $2}' /proc/self/status; awk 'NR == 1 {print $1, $3}' /proc/self/uid_map",
        ("--as-root", "--tmpfs", "/mnt", "-e", "X=1"),
        stdout="0\ndenied\n000001ffffffffff\n000001ffffffffff\n0 1\n",
        **_AS_ROOT,
    ),
    rooted(
        "as root: more than one id",
        "echo x > /data/f; chown 6:42 /data/f; ls -ln /data/f | awk '{print $3 \":\" $4}';"
        "chown 65536 /data/f 2>/dev/null;"
        "ls -ln /data/f | awk '{print $3 \":\" $4}'; awk '{print $1, $3}' /proc/self/uid_map /proc/self/gid_map;"
        "cat /proc/self/setgroups",
        *("--root", "{d}/root.sfs", "--as-root"),
        stdout="6:42\n6:42\n0 1\n1 65535\n0 1\n1 65535\nallow\n",
        many_ids=True,
        **_AS_ROOT,
    ),
    *(
        Case(
            f"as root: another user, level {level}",
            f"mkdir /tmp/d && chown 7:8 /tmp/d && chmod 700 /tmp/d; setpriv --reuid 7 --regid 8 --clear-groups "
            f"sh -c 'id -u; id -G; cat /tmp/d/f {_DENIED}; echo own > /tmp/d/f; cat /etc/shadow {_DENIED}';"
            "cat /tmp/d/f; rm -r /tmp/d && ls -A /tmp; grep -c . /proc/self/uid_map",
            ("--isolation", level, "--as-root"),
            stdout="7\n8\ndenied\ndenied\nown\n2\n",
            many_ids=True,
            **_AS_ROOT,
        )
        for level in ("job", "strict")
    ),
    strict("exit code", "exit 42", code=42),
    strict("not found", None, argv=("no-such-command",), code=127, stderr="command not found"),
    strict("an init is pid 1", 'echo $$; test "$(cat /proc/1/comm)" != sh && echo init', stdout="2\ninit\n"),
    strict("without an init", "echo $$; kill -TERM $$; exit 7", "--as-pid-1", stdout="1\n", code=7),
    strict(
        "nothing else of the host",
        "ls -d /boot /sys /srv /mnt /media /opt /lost+found /etc/shadow /etc/ssh /etc/fstab 2>/dev/null;"
        "ls {d} 2>/dev/null; ls /run; cd / && cd ../../.. && pwd && ls -d ../boot boot 2>/dev/null; readlink /bin",
        stdout="sandbox\n/\nusr/bin\n",
    ),
    strict(
        "what is shown is read-only",
        f"for name in /x /etc/passwd /usr/x /dev/x; do touch $name {_DENIED}; done",
        stdout="denied\n" * 4,
    ),
    strict(
        "its mounts",
        r"""awk '$5 == "/"; $6 !~ /nosuid/ || ($6 !~ /nodev/ && $5 !~ /^\/(dev|proc)\//) {print "unsafe", $0}' \
        /proc/self/mountinfo | wc -l""",
        stdout="1\n",
    ),
    strict(
        "names",
        "id -un >/dev/null && id -gn >/dev/null && getent passwd root | cut -d: -f1; hostname; cat /etc/hostname;"
        "getent hosts localhost | wc -l; cat /etc/resolv.conf",
        "--hostname",
        "build-7",
        stdout="root\nbuild-7\nbuild-7\n1\n# no network\n",
    ),
    strict(
        "the host's name servers",
        "test -s /etc/resolv.conf && test -e /proc/net/tcp && echo there",
        "--net",
        "host",
        stdout="there\n",
    ),
    strict(
        "private places are writable",
        'for place in /tmp /var/tmp /dev/shm "$HOME" "$SANDBOX_TMPDIR"; do cd $place && echo x > f && cat f; done; pwd',
        stdout="x\n" * 5 + "/run/sandbox/tmp\n",
    ),
    strict("run", None, "-s", "t:/usr/bin", "--run", "t/echo", argv=("hi",), stdout="hi\n"),
    strict(
        "trees",
        'cat "$SANDBOX_STATIC/t/f"; cd "$SANDBOX_DYNAMIC/d" && echo new > f && cat f && rm -r sub;'
        "ls -d sub 2>/dev/null; ls link; cat /opt/sdk/f; ls /opt",
        *("-s", "t:{d}/tree.zip", "-d", "d:{d}/tree.sfs", "-s", "/opt/sdk:{d}/tree.sfs"),
        stdout="hello\nnew\nlink\nhello\nsdk\n",
    ),
    strict("changes of the workspace vanish", 'cd "{w}" && echo x > made && cat made', stdout="x\n"),
    strict("a read-only workspace", f"touch made {_DENIED}", "--workspace", "ro", stdout="denied\n"),
    strict(
        "rights",
        "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\n\\t'",
        stdout="CapEff:0000000000000000NoNewPrivs:1Seccomp:2",
    ),
]
