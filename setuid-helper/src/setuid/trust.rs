//! Images that the kernel may be shown as they are, because no user can have made them.

use super::policy::is_roots;
use super::{Policy, Rights, refused};
use crate::error::{Failure, printable};
use crate::fsops::{NO_LINKS, proc_fd, same_inode};
use crate::prelude::*;
use crate::sys;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatxFlags, fstat, fstatfs, open, openat, openat2, readlinkat, statat, statx,
};
use rustix::io::Errno;

/// `f_type` of filesystems that the kernel itself serves and that keep owners: statfs(2), linux/magic.h. FUSE and
/// network filesystems show any owner that somebody else likes. No overlay: who mapped a file of one for writing has the
/// file below it mapped, and the one above tells nobody.
const KERNEL_SERVED: [u64; 11] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0xF2F5_2010, // f2fs
    0xCA45_1A4E, // bcachefs
    0x2FC1_2FC1, // zfs
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x7371_7368, // squashfs
    0xE0F5_E1E2, // erofs
    0x9660,      // iso9660
];
/// What a squashfs image begins with.
const MAGIC: [u8; 4] = *b"hsqs";
/// More directories than any path has.
const DEEPEST: usize = 4096;

/// Whether only root can have made this file, and can change it or put another in its place.
pub fn is_trusted(file: BorrowedFd, policy: &Policy, rights: Rights) -> bool {
    check(file, policy, rights).is_ok()
}

/// What is said where the policy wants trusted images only.
pub fn untrusted(path: &[u8]) -> Failure {
    let name = if path.is_empty() { "an image in memory".to_owned() } else { printable(path) };
    refused(format!("the policy does not allow the kernel to mount {name}"))
        .hint("use an image that root owns, or --mode userns")
}

fn check(file: BorrowedFd, policy: &Policy, rights: Rights) -> Result<(), Errno> {
    let status = fstat(file)?;
    let kind = fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    (is_roots(&status) && KERNEL_SERVED.contains(&kind)).then_some(()).ok_or(Errno::PERM)?;
    // A lease is in the way of root's own writers: none on what is no image.
    let mut start = MAGIC.map(|_| 0);
    let length = rustix::io::pread(file, &mut start, 0)?;
    (length == MAGIC.len() && start == MAGIC).then_some(()).ok_or(Errno::INVAL)?;
    // The file may have been reached through /proc/PID/root, in a mount namespace whose mounts are the user's choice.
    // The name that it had there is worth nothing unless it leads to the same file here, without any link.
    let path = readlinkat(CWD, proc_fd(file), Vec::new())?.into_bytes();
    let cut = path.iter().rposition(|byte| *byte == b'/').ok_or(Errno::INVAL)?;
    let (parent, name) = (&path[..cut.max(1)], &path[cut + 1..]);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, parent, flags, Mode::empty(), NO_LINKS)?;
    let is_there = same_inode(&statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?, &status);
    (parent.starts_with(b"/") && is_there).then_some(()).ok_or(Errno::PERM)?;
    is_roots_way(directory, policy)?;
    // Who had it open for writing before it was given to root still has. By a descriptor of our own: the caller has the
    // other one, too, and a lease would stay with it.
    let _root = rights.as_root()?;
    let own = open(proc_fd(file), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    if sys::is_open_for_writing(own)? { Err(Errno::TXTBSY) } else { Ok(()) }
}

/// Make sure that this directory and all above it, up to a trusted one, are root's alone.
fn is_roots_way(mut directory: OwnedFd, policy: &Policy) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // By identity: a prefix of a path says nothing about where a directory is.
    let opened = policy.trusted.iter().filter_map(|path| open(path.as_slice(), flags, Mode::empty()).ok());
    let trusted: Vec<[u64; 3]> = opened.map(|fd| identity(&fd)).collect::<Result<_, _>>()?;
    for _ in 0..DEEPEST {
        is_roots(&fstat(&directory)?).then_some(()).ok_or(Errno::PERM)?;
        let this = identity(&directory)?;
        let above = openat(&directory, "..", flags, Mode::empty())?;
        // Nothing is above the root directory.
        if trusted.contains(&this) || identity(&above)? == this {
            return Ok(());
        }
        directory = above;
    }
    Err(Errno::PERM)
}

/// Device, inode and mount: inside a clone of the same directory a user may have mounted what he likes.
fn identity(directory: &OwnedFd) -> Result<[u64; 3], Errno> {
    let (status, mount) = (fstat(directory)?, statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?);
    Ok([status.st_dev, status.st_ino, mount.stx_mnt_id])
}
