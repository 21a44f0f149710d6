"""Cases of the isolating levels, for the list in cases.py."""

from tests.conformance.cases import Case

JOB = ("--isolation", "job")
_DENIED = "2>/dev/null || echo denied"


def job(name: str, script: str, *options: str, **rest) -> Case:
    return Case(f"job: {name}", script, (*JOB, *options), **rest)


CASES = [
    job("exit code", "exit 42", code=42),
    job("killed", "kill -KILL $$", code=-9),
    job("terminated", "kill -TERM $$", code=-15),
    Case("job: not found", None, JOB, argv=("no-such-command",), code=127, stderr="command not found"),
    Case("job: a directory", None, JOB, argv=("/usr",), code=126, stderr="cannot run /usr"),
    job("stdin", "cat", stdout="input\n"),
    job("an init is pid 1", 'echo $$; test "$(cat /proc/1/comm)" != sh && echo init', stdout="2\ninit\n"),
    job("without an init", "echo $$; exit 7", "--as-pid-1", stdout="1\n", code=7),
    job("no host process shows", "set -- /proc/[0-9]*; echo $#", stdout="2\n"),
    job("orphans are reaped", "(sleep 0.01 &); sleep 0.2; grep -l 'State:.Z' /proc/[0-9]*/status", code=1),
    job("what is left dies", "setsid sleep 1000 & (sleep 1000 &); exit 3", code=3),
    job(
        "no rights",
        "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status | tr -d '\\n\\t'",
        stdout="CapInh:0000000000000000CapPrm:0000000000000000CapEff:0000000000000000"
        "CapAmb:0000000000000000NoNewPrivs:1",
    ),
    job("never root", 'test "$(id -u)" != 0 && echo mortal', stdout="mortal\n"),
    job("the tree is read-only", f"touch /etc/x {_DENIED}; touch /usr/x {_DENIED}", stdout="denied\ndenied\n"),
    job(
        "every mount of the host is locked",
        r"awk '$9 != \"proc\" && $6 !~ /^ro/ && $5 !~ /^\/(run|tmp|var\/tmp|dev|proc)/ && $5 != ENVIRON[\"HOME\"]"
        r" && $5 != \"/home\" && $5 != \"/root\" && $5 !~ /^\/var\/(log|mail)$/' /proc/self/mountinfo".replace(
            r"\"", '"'
        ),
    ),
    job(
        "private places are empty and writable",
        "ls -A /tmp /run/user 2>/dev/null; echo x > /tmp/f && cat /tmp/f",
        stdout="/tmp:\nx\n",
    ),
    job(
        "private places are apart",
        "echo x > /tmp/f; ls -A /dev/shm; ls -A /tmp/.. | grep -cE '^(tmp|usr)$'; "
        "stat -c %a /tmp /dev/shm /run; mv /tmp/f /var/tmp/ && cat /var/tmp/f; "
        "ln /var/tmp/f /tmp/f 2>/dev/null || echo other; "
        'awk \'{last[$5] = $6} END {print last["/tmp"], last["/run"], last["/dev/shm"]}\' /proc/self/mountinfo',
        stdout="2\n1777\n1777\n755\nx\nother\n" + " ".join(["rw,nosuid,nodev,relatime"] * 3) + "\n",
    ),
    job(
        "private places with a limit of their own",
        "head -c 3M /dev/zero > /tmp/f 2>/dev/null || echo full; head -c 1M /dev/zero > /var/tmp/f && echo room",
        "--tmpfs-size",
        "2M",
        stdout="full\nroom\n",
    ),
    job("shared memory", "echo x > /dev/shm/f && cat /dev/shm/f", stdout="x\n"),
    job("home is private", 'cd "$HOME" && ls -A && echo x > .profile && cat .profile', stdout="x\n"),
    job(
        "devices",
        "ls /dev | tr '\\n' ' '; head -c 2 /dev/zero | wc -c; echo > /dev/null && echo null",
        stdout="fd full null ptmx pts random shm stderr stdin stdout tty urandom zero 2\nnull\n",
    ),
    job("dev is closed", f"touch /dev/x {_DENIED}", stdout="denied\n"),
    job(
        "kernel settings",
        f"echo x > /proc/sys/kernel/hostname {_DENIED}; cat /proc/keys /proc/timer_list 2>/dev/null; true",
        stdout="denied\n",
    ),
    job(
        "logs, mailboxes, cgroups and pressure of the host",
        "cat /var/mail/* 2>/dev/null; ls -A /var/log /sys/fs/cgroup 2>/dev/null | grep -v : | tr -d '\\n'; "
        "for f in /proc/pressure/*; do (exec 3<> $f) 2>/dev/null && echo open; done; true",
    ),
    job("host name", "hostname", stdout="sandbox\n"),
    job("host name of choice", "hostname", "--hostname", "build-7", stdout="build-7\n"),
    job(
        "loopback",
        "ls /proc/sys/net/ipv4/conf | tr '\\n' ' '; grep -c 127.0.0.1 /proc/net/fib_trie",
        stdout="all default lo 2\n",
        code=0,
    ),
    job(
        "procdir", 'echo "$SANDBOX_TMPDIR"; cd "$SANDBOX_TMPDIR" && echo x > f && cat f', stdout="/run/sandbox/tmp\nx\n"
    ),
    job(
        "static",
        'cat "$SANDBOX_STATIC/t/f"; echo "$SANDBOX_STATIC"',
        "-s",
        "t:{d}/tree.sfs",
        stdout="hello\n/run/sandbox/static\n",
    ),
    job("static directory", 'cat "$SANDBOX_STATIC/t/f"', "-s", "t:{d}/tree", stdout="hello\n"),
    job(
        "dynamic",
        'cd "$SANDBOX_DYNAMIC/t" && echo new > f && cat f && rm -r sub && ls -d sub 2>/dev/null; ls link',
        "-d",
        "t:{d}/tree.zip",
        stdout="new\nlink\n",
    ),
    job("dynamic image", 'cd "$SANDBOX_DYNAMIC/t" && echo new > f && cat f', "-d", "t:{d}/tree.sfs", stdout="new\n"),
    job(
        "absolute name in a hidden place",
        "cat {d}/parent/mount/f; ls {d}",
        "-s",
        "{d}/parent/mount:{d}/tree.sfs",
        stdout="hello\nparent\n",
    ),
    job(
        "environment",
        'echo "${SECRET-none} ${GIVEN} $SET"',
        "--pass-env",
        "GIVEN",
        "-e",
        "SET=1",
        env={"SECRET": "x", "GIVEN": "y"},
        stdout="none y 1\n",
    ),
    *(
        job(
            f"no /proc, {name}",
            "ls -A /proc | wc -l; echo x > made && cat made",
            *("-s", "t:{d}/tree.sfs", name, "/proc"),
            stdout="0\nx\n",
            refused_in="setuid",
            refusal="/proc",
        )
        for name in ("--hide", "--tmpfs")
    ),
    job(
        "a home of choice",
        'echo "$HOME ${USER-none} $LOGNAME"',
        *("-e", "HOME=/usr", "--unset-env", "USER", "-e", "LOGNAME=me"),
        stdout="/usr none me\n",
    ),
    job(
        "working directory",
        'test "$PWD" = "$WANTED" && test "$(pwd -P)" = "$WANTED" && echo same',
        "-e",
        "WANTED={w}",
        stdout="same\n",
    ),
    job("changes of the workspace vanish", "echo x > made && cat made", stdout="x\n"),
    job("a read-only workspace", f"touch made {_DENIED}", "--workspace", "ro", stdout="denied\n"),
    job("no leave-running", "true", "--leave-running", code=125, stderr="--leave-running"),
    job("host network", "test -e /proc/net/tcp && echo there", "--net", "host", stdout="there\n"),
    job("a system call filter", "grep Seccomp: /proc/self/status | tr -d '\\t'", stdout="Seccomp:2\n"),
    job("no filter", "grep Seccomp: /proc/self/status | tr -d '\\t'", "--seccomp", "none", stdout="Seccomp:0\n"),
    job("no new user namespace", f"unshare -U true {_DENIED}", stdout="denied\n"),
    job(
        "the uid has a name",
        "python3 -c 'import pwd, os; print(pwd.getpwuid(os.getuid()).pw_name)' | wc -l",
        stdout="1\n",
    ),
    job("discarded files are counted", "echo a > a; mkdir b; echo c > b/c", stderr="2 changed files of the working"),
    job("nothing kept that is not there", "true", "--keep", "absent={w}/no", code=125, stderr="cannot keep absent"),
    job("no place for what is kept", "echo ran", "--keep", "a={d}/no/b", code=125, stderr="cannot write to"),
    job("an audit", "unshare -U true 2>/dev/null; true", "--audit", stderr="refused: unshare (EPERM)"),
    job("an audit of nothing", "true", "--audit", stderr="no system call was refused"),
    job("a refused call fails as ever", f"unshare -U true {_DENIED}", "--audit", stdout="denied\n"),
    job("no terminal to pass on", "true", "-t", code=125, stderr="-t: the standard input is not a terminal"),
    job("an unknown system call", "true", "--allow-syscall", "nonsense", code=125, stderr="nonsense"),
    job("a system call of no text", "true", "--allow-syscall", "\udcff", code=125, stderr="is not a system call here"),
]
