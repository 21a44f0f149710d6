//! mount_setattr(2) and unshare(2).

use super::raw::{input, number, syscall};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Add attributes (`MOUNT_ATTR_*`) to the mount of `fd`, recursively, and make its propagation slave. Linux 5.12.
pub fn set_mount(fd: BorrowedFd, attributes: u64) -> Result<(), Errno> {
    change(fd, attributes, libc::MS_SLAVE)
}

/// Set the propagation (`MS_SLAVE`, `MS_PRIVATE`) of the mount of `fd`, recursively. Linux 5.12.
pub fn set_propagation(fd: BorrowedFd, propagation: u64) -> Result<(), Errno> {
    change(fd, 0, propagation)
}

fn change(fd: BorrowedFd, attributes: u64, propagation: u64) -> Result<(), Errno> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as usize;
    let arguments = [number(fd), c"".as_ptr() as usize, flags, input(&attr), size_of::<libc::mount_attr>()];
    // SAFETY: the path is an empty C string, and the kernel reads a mount_attr of the given size.
    unsafe { syscall(libc::SYS_mount_setattr, arguments) }.map(drop)
}

/// unshare(2). Unknown flags are EINVAL.
pub fn unshare(flags: u64) -> Result<(), Errno> {
    let known = u32::try_from(flags).ok().and_then(UnshareFlags::from_bits).ok_or(Errno::INVAL)?;
    if known.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL);
    }
    // SAFETY: only a descriptor table shared with another thread could break I/O safety; CLONE_FILES is refused above.
    unsafe { rustix::thread::unshare_unsafe(known) }
}
