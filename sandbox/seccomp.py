"""The system calls that an isolated command may make: an allow list, compiled with libseccomp to classic BPF.

What is known and dangerous gives EPERM, what is not known here gives ENOSYS: a program that tries a new call then takes
the old way. clone3 gives ENOSYS for that reason: its flags are in memory, out of a filter's sight (clone(2)).
"""

import contextlib
import errno
import hashlib
import os
import struct
from collections.abc import Callable
from typing import Any

from sandbox import bpf, fsops, given
from sandbox.errors import HostError, UsageError, printable

# In the order of the manual's sections, roughly; names that a processor or libseccomp does not have are passed over.
_ALLOWED = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl
dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile connect accept sendto recvfrom sendmsg recvmsg
shutdown bind listen getsockname getpeername setsockopt getsockopt fork vfork execve exit wait4 kill uname
semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd
chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown umask gettimeofday
getrlimit getrusage sysinfo times ptrace getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid
setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget
capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod statfs fstatfs getpriority
setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max
sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall prctl arch_prctl setrlimit sync gettid
readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr
lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity set_thread_area get_thread_area
io_setup io_destroy io_getevents io_submit io_cancel epoll_create remap_file_pages getdents64 set_tid_address
restart_syscall semtimedop fadvise64 timer_create timer_settime timer_gettime timer_getoverrun timer_delete
clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes mq_open mq_unlink
mq_timedsend mq_timedreceive mq_notify mq_getsetattr waitid ioprio_set ioprio_get inotify_init inotify_add_watch
inotify_rm_watch openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat
fchmodat faccessat pselect6 ppoll set_robust_list get_robust_list splice tee sync_file_range vmsplice utimensat
epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2
epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo recvmmsg prlimit64 name_to_handle_at syncfs
sendmmsg getcpu process_vm_readv process_vm_writev sched_setattr sched_getattr renameat2 seccomp getrandom
memfd_create execveat membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq
pidfd_send_signal pidfd_open close_range openat2 faccessat2 epoll_pwait2
landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv cachestat
fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue socket socketpair
"""
_DENIED = """
acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount
fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
nfsservctl open_by_handle_at open_tree perf_event_open personality pidfd_getfd pivot_root process_madvise quotactl
quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday
swapoff swapon sysfs syslog umount umount2 unshare uselib userfaultfd ustat vhangup
"""
# CLONE_NEW* of clone(2), and of an own time namespace.
_NAMESPACES = 0x7E020080
# What personality(2) may be asked for: Linux, with 32 bit addresses or without randomisation, and what is there now.
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
# linux/filter.h
_RET_LOG = 0x7FFC0000


def compile_filter(allowed: tuple[bytes, ...]) -> tuple[int, ...]:
    """The default filter, with these calls allowed as well, whatever their arguments.

    Raises UsageError for a call that does not exist, HostError without libseccomp.
    """
    from sandbox.filter_ranges import compacted  # a launch whose filter is kept has no use for it

    try:
        library = bindings()
    except (ImportError, RuntimeError, OSError) as error:
        raise HostError(f"cannot use libseccomp: {error}", hint="install libseccomp2, or use --seccomp none") from None
    extra = tuple(os.fsdecode(name) for name in allowed)
    rules = library.SyscallFilter(library.ERRNO(errno.ENOSYS))
    # A foreign ABI has its own numbers; libseccomp would kill.
    rules.set_attr(library.Attr.ACT_BADARCH, library.ERRNO(errno.ENOSYS))
    for name in extra:
        _allow_by_user(library, rules, name)
    for name in _ALLOWED.split():
        _add(rules, library.ALLOW, name)
    _add_conditional(library, rules, extra)
    for name in _DENIED.split():
        if name not in extra and name != "personality":
            _add(rules, library.ERRNO(errno.EPERM), name)
    return joined(_exceptions(library, extra), compacted(instructions(rules)))


def _exceptions(library: Any, extra: tuple[str, ...]) -> tuple[int, ...]:
    """What stands before the list, but for calls that the user allows."""
    from sandbox import filter_arguments

    resolved = {name: library.resolve_syscall(library.Arch.NATIVE, name) for name in filter_arguments.CALLS}
    numbers = {name: number for name, number in resolved.items() if name not in extra}
    return filter_arguments.instructions(int(library.system_arch()), numbers)


def bindings() -> Any:
    """libseccomp's own, which distributions have, or pyseccomp of PyPI, which has the same interface.

    Raises ImportError, and RuntimeError or OSError where there is no libseccomp.
    """
    try:
        import seccomp
    except ImportError:
        import pyseccomp as seccomp
    return seccomp


def kept_filter(home: int, allowed: tuple[bytes, ...]) -> tuple[int, ...]:
    """The same, from the file of the home that an earlier launch left."""
    return kept(
        home,
        ["arguments, ranges", *sorted(map(os.fsdecode, allowed)), "", _ALLOWED, _DENIED],
        lambda: compile_filter(allowed),
    )


def kept(home: int, words: list[str], compiled: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """What comes of these words, kept in the home: compiling takes longer than a launch."""
    from sandbox import __version__

    text = " ".join([__version__, os.uname().machine, *words])
    name = b"seccomp-%016x" % int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big")
    with contextlib.suppress(OSError):
        data = fsops.read_file(home, name)
        if data and len(data) % bpf.INSTRUCTION.size == 0:
            return _words(data)
    made = compiled()
    with contextlib.suppress(OSError):  # a full disk costs time, not the launch
        fsops.replace_file(home, name, struct.pack(f"<{len(made)}Q", *made))
    return made


def _allow_by_user(library: Any, rules: Any, name: str) -> None:
    try:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
    except (OSError, ValueError):
        number = -1
    if number < 0:
        raise UsageError(f"--allow-syscall: {name!r} is not a system call here", hint="a name as in syscalls(2)")
    rules.add_rule(library.ALLOW, name)


def _add(rules: Any, action: Any, name: str, *arguments: Any) -> None:
    with contextlib.suppress(OSError, ValueError):
        rules.add_rule(action, name, *arguments)


def _add_conditional(library: Any, rules: Any, extra: tuple[str, ...]) -> None:
    argument, equal, masked = library.Arg, library.EQ, library.MASKED_EQ
    if "clone" not in extra:
        _add(rules, library.ALLOW, "clone", argument(0, masked, _NAMESPACES, 0))
        denied = library.ERRNO(errno.EPERM)
        for bit in (1 << n for n in range(32) if _NAMESPACES & 1 << n):
            _add(rules, denied, "clone", argument(0, masked, bit, bit))
    if "personality" not in extra:
        for value in _PERSONALITIES:
            _add(rules, library.ALLOW, "personality", argument(0, equal, value))


def instructions(rules: Any) -> tuple[int, ...]:
    """Rules of libseccomp's as a plan carries them."""
    with open(os.memfd_create("sandbox-filter", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return _words(file.read())


def read_filter(path: bytes) -> tuple[int, ...]:
    """A filter that somebody else compiled: struct sock_filter after struct sock_filter. Raises UsageError."""
    hint = "classic BPF, as seccomp_export_bpf(3) writes it"
    data = given.read(path, 4096 * bpf.INSTRUCTION.size, option="--seccomp", hint=hint)
    if not data or len(data) % bpf.INSTRUCTION.size:
        raise UsageError(f"--seccomp: {printable(path)} is not a filter of 1 to 4096 instructions", hint=hint)
    words = _words(data)
    _check_starts(words, path)
    return words


def _check_starts(words: tuple[int, ...], path: bytes) -> None:
    """Nothing is told behind a filter by which no command can be executed. Raises UsageError."""
    from sandbox import auditing

    try:
        action = auditing.judge(words, auditing.call("execve")) & auditing.ACTION
    except (IndexError, KeyError):
        raise UsageError(
            f"--seccomp: {printable(path)} is not a filter that the kernel takes",
            hint="every way must end with a return",
        ) from None
    if action not in (bpf.RET_ALLOW, _RET_LOG):
        raise UsageError(
            f"--seccomp: {printable(path)} refuses execve, by which the command is started", hint="allow execve in it"
        )


def _words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // bpf.INSTRUCTION.size}Q", data)


def joined(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """One filter: what the first allows the second decides. There is but one listener for an audit."""
    made = []
    for index, word in enumerate(first):
        code, _, _, k = bpf.unpacked(word)
        is_allowed = (code, k) == (bpf.RET_K, bpf.RET_ALLOW)
        made.append(bpf.packed(bpf.JA, 0, 0, len(first) - index - 1) if is_allowed else word)
    return (*made, *second)
