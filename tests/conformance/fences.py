"""Cases of Landlock fences and of networks, for the list in cases.py."""

from tests.conformance.cases import Case

_DENIED = "2>/dev/null || echo denied"
_JOB = ("--isolation", "job", "--workspace", "rw")


def both(name: str, script: str, *options: str, **rest) -> list[Case]:
    """At level none, and in a job that works on the same directory."""
    return [
        Case(f"fence: {name}", script, options, **rest),
        Case(f"fence in a job: {name}", script, (*_JOB, *options), **rest),
    ]


CASES = [
    *both(
        "reads",
        f"head -c 1 /etc/passwd | wc -c; cat /etc/group {_DENIED}; ls {_DENIED}",
        "--allow-read",
        "/etc/passwd",
        stdout="1\ndenied\ndenied\n",
    ),
    *both("who may read writes nothing", f"touch x {_DENIED}", "--allow-read", "/", stdout="denied\n"),
    *both(
        "writes",
        "mkdir sub && echo x > sub/f && mv sub/f f && cat f && rm -r f sub;"
        f"touch ../f {_DENIED}; head -c 1 /etc/passwd | wc -c",
        "--allow-write",
        ".",
        stdout="x\ndenied\n1\n",
    ),
    *both(
        "own places",
        'echo x > "$SANDBOX_TMPDIR/f" && cat "$SANDBOX_TMPDIR/f"; echo > /dev/null',
        "--allow-read",
        "/usr",
        stdout="x\n",
    ),
    *both(
        "trees",
        'cat "$SANDBOX_STATIC/t/f"; cd "$SANDBOX_DYNAMIC/w" && rm f && echo w > f && cat f',
        "-s",
        "t:{d}/tree.sfs",
        "-d",
        "w:{d}/tree.zip",
        "--allow-read",
        "/usr",
        stdout="hello\nw\n",
    ),
    Case("fence: what is not there", "true", ("--allow-read", "/no/place"), code=125, stderr="/no/place"),
    Case(
        "fence: no new privileges",
        "grep NoNewPrivs /proc/self/status | tr -d '\\t'",
        ("--allow-write", "/usr"),
        stdout="NoNewPrivs:1\n",
    ),
    Case(
        "fence: not with new privileges",
        "true",
        ("--allow-read", "/", "--allow-new-privs"),
        code=125,
        stderr="--allow-new-privs",
    ),
    Case(
        "net: none",
        "ls /proc/sys/net/ipv4/conf | tr '\\n' ' '; grep -c 127.0.0.1 /proc/net/fib_trie",
        ("--net", "none"),
        stdout="all default lo 2\n",
    ),
    Case("net: host", "test -e /proc/net/tcp && echo there", ("--net", "host"), stdout="there\n"),
    Case(
        "net: a private one ends with the run",
        "true",
        ("--net", "private", "--leave-running"),
        code=125,
        stderr="--leave-running",
    ),
]
