//! Copies in memory that nobody can change any more.

use super::refused;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::prelude::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, sendfile};
use rustix::io::Errno;

/// How much is copied at a time, in bytes.
const PART: usize = 16 << 20;
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// An empty file in memory that can be sealed.
pub fn empty() -> Outcome<OwnedFd> {
    memfd_create("sandbox-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).doing("make a file in memory", b"")
}

/// A sealed copy of a whole file of at most `limit` bytes.
pub fn sealed(file: BorrowedFd, path: &[u8], limit: u64) -> Outcome<OwnedFd> {
    let is_file = fstat(file).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile);
    if !is_file {
        return Err(refused("what was handed over as an image is no file"));
    }
    let copy = empty()?;
    let mut done = 0;
    while sendfile(&copy, file, Some(&mut done), PART).doing("copy", path)? != 0 {
        if done > limit {
            let message = format!("{} is longer than the policy allows ({limit} bytes)", printable(path));
            return Err(refused(message).hint("use --mode userns"));
        }
    }
    seal(&copy)?;
    Ok(copy)
}

/// All of an image into an empty file.
pub fn all(image: &OwnedFd, file: &OwnedFd) -> Result<(), Errno> {
    let mut done = 0;
    while sendfile(file, image, Some(&mut done), PART)? != 0 {}
    Ok(())
}

/// Nothing changes from here on; EBUSY if somebody still has it mapped for writing.
pub fn seal(file: &OwnedFd) -> Outcome<()> {
    fcntl_add_seals(file, SEALS).doing("seal an image", b"").map_err(|error: Failure| error.hint("launch again"))
}

/// In bytes.
pub fn size(file: impl AsFd) -> u64 {
    fstat(file).map_or(u64::MAX, |status| status.st_size.unsigned_abs())
}
