//! Rebuilt images that are kept: root's files in a directory per user that only root gets into. What is there is
//! complete, on the disk, and never written to again; a builder never had it open.

use super::policy::is_roots;
use super::{Images, Policy, Rights, copy, ground};
use crate::error::{Doing, Failure, Outcome};
use crate::fsops::proc_fd;
use crate::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, Timestamps, UTIME_NOW, flock, fstat,
    fsync, futimens, linkat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::thread::Timespec;

/// A small image counts as much, so that the budget bounds the number of files, too.
const SMALLEST: u64 = 1 << 20;
/// How long others are waited for that look into the store or change it, in milliseconds.
const PATIENCE: u32 = 2000;
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };

/// What the original is known by: whatever changes its content changes its ctime, which nobody can set. What the
/// policy wanted done with it is part of it, as a policy may change.
pub fn name(original: &Stat, images: Images) -> String {
    let Stat { st_dev: dev, st_ino: ino, st_size: size, .. } = *original;
    let (mtime, ctime) = ((original.st_mtime, original.st_mtime_nsec), (original.st_ctime, original.st_ctime_nsec));
    let what = if images == Images::Any { "copy" } else { "rebuilt" };
    format!("{what}-{dev:x}-{ino:x}-{size:x}-{:x}.{:x}-{:x}.{:x}", mtime.0, mtime.1, ctime.0, ctime.1)
}

/// One user's images.
pub struct Store<'p> {
    directory: OwnedFd,
    policy: &'p Policy,
    rights: Rights,
}

impl Store<'_> {
    /// Of the caller. Made if it is missing.
    pub fn open(policy: &Policy, rights: Rights) -> Outcome<Store<'_>> {
        let directory = ground::private(&policy.store, &rustix::process::getuid().as_raw().to_string(), rights)?;
        Ok(Store { directory, policy, rights })
    }

    /// The image of that name, which stays as long as the result, or a loop device that was given it, has it open.
    pub fn find(&self, name: &str) -> Option<OwnedFd> {
        let _locked = self.lock().ok()?;
        let _root = self.rights.as_root().ok()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::empty()).ok()?;
        let status = fstat(&file).ok()?;
        if !is_roots(&status) || FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return None;
        }
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        let _ = futimens(&file, &Timestamps { last_access: NOW, last_modification: NOW });
        Some(file)
    }

    /// Keep an image under a name that nobody else is building now.
    pub fn keep(&self, name: &str, image: &OwnedFd) -> Outcome<OwnedFd> {
        let cost = copy::size(image).max(SMALLEST);
        if cost > self.policy.store_bytes {
            return Err(Failure::new(format!("it is longer than store_bytes allows ({})", self.policy.store_bytes)));
        }
        let (draft, temporary) = self.draft(name).doing("make a file in the store", b"")?;
        let written = copy::all(image, &draft).and_then(|()| fsync(&draft));
        let published = written.doing("write to the store", b"").and_then(|()| {
            let _locked = self.lock()?;
            let _root = self.rights.as_root().doing("become root for the store", b"")?;
            self.make_room(name, cost)?;
            self.publish(&draft, temporary.as_deref(), name).doing("publish in the store", b"")
        });
        if let (Err(_), Some(temporary), Ok(_root)) = (&published, &temporary, self.rights.as_root()) {
            let _ = unlinkat(&self.directory, temporary, AtFlags::empty());
        }
        published?;
        drop(draft);
        self.find(name).ok_or_else(|| Failure::new("it is in the store, and cannot be opened there"))
    }

    /// The directory is root's alone, so only helpers lock it.
    fn lock(&self) -> Outcome<Locked<'_>> {
        if ground::lock(&self.directory, PATIENCE) {
            return Ok(Locked(&self.directory));
        }
        Err(Failure::new("another launch of yours holds the store, and does not go on"))
    }

    /// A file without a name, or, where the filesystem has none such, with a temporary one.
    fn draft(&self, name: &str) -> Result<(OwnedFd, Option<String>), Errno> {
        let _root = self.rights.as_root()?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match openat(&self.directory, ".", flags | OFlags::TMPFILE, Mode::RUSR) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
            other => return Ok((other?, None)),
        }
        let temporary = format!(".{name}");
        let _ = unlinkat(&self.directory, &temporary, AtFlags::empty()); // of a launch that was killed
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&self.directory, &temporary, flags, Mode::RUSR)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok((file, Some(temporary)))
    }

    fn publish(&self, draft: &OwnedFd, temporary: Option<&str>, name: &str) -> Result<(), Errno> {
        let to = &self.directory;
        let done = match temporary {
            Some(temporary) => renameat_with(to, temporary, to, name, RenameFlags::NOREPLACE),
            None => linkat(CWD, proc_fd(draft), to, name, AtFlags::SYMLINK_FOLLOW),
        };
        done.or_else(|error| if error == Errno::EXIST { Ok(()) } else { Err(error) })?;
        fsync(to)
    }

    /// Remove what was made of an older state of the original, and what was not used for the longest time, until
    /// `cost` more bytes fit in.
    fn make_room(&self, name: &str, cost: u64) -> Outcome<()> {
        let mut kept = self.list().doing("read the store", b"")?;
        let original = name.splitn(4, '-').take(3).fold(String::new(), |all, part| all + part + "-");
        for image in &mut kept {
            if image.name.starts_with(&original) || image.name.starts_with('.') {
                image.used = (0, 0); // nobody finds it any more
            }
        }
        kept.retain(|image| image.name.strip_prefix('.') != Some(name)); // what is being published
        kept.sort_unstable_by_key(|image| image.used);
        let mut total = kept.iter().fold(cost, |sum, image| sum.saturating_add(image.cost));
        for image in kept {
            if (image.used == (0, 0) || total > self.policy.store_bytes)
                && image.name != name
                && self.evict(&image.name)
            {
                total -= image.cost;
            }
        }
        if total <= self.policy.store_bytes {
            return Ok(());
        }
        Err(Failure::new("what is in use there leaves no room within store_bytes"))
    }

    fn list(&self) -> Result<Vec<Kept>, Errno> {
        let mut kept = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let status = statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let used = (status.st_mtime, status.st_mtime_nsec as i64);
            kept.push(Kept { name, cost: status.st_size.unsigned_abs().max(SMALLEST), used });
        }
        Ok(kept)
    }

    /// Whether it could be removed: what is open somewhere, or behind a loop device, is locked.
    fn evict(&self, name: &str) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let free = openat(&self.directory, name, flags, Mode::empty())
            .and_then(|file| flock(&file, FlockOperation::NonBlockingLockExclusive));
        free.is_ok() && unlinkat(&self.directory, name, AtFlags::empty()).is_ok()
    }
}

/// Something in the store, and when it was last used.
struct Kept {
    name: String,
    cost: u64,
    used: (i64, i64),
}

/// The store's lock. The descriptor lives on, so it is unlocked by hand.
struct Locked<'s>(&'s OwnedFd);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}
