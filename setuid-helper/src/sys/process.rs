//! fork(2), execve(2), and the end of a process.

use super::raw::{output, syscall};
use crate::prelude::*;
use core::ffi::{CStr, c_char};
use core::marker::PhantomData;
use core::ptr::null;
use core::time::Duration;
use rustix::io::Errno;
use rustix::process::Pid;

/// Which of the two processes this is.
pub enum Forked {
    /// The new one.
    Child,
    /// The old one, with the id of the new one.
    Parent(Pid),
}

/// fork(2). These programs never have a second thread, so the child may do anything.
pub fn fork() -> Result<Forked, Errno> {
    let signal_at_end = libc::SIGCHLD.unsigned_abs() as usize;
    // SAFETY: without CLONE_VM the child has its own copy of everything, and without a new stack it goes on here.
    // No other thread exists (the crate starts none), so no lock is held by a thread that the child lacks.
    let pid = unsafe { syscall(libc::SYS_clone, [signal_at_end]) }?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map_or(Forked::Child, Forked::Parent))
}

/// End this process now: no destructors, so a forked child undoes nothing of its parent's.
pub fn exit_now(code: i32) -> ! {
    loop {
        // SAFETY: no pointers, and it does not return.
        let _ = unsafe { syscall(libc::SYS_exit_group, [code as usize]) };
    }
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
    let mut time = [0u64; 2];
    // SAFETY: the kernel fills in a struct timespec, which is two 64-bit numbers.
    let _ = unsafe { syscall(libc::SYS_clock_gettime, [libc::CLOCK_MONOTONIC as usize, output(&mut time)]) };
    Duration::new(time[0], time[1] as u32)
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
