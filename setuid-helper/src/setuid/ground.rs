//! Directories that only root can change, and what the helper keeps in them.

use super::policy::{STORE, is_roots};
use super::{Rights, refused};
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::DIRECTORY;
use crate::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::thread::{Timespec, nanosleep};

/// Locks, and what is counted per user.
const RUNTIME: &str = "/run/sandbox";
/// How many images can be locked each by a lock of its own. What is fixed in number nobody can fill `/run` with.
const LOCKS: u64 = 256;

/// The directory, which like all above it only root can change, to name what is in it. None: it does not exist.
pub fn open(path: &[u8]) -> Outcome<Option<OwnedFd>> {
    let mut fd = openat(CWD, "/", DIRECTORY | OFlags::PATH, Mode::empty()).doing("open", b"/")?;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        check(&fd, path)?;
        fd = match openat(&fd, part, DIRECTORY | OFlags::PATH, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|error| refused(Failure::os("open", path, error).message))?,
        };
    }
    check(&fd, path)?;
    Ok(Some(fd))
}

fn check(fd: &OwnedFd, path: &[u8]) -> Outcome<()> {
    if is_roots(&fstat(fd).doing("look at", path)?) { Ok(()) } else { Err(unsafe_owner(path)) }
}

/// Who rebuilds images where the policy does not say: the owner of the directory that a package's installation made.
pub fn builder() -> Outcome<(u32, u32)> {
    let Some(above) = open(STORE)? else { return Ok((0, 0)) };
    let found = statat(&above, "builder", AtFlags::SYMLINK_NOFOLLOW);
    Ok(found.map_or((0, 0), |status| (status.st_uid, status.st_gid)))
}

/// What is said of a path on which somebody else than root has a say.
pub fn unsafe_owner(path: &[u8]) -> Failure {
    refused(format!("{} could be changed by somebody else than root", printable(path)))
}

/// The directory `name` in the directory `path`, both made if they are missing: root's, and nobody else gets in.
pub fn private(path: &[u8], name: &str, rights: Rights) -> Outcome<OwnedFd> {
    let _root = rights.as_root().doing("become root for", path)?;
    let above = match open(path)? {
        Some(above) => above,
        None => {
            let cut = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            let parent = open(&path[..cut])?.ok_or_else(|| Failure::os("make", path, Errno::NOENT))?;
            make(&parent, &path[cut + 1..], 0o755).doing("make", path)?
        }
    };
    let directory = make(&above, name.as_bytes(), 0o700).doing("make a directory in", path)?;
    let status = fstat(&directory).doing("look at", path)?;
    if status.st_uid == 0 && status.st_mode & 0o077 == 0 { Ok(directory) } else { Err(unsafe_owner(path)) }
}

fn make(parent: &OwnedFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => openat(parent, name, DIRECTORY, Mode::empty()),
        Err(error) => Err(error),
    }
}

/// A file to lock in `RUNTIME/directory`, where only root can lock anything.
pub fn lock_file(directory: &str, name: &str, rights: Rights) -> Outcome<OwnedFd> {
    let directory = private(RUNTIME.as_bytes(), directory, rights)?;
    let _root = rights.as_root().doing("become root for", RUNTIME.as_bytes())?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR).doing("open a lock in", RUNTIME.as_bytes())
}

/// The lock of an image. Two may have the same: then one waits a little for the other.
pub fn image_lock((dev, ino): (u64, u64), rights: Rights) -> Outcome<OwnedFd> {
    lock_file("locks", &format!("{}", spread(dev ^ ino.rotate_left(32)) % LOCKS), rights)
}

/// Similar numbers far apart (Fibonacci hashing).
pub fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}

/// Lock within so many milliseconds. A user can stop a process of his that holds a lock: nobody waits for ever.
pub fn lock(file: &OwnedFd, milliseconds: u32) -> bool {
    for left in (0..=milliseconds).rev() {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if left > 0 => _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }),
            result => return result.is_ok(),
        }
    }
    false
}
