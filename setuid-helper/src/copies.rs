//! Artefacts that were being copied out when the process that copied was killed (sandbox/copies.py records them).

use crate::fsops::{NO_LINKS, TEMPORARY, remove_dir, remove_tree_if};
use crate::prelude::*;
use crate::procfs;
use alloc::ffi::CString;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat2, statat, unlinkat};
use rustix::io::Errno;

const RANDOM: usize = 16;

/// Remove the copy that a dead one's record names: directory, its device and inode, name, device and inode of what was
/// made, zeros before that. What is not that one stays.
pub fn remove(words: &[Vec<u8>]) -> Result<(), Errno> {
    let [parent, dev, ino, name, made_dev, made_ino] = words else { return Ok(()) };
    let numbers = [dev, ino, made_dev, made_ino].map(|word| procfs::parse(word));
    let [Some(dev), Some(ino), Some(made_dev), Some(made_ino)] = numbers else { return Ok(()) };
    if !parent.starts_with(b"/") || !is_ours(name) {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = openat2(CWD, parent.as_slice(), flags, Mode::empty(), NO_LINKS).and_then(|parent| {
        let above = fstat(&parent)?;
        if (above.st_dev, above.st_ino) == (dev, ino) { exactly(parent, name, made_dev, made_ino) } else { Ok(()) }
    });
    match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        other => other,
    }
}

/// Whether it is a name that only we give.
fn is_ours(name: &[u8]) -> bool {
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix(TEMPORARY.as_bytes()).is_some_and(|random| random.len() == RANDOM && random.iter().all(is_hex))
}

fn exactly(parent: impl AsFd, name: &[u8], dev: u64, ino: u64) -> Result<(), Errno> {
    let status = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    let own = |now: &Stat| now.st_uid == rustix::process::getuid().as_raw();
    let same = |now: &Stat| own(now) && (now.st_dev, now.st_ino) == (dev, ino);
    // Killed before it could say which one it made: that is an empty one.
    let is_unsaid = (dev, ino) == (0, 0) && own(&status);
    match kind {
        FileType::Directory if is_unsaid => match remove_dir(&parent, name) {
            Err(Errno::NOTEMPTY) => Ok(()),
            other => other,
        },
        FileType::Directory if same(&status) => {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            remove_tree_if(parent.as_fd(), &name, same)
        }
        FileType::RegularFile if same(&status) || (is_unsaid && status.st_size == 0) => {
            unlinkat(&parent, name, AtFlags::empty())
        }
        _ => Ok(()),
    }
}
