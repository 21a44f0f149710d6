"""What a hostile job tries against the host: a program whose probes each say what they got, and what they aim at."""

import contextlib
import os
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

PROBE = textwrap.dedent("""
    import ctypes, errno, os, signal, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def attempt(name, what):
        try: got = what()
        except OSError as error: got = errno.errorcode[error.errno]
        print(name, got)
    def call(number, *arguments):
        if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0: raise OSError(ctypes.get_errno(), '')
        return 'done'
    def connect(family, address):
        with socket.socket(family) as one: return one.connect(address) or 'done'
    def echo(address):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(5)
            one.connect(address)
            one.send(b'x')
            return one.recv(10) and 'done'
    victim, port, name, secret, inherited = sys.argv[1:]
    attempt('signal', lambda: os.kill(int(victim), 0) or 'done')
    attempt('trace', lambda: call(101, 16, int(victim), 0, 0))
    attempt('renice', lambda: os.setpriority(os.PRIO_PROCESS, int(victim), 5) or 'done')
    attempt('trace init', lambda: call(101, 16, 1, 0, 0))
    attempt('init environ', lambda: open('/proc/1/environ').read() and 'done')
    attempt('init root', lambda: os.listdir('/proc/1/root') and 'done')
    attempt('kill init', lambda: os.kill(1, signal.SIGKILL) or 'sent')
    attempt('tcp', lambda: connect(socket.AF_INET, ('127.0.0.1', int(port))))
    attempt('abstract', lambda: connect(socket.AF_UNIX, '\\0' + name))
    attempt('udp', lambda: echo(('127.0.0.1', int(port))))
    attempt('path socket', lambda: connect(socket.AF_UNIX, secret + '.socket'))
    attempt('secret', lambda: open(secret).read())
    attempt('shadow', lambda: open('/etc/shadow').read() and 'done')
    attempt('root home', lambda: os.listdir('/root'))
    attempt('descriptor', lambda: os.write(int(inherited), b'x'))
    attempt('sysctl', lambda: open('/proc/sys/kernel/core_pattern', 'w') and 'done')
    attempt('sysrq', lambda: open('/proc/sysrq-trigger', 'w') and 'done')
    attempt('sys', lambda: open('/sys/power/state', 'w') and 'done')
    attempt('mount', lambda: call(165, 0, 0, 0, 0, 0))
    attempt('umount', lambda: call(166, 0, 0))
    attempt('unshare', lambda: call(272, 0x10000000))
    attempt('clone', lambda: call(56, 0x10000011, 0, 0, 0, 0))
    attempt('clone3', lambda: call(435, 0, 88))
    attempt('tiocsti', lambda: call(16, 0, 0x5412, 0))
    attempt('tiocsti in 64 bits', lambda: call(16, 0, 0x100005412, 0))
    attempt('module', lambda: call(175, 0, 0, 0))
    attempt('keyctl', lambda: call(250, 0, 0))
    attempt('bpf', lambda: call(321, 0, 0, 0))
    attempt('io_uring', lambda: call(425, 1, 0))
    attempt('x32', lambda: call(0x40000000 + 39))
    attempt('device', lambda: os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0)) or 'done')
    attempt('write', lambda: open('/etc/sandbox-was-here', 'w') and 'done')
    attempt('setuid root', lambda: os.setuid(0) or 'done')
""")

REFUSED = {"EPERM", "EACCES", "ENOENT", "ESRCH", "EROFS", "ECONNREFUSED", "EBADF", "ENOSYS", "ENOTDIR", "EINVAL", "[]"}


@contextlib.contextmanager
def targets(home: Path) -> Iterator[list[str]]:
    """Things of the host within reach of whoever is not isolated, in a home; the words that PROBE takes for them."""
    secret = home / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o644)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        name = f"sandbox-test-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        udp.bind(tcp.getsockname())
        path.bind(f"{secret}.socket")
        os.chmod(f"{secret}.socket", 0o777)
        path.listen()
        try:
            yield [str(os.getpid()), str(tcp.getsockname()[1]), name, str(secret), "9"]
        finally:
            secret.unlink()
            os.unlink(f"{secret}.socket")


def check(printed: str) -> None:
    """What the probes said: every one was tried, and none got anything."""
    got = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    assert len(got) == 33
    assert got.pop("kill init") == "sent", "the init takes no signal of the command's"
    assert {name: answer for name, answer in got.items() if answer not in REFUSED} == {}
