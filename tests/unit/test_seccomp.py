"""The default filter, asked as the kernel asks it."""

import errno
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
# clone(CLONE_NEWNS), clone(CLONE_NEWUSER), socket(AF_VSOCK), personality(UNAME26)
WITH_ARGUMENTS = (("clone", 0x20000), ("clone", 0x10000000), ("socket", 40), ("personality", 0x20000 | 0x4000000))


@pytest.fixture(scope="module")
def answer():
    """What the filter says to a call of this name with this first argument."""
    words = seccomp.compile_filter(())
    library = seccomp.bindings()

    def ask(name, first=0):
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        assert number >= 0, f"{name} is in the list of another architecture"
        machine = 0xC000003E if struct.calcsize("P") == 8 else 0
        return auditing.judge(words, struct.pack("=iIQ6Q", number, machine, 0, first, 0, 0, 0, 0, 0))

    return ask


def test_what_docker_refuses_is_refused(answer):
    refused = {0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS}
    allowed = [name for name in WITH_A_CAPABILITY.split() if answer(name) not in refused]
    allowed += [f"{name}({first:#x})" for name, first in WITH_ARGUMENTS if answer(name, first) not in refused]
    assert not allowed


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
