//! mount_setattr(2) and unshare(2).

use super::raw::{input, number, syscall};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Add attributes (`MOUNT_ATTR_*`) to the mount of `fd`, recursively, and make its propagation slave. Linux 5.12.
pub fn set_mount(fd: BorrowedFd, attributes: u64) -> Result<(), Errno> {
    change(fd, &attributes_only(attributes, libc::MS_SLAVE), true)
}

/// Set the propagation (`MS_SLAVE`, `MS_PRIVATE`) of the mount of `fd`, recursively. Linux 5.12.
pub fn set_propagation(fd: BorrowedFd, propagation: u64) -> Result<(), Errno> {
    change(fd, &attributes_only(0, propagation), true)
}

/// Add attributes to the mount of `fd`, and to all below it if `recursive`.
pub fn add_attributes(fd: BorrowedFd, attributes: u64, recursive: bool) -> Result<(), Errno> {
    change(fd, &attributes_only(attributes, 0), recursive)
}

/// Make the mount of `fd` read-only, or writable again.
pub fn set_read_only(fd: BorrowedFd, on: bool) -> Result<(), Errno> {
    let attr = attributes_only(if on { libc::MOUNT_ATTR_RDONLY } else { 0 }, 0);
    change(fd, &libc::mount_attr { attr_clr: libc::MOUNT_ATTR_RDONLY & !attr.attr_set, ..attr }, false)
}

/// Make the mount of a device node one that devices work on, private, with these attributes beside.
pub fn make_device_mount(fd: BorrowedFd, attributes: u64) -> Result<(), Errno> {
    let clear = (libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY) & !attributes;
    let attr = libc::mount_attr { attr_clr: clear, ..attributes_only(attributes, libc::MS_PRIVATE) };
    change(fd, &attr, false)
}

/// Show the ids of the mount of `fd` through the maps of a user namespace. Linux 5.12.
pub fn set_idmap(fd: &OwnedFd, userns: &OwnedFd) -> Result<(), Errno> {
    let userns_fd = number(userns.as_fd()) as u64;
    let attr = libc::mount_attr { userns_fd, ..attributes_only(libc::MOUNT_ATTR_IDMAP, 0) };
    change(fd.as_fd(), &attr, false)
}

fn attributes_only(attributes: u64, propagation: u64) -> libc::mount_attr {
    libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 }
}

fn change(fd: BorrowedFd, attr: &libc::mount_attr, recursive: bool) -> Result<(), Errno> {
    let flags = (libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 }) as usize;
    let arguments = [number(fd), c"".as_ptr() as usize, flags, input(attr), size_of::<libc::mount_attr>()];
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
