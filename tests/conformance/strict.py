"""Cases of level strict and of a root of the run's own, for the list in cases.py."""

from tests.conformance.cases import Case

STRICT = ("--isolation", "strict")
_DENIED = "2>/dev/null || echo denied"


def strict(name: str, script: str | None, *options: str, **rest) -> Case:
    return Case(f"strict: {name}", script, (*STRICT, *options), **rest)


CASES = [
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
