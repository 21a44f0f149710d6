"""The default filter, asked as the kernel asks it."""

import errno
import itertools
import struct

import pytest

from sandbox import auditing, seccomp
from sandbox.errors import UsageError

# What Docker's default profile leaves to who has a capability that containers do not have, or to nobody
# (docs.docker.com, "Seccomp security profiles for Docker"): a job has none at all.
WITH_A_CAPABILITY = """
acct bpf chroot clock_settime clone3 delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick
get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount mount_setattr
move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise
quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns
settimeofday swapoff swapon sysfs syslog umount2 unshare uselib userfaultfd ustat vhangup add_key
"""
# clone(CLONE_NEWNS), clone(CLONE_NEWUSER), personality(UNAME26)
WITH_ARGUMENTS = (("clone", 0x20000), ("clone", 0x10000000), ("personality", 0x20000 | 0x4000000))


@pytest.fixture(scope="module")
def answer():
    """What the filter says to a call of this name with these first arguments."""
    words = seccomp.compile_filter(())
    library = seccomp.bindings()
    machine = int.from_bytes(auditing.call("execve")[4:8], "little")

    def ask(name, first=0, second=0, third=0):
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        assert number >= 0, f"{name} is in the list of another architecture"
        return auditing.judge(words, struct.pack("=iIQ6Q", number, machine, 0, first, second, third, 0, 0, 0))

    return ask


def test_what_docker_refuses_is_refused(answer):
    refused = {0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS}
    allowed = [name for name in WITH_A_CAPABILITY.split() if answer(name) not in refused]
    allowed += [f"{name}({first:#x})" for name, first in WITH_ARGUMENTS if answer(name, first) not in refused]
    assert not allowed


# More than an int, and what the kernel takes of a type beside it: SOCK_NONBLOCK and SOCK_CLOEXEC.
HIGH, FLAGS = (0, 1 << 32, 0xFFFFFFFF << 32), (0, 0x800, 0x80000, 0x80800)
NUMBERS = (*range(300), 512, 0x10001, 0x7FFFFFFF, 0x80000000, 0x80000006, 0xFFFFFFFF)


def expected(family, kind, protocol):
    """By the families: every type and protocol of Unix sockets, three types and eight protocols of the internet's."""
    if family not in (1, 2, 10, 16):
        return 0x50000 | errno.EAFNOSUPPORT
    protocols = {1: (protocol,), 16: (0, 15)}.get(family, (0, 1, 6, 17, 58, 136, 255, 262))
    is_allowed = protocol in protocols and (family in (1, 16) or kind & 15 in (1, 2, 3))
    return 0x7FFF0000 if is_allowed else 0x50000 | errno.EPROTONOSUPPORT


@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_sockets_by_family_type_and_protocol(answer, name):
    """The kernel takes the low 32 bits of each (socket(2)): so does the filter, whatever is above them."""
    for family, high in itertools.product(NUMBERS, HIGH):
        assert answer(name, high | family, high | 1, high) == expected(family, 1, 0), hex(family)
    for family, protocol, high in itertools.product((1, 2, 10, 16), NUMBERS, HIGH):
        assert answer(name, family, 3, high | protocol) == expected(family, 3, protocol), (family, hex(protocol))
    for family, kind, flags, high in itertools.product((1, 2, 10, 16), range(18), FLAGS, HIGH):
        told = high | flags | kind
        assert answer(name, family, told, 6) == expected(family, kind, 6), (family, hex(told))


# TIOCSTI, TIOCLINUX, TIOCSETD; of bridges and of VLANs.
IOCTLS = (0x5412, 0x541C, 0x5423, 0x8940, 0x8941, 0x8982, 0x8983, *range(0x89A0, 0x89A4))


def test_ioctls_and_limits_by_the_low_half(answer):
    """The kernel takes an int of each; a limit of cores is set without effect, and can be asked for."""
    requests = {near for request in IOCTLS for near in range(request - 2, request + 3)} | set(NUMBERS)
    for request, high in itertools.product(requests, HIGH):
        wanted = 0x50000 | errno.EPERM if request in IOCTLS else 0x7FFF0000
        assert answer("ioctl", 3, high | request, request) == wanted, hex(request)
    for limit, high, new in itertools.product(range(20), HIGH, (0, 1, 0xFFFF0000, 1 << 32, 1 << 63)):
        done, allowed = (0x50000, 0x7FFF0000) if limit == 4 else (0x7FFF0000, 0x7FFF0000)
        assert answer("setrlimit", high | limit, new) == done
        assert answer("prlimit64", 4, high | limit, new) == (done if new else allowed)


def test_a_socket_that_is_allowed_by_name():
    library = seccomp.bindings()
    words = seccomp.compile_filter((b"socket",))
    native = int.from_bytes(auditing.call("execve")[4:8], "little")
    given = {}
    for name in ("socket", "socketpair"):
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        given[name] = auditing.judge(words, struct.pack("=iIQ6Q", number, native, 0, 40, 9, 999, 0, 0, 0))
    assert given == {"socket": 0x7FFF0000, "socketpair": 0x50000 | errno.EAFNOSUPPORT}
    both = seccomp.compile_filter((b"socket", b"socketpair"))
    assert len(both) < len(words)


# socketcall(2), socket(2) and socketpair(2) of i386, of x32, of ARM.
FOREIGN = ((0x40000003, (102, 359, 360)), (0xC000003E, (0x40000029, 0x40000035)), (0x40000028, (102, 281, 288)))


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the filter of a 64 bit machine")
def test_sockets_by_the_numbers_of_other_abis():
    words = seccomp.compile_filter(())
    for machine, numbers in FOREIGN:
        for number, family in itertools.product(numbers, (1, 2, 40)):
            call = struct.pack("=iIQ6Q", number, machine, 0, family, 1, 0, 0, 0, 0)
            assert auditing.judge(words, call) == 0x50000 | errno.ENOSYS, (hex(machine), number)


WRONG = {
    "is not a filter of 1 to 4096": b"odd",
    "not a filter that the kernel takes": struct.pack("<HBBI", 0x20, 0, 0, 0),
    "refuses execve": struct.pack("<HBBI", 0x06, 0, 0, 0x50000 | errno.EPERM),
}


@pytest.mark.parametrize("says", WRONG)
def test_filters_that_start_nothing(tmp_path, says):
    file = tmp_path / "filter"
    file.write_bytes(WRONG[says])
    with pytest.raises(UsageError, match=says):
        seccomp.read_filter(bytes(file))
    file.write_bytes(struct.pack("<HBBI", 0x05, 0, 0, 9) + struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))
    with pytest.raises(UsageError, match="the kernel takes"):
        seccomp.read_filter(bytes(file))


def test_a_name_is_refused_in_one_way_only():
    assert not set(seccomp._ALLOWED.split()) & set(seccomp._DENIED.split())
