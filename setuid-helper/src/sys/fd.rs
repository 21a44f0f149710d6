//! Descriptors that arrive, or are wanted, under a certain number.

use super::raw::{number, syscall};
use crate::error::LAUNCHER_FAILED;
use crate::prelude::*;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::Pid;

/// Take over an inherited descriptor and make it close-on-exec.
pub fn adopt(raw: i32) -> Result<OwnedFd, Errno> {
    // Whoever names one that was not there may mean the number of something that this program has opened since.
    if !u32::try_from(raw).is_ok_and(is_inherited) {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and only looked at here.
    let given = unsafe { BorrowedFd::borrow_raw(raw) };
    fcntl_setfd(given, FdFlags::CLOEXEC)?;
    if raw <= 2 {
        return fcntl_dupfd_cloexec(given, 3); // what `occupy_standard` says
    }
    // SAFETY: it is open, not ours, and not taken before, which would show; its caller handed it over to be owned.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Make `fd` available, across exec, as exactly this number. Only for a process that is about to exec.
pub fn place_at(fd: BorrowedFd, wanted: i32) -> Result<(), Errno> {
    if fd.as_raw_fd() == wanted {
        return fcntl_setfd(fd, FdFlags::empty());
    }
    // SAFETY: no pointers. What `wanted` meant before is replaced on purpose; nothing in this process uses it again.
    unsafe { syscall(libc::SYS_dup3, [number(fd), wanted.unsigned_abs() as usize]) }.map(drop)
}

/// Descriptors 0, 1 and 2 are never ours: where one is closed, `/dev/null` takes its number until exec. Otherwise a
/// message for descriptor 2 would end up in whatever file was opened next.
pub fn occupy_standard() {
    for raw in 0..=2 {
        // SAFETY: the descriptor is only looked at for this one call, and fcntl answers EBADF if it is not open.
        if fcntl_getfd(unsafe { BorrowedFd::borrow_raw(raw) }) == Err(Errno::BADF) {
            // The lowest free number is the wanted one, as all below it are open by now.
            match openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
                Ok(null) => _ = null.into_raw_fd(),
                Err(_) => super::exit_now(LAUNCHER_FAILED), // nobody is there to be told
            }
        }
    }
}

/// Descriptor 0, 1 or 2.
pub fn standard(raw: i32) -> BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&raw));
    // SAFETY: `occupy_standard` saw to it that these are open, and nothing closes them.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

/// Every descriptor above 2 becomes close-on-exec.
pub fn close_all_on_exec() -> Result<(), Errno> {
    close_on_exec(3, u32::MAX)
}

/// All descriptors of this range become close-on-exec: close_range(2), Linux 5.11.
pub fn close_on_exec(first: u32, last: u32) -> Result<(), Errno> {
    let range = [first as usize, last as usize, libc::CLOSE_RANGE_CLOEXEC as usize];
    // SAFETY: no pointers, and nothing is closed now.
    unsafe { syscall(libc::SYS_close_range, range) }.map(drop)
}

/// Close everything above 2 but these. Only for a process that goes on with nothing else, and ends without destructors.
pub fn keep_only(fds: &[BorrowedFd]) {
    let mut kept: Vec<usize> = fds.iter().map(|fd| number(*fd)).chain([u32::MAX as usize + 1]).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            // SAFETY: no pointers. What owners there are of what is closed are never used or dropped again.
            let _ = unsafe { syscall(libc::SYS_close_range, [first, fd - 1, 0]) };
        }
        first = first.max(fd + 1);
    }
}

/// Whether this number is open, and was before exec: what this program opens is close-on-exec.
pub fn is_inherited(raw: u32) -> bool {
    // SAFETY: no pointers; the descriptor is only looked at.
    let flags = unsafe { syscall(libc::SYS_fcntl, [raw as usize, libc::F_GETFD as usize]) };
    flags.is_ok_and(|flags| flags & libc::FD_CLOEXEC as usize == 0)
}

/// Whether this number is open, and a directory, or something that does not say what it is (as FUSE may).
pub fn is_directory(raw: u32) -> bool {
    let Ok(raw) = i32::try_from(raw) else { return false };
    // SAFETY: not -1, and only looked at; what is not open is EBADF.
    let status = fstat(unsafe { BorrowedFd::borrow_raw(raw) });
    let is_directory = |status: Stat| FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    status.map_or_else(|error| error != Errno::BADF, is_directory)
}

/// Whether anybody has this file open for writing, or mapped so. The kernel says it to who asks for a lease for reading,
/// which is for the file's owner, and given back at once: fcntl(2), "Leases".
pub fn is_open_for_writing(file: impl AsFd) -> Result<bool, Errno> {
    let set = |kind: i32| {
        let arguments = [number(file.as_fd()), libc::F_SETLEASE as usize, kind as usize];
        // SAFETY: no pointers.
        unsafe { syscall(libc::SYS_fcntl, arguments) }
    };
    match set(libc::F_RDLCK) {
        Err(Errno::AGAIN) => Ok(true),
        given => given.and_then(|_| set(libc::F_UNLCK)).map(|_| false),
    }
}

/// Who gets SIGIO when there is data, if `fd` has O_ASYNC (fcntl(2), F_SETOWN).
pub fn set_owner(fd: impl AsFd, owner: Pid) -> Result<(), Errno> {
    let owner = owner.as_raw_nonzero().get() as usize;
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fcntl, [number(fd.as_fd()), libc::F_SETOWN as usize, owner]) }.map(drop)
}
