"""What a hostile job tries against the host: a program whose probes each say what they got, and what they aim at."""

import contextlib
import os
import shutil
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
    def opened(path, flags=os.O_RDONLY, **where): return os.open(path, flags, **where) and 'done'
    def socket_of(*kind): return socket.socket(*kind) and 'done'
    victim, port, name, secret, shown, inherited, directory = sys.argv[1:]
    written = os.O_WRONLY | os.O_CREAT
    room = ctypes.create_string_buffer(8)
    iovec = (ctypes.c_size_t * 2)(ctypes.addressof(room), 8)
    vector = ctypes.addressof(iovec)
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
    attempt('descriptor reopened', lambda: opened(f'/proc/self/fd/{inherited}', os.O_WRONLY))
    attempt('directory', lambda: opened('etc/hostname', dir_fd=int(directory)))
    attempt('environ', lambda: opened(f'/proc/{victim}/environ'))
    attempt('memory', lambda: opened(f'/proc/{victim}/mem'))
    attempt('root of another', lambda: os.listdir(f'/proc/{victim}/root'))
    attempt('token', lambda: os.environ.get('CI_JOB_TOKEN', 'ENOENT'))
    attempt('init fd', lambda: os.listdir('/proc/1/fd') and 'done')
    attempt('init memory', lambda: opened('/proc/1/mem'))
    attempt('write by root', lambda: opened('/proc/self/root/var/sandbox-was-here', written))
    attempt('bind', lambda: opened(f'{shown}/file', os.O_WRONLY))
    attempt('bind by root', lambda: opened(f'/proc/self/root{shown}/file', os.O_WRONLY))
    attempt('bind removed', lambda: os.unlink(f'{shown}/file') or 'done')
    attempt('bind chmod', lambda: os.chmod(f'{shown}/file', 0o777) or 'done')
    attempt('bind times', lambda: os.utime(f'{shown}/file') or 'done')
    attempt('bind remount', lambda: call(165, 0, 0, 0, 0x1020, 0))
    attempt('open_tree', lambda: call(428, -100, 0, 0x8001))
    attempt('move_mount', lambda: call(429, -100, 0, -100, 0, 0))
    attempt('fsopen', lambda: call(430, 0, 0))
    attempt('mount_setattr', lambda: call(442, -100, 0, 0, 0, 32))
    attempt('handle', lambda: call(304, -100, 0, 0))
    attempt('chroot', lambda: os.chroot('/') or 'done')
    attempt('pivot_root', lambda: call(155, 0, 0))
    attempt('setns', lambda: call(308, 0, 0))
    attempt('other memory', lambda: call(310, 1, vector, 1, vector, 1, 0))
    attempt('kernel log', lambda: call(103, 10, 0, 0))
    attempt('kernel log read', lambda: call(103, 3, 0, 0))
    attempt('kmsg', lambda: opened('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK))
    attempt('kmsg in proc', lambda: os.read(os.open('/proc/kmsg', os.O_RDONLY | os.O_NONBLOCK), 9) or 'EPERM')
    attempt('kernel memory', lambda: os.read(os.open('/proc/kcore', os.O_RDONLY), 9) or 'EPERM')
    attempt('finit_module', lambda: call(313, 0, 0, 0))
    attempt('delete_module', lambda: call(176, 0, 0))
    attempt('kexec', lambda: call(246, 0, 0, 0, 0))
    attempt('reboot', lambda: call(169, 0, 0, 0, 0))
    attempt('swapon', lambda: call(167, 0, 0))
    attempt('clock', lambda: call(227, 0, 0))
    attempt('name', lambda: socket.sethostname('owned') or 'done')
    attempt('ports', lambda: call(172, 3))
    attempt('perf', lambda: call(298, 0, 0, -1, -1, 0))
    attempt('userfaultfd', lambda: call(323, 1))
    attempt('add_key', lambda: call(248, 0, 0, 0, 0, 0))
    attempt('tioclinux', lambda: call(16, 0, 0x541C, 0))
    attempt('packet socket', lambda: socket_of(socket.AF_PACKET, socket.SOCK_RAW))
    attempt('raw socket', lambda: socket_of(socket.AF_INET, socket.SOCK_RAW, 1))
    attempt('loop device', lambda: opened('/dev/loop-control'))
    attempt('uid map', lambda: os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1') and 'done')
    attempt('sysctl', lambda: open('/proc/sys/kernel/core_pattern', 'w') and 'done')
    attempt('sysrq', lambda: open('/proc/sysrq-trigger', 'w') and 'done')
    attempt('sys', lambda: open('/sys/power/state', 'w') and 'done')
    attempt('mount', lambda: call(165, 0, 0, 0, 0, 0))
    attempt('umount', lambda: call(166, 0, 0))
    attempt('unshare', lambda: call(272, 0x10000000))
    attempt('clone', lambda: call(56, 0x10000011, 0, 0, 0, 0))
    attempt('clone3', lambda: call(435, 0, 88))
    attempt('tiocsti', lambda: call(16, 0, 0x5412, 0))
    attempt('tiocsetd', lambda: call(16, 0, 0x5423, 0))
    attempt('tiocsetd in 64 bits', lambda: call(16, 0, 0x100005423, 0))
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
REFUSED |= {"EAFNOSUPPORT"}


@contextlib.contextmanager
def targets(home: Path) -> Iterator[list[str]]:
    """Things of the host within reach of whoever is not isolated, in a home; the words that PROBE takes for them.

    The last three are a directory, a file in it that is open and writable, and the host's root: to be bound read-only,
    and to be inherited.
    """
    secret, shown = home / "secret", home / "shown"
    secret.write_text("secret\n")
    secret.chmod(0o644)
    shown.mkdir()
    shown.chmod(0o777)
    (shown / "file").write_text("content\n")
    (shown / "file").chmod(0o666)
    fds = os.open(shown / "file", os.O_RDWR), os.open("/", os.O_RDONLY)
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
            yield [str(os.getpid()), str(tcp.getsockname()[1]), name, str(secret), str(shown), *map(str, fds)]
            assert (shown / "file").read_text() == "content\n"
        finally:
            for fd in fds:
                os.close(fd)
            shutil.rmtree(shown)
            secret.unlink()
            os.unlink(f"{secret}.socket")


def check(printed: str) -> None:
    """What the probes said: every one was tried, and none got anything."""
    got = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    assert len(got) == PROBE.count("\nattempt('")
    assert got.pop("kill init") == "sent", "the init takes no signal of the command's"
    reached = {name: answer for name, answer in got.items() if answer not in REFUSED}
    assert not reached, reached
