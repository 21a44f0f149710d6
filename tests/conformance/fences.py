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
        "net: private",
        "ip -4 route; ip -4 -o addr | awk '{print $2, $4}'; getent ahostsv4 some.name.test | awk 'NR == 1 {print $1}'; "
        "ip route del prohibit 169.254.0.0/16 2>/dev/null && test $(id -u) != 0 && echo changed; "
        'exec python3 -c \'import socket; s = socket.create_connection(("192.0.2.2", 7777)); s.send(b"hello "); '
        "print(s.recv(99).decode())'",
        ("--net", "private"),
        stdout="default via 10.0.2.2 dev tap0 proto static \n"
        "10.0.2.0/24 dev tap0 proto kernel scope link src 10.0.2.100 \n"
        "prohibit 169.254.0.0/16 proto static \nprohibit 192.0.2.1 proto static \n"
        "lo 127.0.0.1/8\nlo 10.0.2.3/32\ntap0 10.0.2.100/24\n192.0.2.2\nhello  from 192.0.2.1\n",
        internet=True,
    ),
    Case(
        "net: a private one ends with the run",
        "true",
        ("--net", "private", "--leave-running"),
        code=125,
        stderr="--leave-running",
    ),
]
