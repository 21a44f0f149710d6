//! Descriptors that arrive, or are wanted, under a certain number.

use rustix::io::{Errno, FdFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Take over an inherited descriptor and make it close-on-exec. The caller sees to it that no number is taken twice.
pub fn adopt(number: i32) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the descriptor is only looked at for this one call, and fcntl answers EBADF if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed.as_fd(), FdFlags::CLOEXEC)?;
    // SAFETY: it is open (fcntl said so) and was handed to this program by its caller, on purpose, to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Make `fd` available, across exec, as exactly this number. Only for a process that is about to exec.
pub fn place_at(fd: BorrowedFd, number: i32) -> Result<(), Errno> {
    if fd.as_raw_fd() == number {
        return rustix::io::fcntl_setfd(fd, FdFlags::empty());
    }
    // SAFETY: dup2 takes two numbers and touches no memory. What `number` meant before is lost on purpose.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

/// `errno` of the libc call that just failed.
pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
