//! Filesystem operations by descriptor. Nothing here follows a symlink or crosses a mount.

use crate::prelude::*;
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, chmod, fstat, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;

/// How directories of ours are opened.
pub const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Through no link, wherever it stands.
pub const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
/// With it a name begins that is another one's until all is there.
pub const TEMPORARY: &str = ".tmp-";

/// The path that means an open descriptor, in one short string.
pub fn proc_fd(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The directory `name` in `parent`; a symlink is ENOTDIR.
pub fn open_dir(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// The same, only to name what is in it; needs no right to read it.
pub fn open_path(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY | OFlags::PATH, Mode::empty())
}

/// The directory `name` in `parent`, made if it is missing.
pub fn make_dir(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    match mkdirat(parent.as_fd(), name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_path(parent, name),
        Err(error) => Err(error),
    }
}

/// A directory that was not there before; EEXIST if it was.
pub fn make_new_dir(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    mkdirat(parent.as_fd(), name, Mode::RWXU)?;
    open_path(parent, name)
}

/// Remove an empty directory.
pub fn remove_dir(parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// What can be read from here to the end, or until it is at least `limit` bytes.
pub fn read_all(fd: impl AsFd, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::with_capacity(4096);
    loop {
        text.reserve(4096);
        let count = rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text))?;
        if count == 0 || text.len() >= limit {
            return Ok(text);
        }
    }
}

/// Write all of it.
pub fn write_all(fd: impl AsFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(&fd, data) {
            Err(Errno::INTR) => {}
            written => data = &data[written?..],
        }
    }
    Ok(())
}

/// Whether two descriptions are of one inode.
pub fn same_inode(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// A level of a tree that is being walked.
pub struct Level {
    /// The directory.
    pub fd: OwnedFd,
    name: CString,
    /// What is still to come in it.
    pub entries: Dir,
}

/// Remove a tree of this user's, depth first. A directory that is not there is fine, one of somebody else's is EPERM,
/// a mount inside is EXDEV.
pub fn remove_tree(parent: BorrowedFd, name: &CStr) -> Result<(), Errno> {
    remove_tree_if(parent, name, |_| true)
}

/// The same of one that is, when it is open, what is `meant`; ESTALE if it is not.
pub fn remove_tree_if(parent: BorrowedFd, name: &CStr, meant: impl Fn(&Stat) -> bool) -> Result<(), Errno> {
    let root = match open_unlocked(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let status = fstat(&root)?;
    if status.st_uid != rustix::process::getuid().as_raw() {
        return Err(Errno::PERM);
    }
    if !meant(&status) {
        return Err(Errno::STALE);
    }
    // A stack of our own: a tree may be deeper than the stack of this process.
    let mut stack = vec![level(root, name)?];
    while let Some(top) = stack.last_mut() {
        match next_entry(&mut top.entries)? {
            Some(child) => {
                if let Some(fd) = unlink_or_enter(top.fd.as_fd(), &child, status.st_dev)? {
                    stack.push(level(fd, &child)?);
                }
            }
            None => {
                let done = stack.pop().map(|level| level.name).unwrap_or_default();
                let above = stack.last().map_or(parent, |level| level.fd.as_fd());
                unlinkat(above, &done, AtFlags::REMOVEDIR)?;
            }
        }
    }
    Ok(())
}

/// An open directory, about to be read.
pub fn level(fd: OwnedFd, name: &CStr) -> Result<Level, Errno> {
    let entries = Dir::read_from(&fd)?;
    Ok(Level { fd, name: name.to_owned(), entries })
}

/// The name of the next entry.
pub fn next_entry(entries: &mut Dir) -> Result<Option<CString>, Errno> {
    loop {
        match entries.read().transpose()? {
            None => return Ok(None),
            Some(entry) if entry.file_name() == c"." || entry.file_name() == c".." => {}
            Some(entry) => return Ok(Some(entry.file_name().to_owned())),
        }
    }
}

fn unlink_or_enter(parent: BorrowedFd, name: &CStr, device: u64) -> Result<Option<OwnedFd>, Errno> {
    let status = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return unlinkat(parent, name, AtFlags::empty()).map(|()| None);
    }
    let fd = open_unlocked(parent, name)?;
    if fstat(&fd)?.st_dev != device {
        return Err(Errno::XDEV);
    }
    Ok(Some(fd))
}

/// Open a directory of ours for emptying, whatever its mode says (overlay's `work` is 0000).
fn open_unlocked(parent: BorrowedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let handle = openat(parent, name, DIRECTORY | OFlags::PATH, Mode::empty())?;
    let status = fstat(&handle)?;
    if status.st_mode & 0o700 != 0o700 && status.st_uid == rustix::process::getuid().as_raw() {
        chmod(proc_fd(&handle), Mode::RWXU)?;
    }
    openat(&handle, c".", DIRECTORY, Mode::empty())
}

/// The directory that holds a path, and the path's last component.
pub fn open_parent(path: &[u8]) -> Result<(OwnedFd, CString), Errno> {
    let cut = path.iter().rposition(|byte| *byte == b'/').ok_or(Errno::INVAL)?;
    let (parent, name) = (&path[..cut.max(1)], &path[cut + 1..]);
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    Ok((openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, name))
}
