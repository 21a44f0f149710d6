//! fork(2), execve(2), and the end of a process.

use super::raw::{clone_and_exit, input, number, output, syscall, trap};
use crate::prelude::*;
use core::ffi::{CStr, c_char};
use core::marker::PhantomData;
use core::ptr::null;
use core::time::Duration;
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::{Stat, fstat, stat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

/// Of linux/sched.h; for the libc crate a C library's.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A kind of namespace: how /proc/PID/ns calls it, and what a pidfd is asked for it (linux/pidfd.h, Linux 6.11).
#[derive(Clone, Copy)]
pub struct Namespace(pub &'static str, pub usize);

impl Namespace {
    /// Of processes.
    pub const PID: Namespace = Namespace("pid", 0xff05);
    /// Of network devices, addresses and routes.
    pub const NET: Namespace = Namespace("net", 0xff04);
}

/// Which of the two processes this is.
pub enum Forked {
    /// The new one.
    Child,
    /// The old one, with the id of the new one.
    Parent(Pid),
}

/// fork(2). These programs never have a second thread, so the child may do anything.
pub fn fork() -> Result<Forked, Errno> {
    fork_into(0, None)
}

/// fork(2) into new namespaces (`CLONE_NEW*`), and into the cgroup of version 2 that this directory is, which has to be
/// one that this process may move itself to (`CLONE_INTO_CGROUP`, Linux 5.7).
pub fn fork_into(namespaces: i32, cgroup: Option<BorrowedFd>) -> Result<Forked, Errno> {
    let new = if let Some(cgroup) = cgroup {
        // struct clone_args of linux/sched.h: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
        // set_tid, set_tid_size, cgroup.
        let flags = i64::from(namespaces).cast_unsigned() | CLONE_INTO_CGROUP;
        let arguments = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, 0, 0, number(cgroup) as u64];
        // SAFETY: as below; the kernel reads these eleven numbers, which live for the call.
        unsafe { syscall(libc::SYS_clone3, [input(&arguments), size_of_val(&arguments)]) }
    } else {
        let flags = (namespaces | libc::SIGCHLD) as usize;
        // SAFETY: without CLONE_VM the child has its own copy of everything, and without a new stack it goes on here.
        // No other thread exists (the crate starts none), so no lock is held by a thread that the child lacks.
        unsafe { syscall(libc::SYS_clone, [flags, 0, 0, 0, 0]) }
    };
    Ok(i32::try_from(new?).ok().and_then(Pid::from_raw).map_or(Forked::Child, Forked::Parent))
}

/// Whether there is a clone3(2). Older filters of container engines answer ENOSYS, with which a C library takes clone(2);
/// without arguments the kernel says EINVAL.
pub fn has_clone3() -> bool {
    // SAFETY: no pointer is followed: of arguments only the size is looked at, which is less than any kernel takes.
    let answer = unsafe { syscall(libc::SYS_clone3, [0, 0]) };
    answer != Err(Errno::NOSYS)
}

/// A process that ended at once, for the namespaces (`CLONE_NEW*`) that it was born in: /proc shows them until it is
/// waited for. It shares all memory, which saves a copy of it, and touches none.
pub fn namesake(namespaces: i32) -> Result<Pid, Errno> {
    let flags = (namespaces | libc::CLONE_VM | libc::SIGCHLD) as usize;
    // SAFETY: the child makes one system call, exit(2), out of registers: it writes to no memory, its stack included.
    let pid = unsafe { clone_and_exit(flags) }?;
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)
}

/// The same, as a child of this process's parent.
pub fn fork_beside(namespaces: i32) -> Result<Forked, Errno> {
    fork_into(namespaces | libc::CLONE_PARENT, None)
}

/// The keys of whoever started this are not for what it starts (keyctl(2)): a keyring of its own, where the kernel has
/// keyrings and this user room for one more. The filter of a job refuses keys as well.
pub fn leave_session_keyring() {
    const JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: the name is none, and the call changes nothing but the keyrings of this process.
    let _ = unsafe { syscall(libc::SYS_keyctl, [JOIN_SESSION_KEYRING, 0]) };
}

/// End this process now: no destructors, so a forked child undoes nothing of its parent's.
pub fn exit_now(code: i32) -> ! {
    // A filter of system calls may refuse the first, or both: whoever tried again would do so for ever.
    for number in [libc::SYS_exit_group, libc::SYS_exit] {
        // SAFETY: no pointers, and it does not return.
        let _ = unsafe { syscall(number, [code as usize]) };
    }
    trap()
}

/// A NULL-terminated array of C strings, as execve wants it.
pub struct CStrings<'a> {
    pointers: Vec<*const c_char>,
    strings: PhantomData<&'a CStr>,
}

impl<'a> FromIterator<&'a CStr> for CStrings<'a> {
    fn from_iter<I: IntoIterator<Item = &'a CStr>>(strings: I) -> Self {
        let mut pointers: Vec<_> = strings.into_iter().map(CStr::as_ptr).collect();
        pointers.push(null());
        CStrings { pointers, strings: PhantomData }
    }
}

/// execve(2); returns only to say why not.
pub fn execute(path: &CStr, argv: &CStrings, environment: &CStrings) -> Errno {
    let arguments = [path.as_ptr() as usize, argv.pointers.as_ptr() as usize, environment.pointers.as_ptr() as usize];
    // SAFETY: all three are valid for the call: a C string, and two NULL-terminated arrays of C strings whose
    // lifetimes CStrings carries.
    unsafe { syscall(libc::SYS_execve, arguments) }.err().unwrap_or(Errno::NOEXEC)
}

/// Time since some moment in the past, not set by anybody (CLOCK_MONOTONIC).
pub fn now() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// Time since 1970 (CLOCK_REALTIME).
pub fn wall_clock() -> Duration {
    clock(libc::CLOCK_REALTIME)
}

/// Time since the machine started, asleep or not (CLOCK_BOOTTIME).
pub fn since_boot() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

fn clock(which: i32) -> Duration {
    let mut time = [0u64; 2];
    // SAFETY: the kernel fills in a struct timespec, which is two 64-bit numbers.
    let _ = unsafe { syscall(libc::SYS_clock_gettime, [which as usize, output(&mut time)]) };
    Duration::new(time[0], time[1] as u32)
}

/// The inode number of this process's pid namespace.
pub fn pid_namespace() -> Result<u64, Errno> {
    own_namespaces([Namespace::PID]).map(|[status]| status.st_ino)
}

/// The inodes of this process's namespaces. From its pidfd, where it tells: every name that is looked up in `/proc/self`
/// has to be found and thrown away again when the process ends.
pub fn own_namespaces<const COUNT: usize>(kinds: [Namespace; COUNT]) -> Result<[Stat; COUNT], Errno> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let look = |Namespace(name, request)| {
        // SAFETY: no pointers; these ioctls take no argument.
        match unsafe { syscall(libc::SYS_ioctl, [number(own.as_fd()), request, 0]) } {
            // SAFETY: it was just made, and nobody else knows it.
            Ok(fd) => fstat(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            Err(_) => stat(format!("/proc/self/ns/{name}")),
        }
    };
    let found: Vec<Stat> = kinds.into_iter().map(look).collect::<Result<_, _>>()?;
    found.try_into().map_err(|_| Errno::INVAL)
}

/// A child that something happened to.
pub struct Waited {
    /// Which one.
    pub pid: Pid,
    /// What happened, as in wait(2).
    status: i32,
    /// Seconds and microseconds in user mode, then in the kernel, then the rest of getrusage(2).
    rusage: [u64; 18],
}

impl Waited {
    /// Whether it was only stopped.
    pub fn is_stopped(&self) -> bool {
        self.status & 0xff == 0x7f
    }

    /// The code that it exited with.
    pub fn exit_code(&self) -> Option<i32> {
        (self.status & 0x7f == 0).then_some(self.status >> 8 & 0xff)
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        let signal = self.status & 0x7f;
        (!matches!(signal, 0 | 0x7f)).then_some(signal)
    }

    /// Processor time in user mode and in the kernel.
    pub fn times(&self) -> [Duration; 2] {
        let time = |at: usize| Duration::new(self.rusage[at], self.rusage[at + 1] as u32 * 1000);
        [time(0), time(2)]
    }

    /// The largest resident set, and what was read from and written to storage, in bytes.
    pub fn amounts(&self) -> [u64; 3] {
        // ru_maxrss in KiB; ru_inblock and ru_oublock in blocks of 512 bytes.
        [self.rusage[4] << 10, self.rusage[11] << 9, self.rusage[12] << 9]
    }
}

/// Any child that has ended, or stopped if `stopped` is wanted; None when all go on. Does not wait. wait4(2).
pub fn wait_any(stopped: bool) -> Result<Option<Waited>, Errno> {
    wait4(usize::MAX, libc::WNOHANG | if stopped { libc::WUNTRACED } else { 0 })
}

/// The end of this child, which is waited for. wait4(2).
pub fn wait_for(pid: Pid) -> Result<Waited, Errno> {
    loop {
        match wait4(pid.as_raw_nonzero().get() as usize, 0) {
            Err(Errno::INTR) => {}
            other => return other?.ok_or(Errno::CHILD),
        }
    }
}

fn wait4(pid: usize, options: i32) -> Result<Option<Waited>, Errno> {
    let (mut status, mut rusage) = (0i32, [0u64; 18]);
    let arguments = [pid, output(&mut status), options as usize, output(&mut rusage)];
    // SAFETY: the kernel writes an int and one struct rusage, which is 18 64-bit numbers; both live for the call.
    let pid = unsafe { syscall(libc::SYS_wait4, arguments) }?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| Waited { pid, status, rusage }))
}

/// The user id for access to files, and nothing else: setfsuid(2), which has no error to tell.
pub fn set_file_uid(uid: u32) -> Result<(), Errno> {
    for wanted in [uid, u32::MAX] {
        // SAFETY: no pointers. An id that does not exist changes nothing, and the answer is the id until now.
        if unsafe { syscall(libc::SYS_setfsuid, [wanted as usize]) }? == uid as usize {
            return Ok(());
        }
    }
    Err(Errno::PERM)
}

/// Real, effective and saved user ids, then the same of the group: getresuid(2).
pub fn all_ids() -> [u32; 6] {
    let [mut uid, mut gid] = [[u32::MAX; 3]; 2];
    for (number, ids) in [(libc::SYS_getresuid, &mut uid), (libc::SYS_getresgid, &mut gid)] {
        let [real, effective, saved] = ids;
        // SAFETY: the kernel writes one 32-bit id through each of the three pointers, which are to different ones.
        let _ = unsafe { syscall(number, [output(real), output(effective), output(saved)]) };
    }
    [uid[0], uid[1], uid[2], gid[0], gid[1], gid[2]]
}
