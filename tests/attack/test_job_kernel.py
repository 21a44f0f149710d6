"""What a job makes the kernel do on the host: load modules, hand its cores to a program of root's, find keys."""

import ctypes
import os
import struct
import textwrap

import pytest

FAMILIES = textwrap.dedent("""
    import ctypes, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    pair = (ctypes.c_int * 2)()
    opened = set()
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        for family in range(64):
            for kind in range(1, 8):
                for number, last in ((41, 0), (53, ctypes.addressof(pair))):
                    words = map(ctypes.c_long, (number, high | family, kind, 0, last))
                    if libc.syscall(*words) >= 0: opened.add(family)
                    elif ctypes.get_errno() != 97: opened.add(family)
        os.closerange(3, 1 << 14)
    print(*sorted(opened))
""")
# A socket of another protocol or type, of SOCK_PACKET, which is of another family; a bridge, a VLAN.
MODULES = textwrap.dedent("""
    import ctypes, itertools, socket
    libc = ctypes.CDLL(None, use_errno=True)
    pair = (ctypes.c_int * 2)()
    asked, answers = 0, set()
    def ask(number, *words):
        global asked
        asked += 1
        answers.add((number, 0 if libc.syscall(number, *map(ctypes.c_long, words)) >= 0 else ctypes.get_errno()))
    inet = [(1, 132), (5, 132), (6, 0), (6, 33), (2, 115), (3, 132), (1, 256), (10, 0), (10, 0x300), (7, 0), (0, 0)]
    kinds = [(family, *rest) for family in (2, 10) for rest in inet]
    kinds += [(16, 3, protocol) for protocol in range(1, 32) if protocol != 15]
    for family, kind, protocol in kinds:
        for flags, high in itertools.product((0, 0x80800), (0, 1 << 32, -1 << 32)):
            for number, last in ((41, 0), (53, ctypes.addressof(pair))):
                ask(number, family, high | flags | kind, high | protocol, last)
    print(asked, *sorted(answers))
    with socket.socket() as one:
        for request in (0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1, 0x89a2, 0x89a3):
            for high in (0, 1 << 32): ask(16, one.fileno(), high | request, 0)
    print(*sorted(answers))
""")
USUAL = textwrap.dedent("""
    import socket
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, protocol in ((1, 0), (1, 6), (1, 262), (2, 0), (2, 17), (2, 136), (2, 1 if family == 2 else 58)):
            try: socket.socket(family, kind, protocol).close()
            except PermissionError: pass  # ping: net.ipv4.ping_group_range
    for family, kind in ((1, 1), (1, 2), (1, 5), (16, 3)): socket.socket(family, kind).close()
    socket.socket(16, 2, 15).close()
    for one in socket.socketpair(): one.close()
    print(socket.if_nameindex(), socket.getaddrinfo("127.0.0.1", 80)[0][4])
""")
CORES = textwrap.dedent("""
    import ctypes, resource, subprocess
    core = resource.RLIMIT_CORE
    print(resource.getrlimit(core))
    for limits in ((0, 0), (0, 1), (1, 1)): resource.setrlimit(core, limits)
    resource.prlimit(0, core, (0, 0))
    libc = ctypes.CDLL(None)
    zeros = (ctypes.c_ulong * 2)()
    for high in (0, 1 << 32):
        libc.syscall(160, ctypes.c_long(high | core), zeros)
        libc.syscall(302, 0, ctypes.c_long(high | core), zeros, None)
    print(resource.getrlimit(core))
    print(subprocess.run(["sh", "-ec", "ulimit -c 0; ulimit -c; ulimit -n 64; ulimit -n"], capture_output=True).stdout)
""")


KEYS = textwrap.dedent("""
    import ctypes
    libc = ctypes.CDLL(None)
    print(libc.syscall(250, 10, -3, b"user", b"sbx-secret", 0), libc.syscall(249, b"user", b"sbx-secret", None, 0))
    added = libc.syscall(248, b"user", b"sbx-left", b"x", 1, -3)
    print(added > 0, libc.syscall(250, 10, -3, b"user", b"sbx-left", 0) > 0)
""")


def test_no_key_of_the_callers_session(launch):
    """Without the filter, which refuses all that has to do with keys: the caller's login may have left some."""
    libc = ctypes.CDLL(None)

    def hold_a_key():
        libc.syscall(250, 1, None)
        assert libc.syscall(248, b"user", b"sbx-secret", b"x", 1, -3) > 0

    done = launch("--seccomp", "none", "--", "/usr/bin/python3", "-c", KEYS, preexec_fn=hold_a_key)
    assert done.stdout == "-1 -1\nTrue True\n", done.stderr
    assert launch("--", "/usr/bin/python3", "-c", KEYS).stdout == "-1 -1\nFalse False\n"


# Of linux/filter.h: EPERM for exit_group(2), and all else allowed.
NO_END = ((0x20, 0, 0, 0), (0x15, 0, 1, 231), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter has numbers of x86-64")
def test_a_filter_that_lets_nobody_end(launch, area):
    """What cannot start its command tells so, and is gone: no process is left that tries to end for ever."""
    file = area.dir(launch.as_user) / "filter"
    file.write_bytes(b"".join(struct.pack("<HBBI", *words) for words in NO_END))
    done = launch("--seccomp", str(file), "--", "/no/such/command", timeout=30)
    assert (done.returncode, "command not found" in done.stderr) == (127, True), done.stderr


def test_sockets_of_four_families(launch):
    """For others the kernel loads modules, and all of it but these is code that a job has no business with."""
    done = launch("--", "/usr/bin/python3", "-c", FAMILIES)
    assert done.stdout == "1 2 10 16\n", done.stderr
    opened = launch("--allow-syscall", "socket", "--", "/usr/bin/python3", "-c", FAMILIES)
    assert len(opened.stdout.split()) > 4, "refused by the filter and by nothing else"


def test_no_protocol_that_a_module_brings(launch):
    """Of the kernel's protocols those that programs use: for another one it starts modprobe on the host, as root.

    All that was asked for is counted by the audit: the filter has refused it, and not the kernel, after modprobe.
    """
    done = launch("--audit", "--", "/usr/bin/python3", "-c", MODULES)
    assert done.stdout == "624 (41, 93) (53, 93)\n(16, 1) (41, 93) (53, 93)\n", done.stderr
    for counted in ("socket (EPROTONOSUPPORT, 312 times)", "socketpair (EPROTONOSUPPORT, 312 times)"):
        assert counted in done.stderr
    assert "ioctl (EPERM, 16 times)" in done.stderr


def test_usual_sockets(launch):
    done = launch("--audit", "--", "/usr/bin/python3", "-c", USUAL)
    assert done.stdout == "[(1, 'lo')] ('127.0.0.1', 80)\n", done.stderr
    assert "no system call was refused" in done.stderr


def test_no_core_for_the_host(launch):
    """With a limit of 1 the kernel pipes none to core_pattern; with 0 it does (core(5)). The job cannot change it."""
    done = launch("--isolation", "strict", "--audit", "--", "/usr/bin/python3", "-c", CORES)
    assert "rlimit" not in done.stderr, "nothing that the job is told of is refused"
    assert done.stdout == "(1, 1)\n(1, 1)\nb'0\\n64\\n'\n", done.stderr
