//! A root of the run's own, and what is put into a tree one by one: clones, files, links.

use super::Child;
use super::mounts::{clone_mount, kernel_attributes, move_onto};
use super::place::resolve;
use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{NO_LINKS, open_path};
use crate::plan::{Place, Slot, Step, attr};
use crate::prelude::*;
use crate::setuid::MOUNT;
use crate::sources::same_directory;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fstat, fstatvfs, mkdirat, openat, statat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

const NEW: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

impl Child<'_> {
    /// An absolute path of base root; `how` where that is the host's root directory. In a new root its links are its
    /// author's: they lead nowhere out of it.
    pub fn open_root(&self, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        match &self.root {
            Some(root) => {
                let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                resolve(root.as_fd(), path, flags, how)
            }
            None => resolve(CWD, path, flags, how),
        }
    }

    /// A clone of what is at a place of the host, opened now: a descriptor from before the unshare cannot be cloned.
    pub fn bind(&mut self, slot: Slot, place: &Place) -> Outcome<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = resolve(CWD, place.path, flags, NO_LINKS).doing("open", place.path)?;
        same_directory(place.path, place.dev, place.ino, &fstat(&fd).doing("look at", place.path)?)?;
        let clone = clone_mount(fd.as_fd(), true, 0, self.prepared.rights).doing("clone the mount of", place.path)?;
        self.add_mount(slot, clone, 0);
        Ok(())
    }

    /// A mount of one private file. Its name goes when all is set up: what has none cannot be mounted (ENOENT).
    pub fn text(&mut self, slot: Slot, mode: u32, content: &[u8]) -> Outcome<()> {
        let name = format!(".text{slot}");
        let rights = self.prepared.rights;
        let directory = rustix::io::fcntl_dupfd_cloexec(self.procdir()?, 3).doing("keep the procdir", b"")?;
        let file = self.new_file(&directory, name.as_bytes(), mode, content).doing("make a file", b"")?;
        let clone = clone_mount(file.as_fd(), false, 0, rights).doing("clone a file", b"");
        self.texts.push((directory, name));
        self.add_mount(slot, clone?, 0);
        Ok(())
    }

    /// A file that was not there before, the command's own.
    fn new_file(&self, parent: &OwnedFd, name: &[u8], mode: u32, content: &[u8]) -> Result<OwnedFd, Errno> {
        let file = openat(parent, name, NEW, Mode::from_raw_mode(mode & 0o777))?;
        let mut left = content;
        while !left.is_empty() {
            left = &left[rustix::io::write(&file, left)?..];
        }
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))?;
        }
        Ok(file)
    }

    /// Without content a file that is there is fine: it is mounted on.
    pub fn file(&mut self, place: &Place, mode: u32, content: &[u8]) -> Outcome<()> {
        let (directory, name) = self.make_parent(place)?;
        match self.new_file(&directory, name, mode, content) {
            Err(Errno::EXIST) if content.is_empty() => Ok(()),
            // What is there needs no right to be made.
            Err(Errno::ROFS | Errno::ACCESS)
                if content.is_empty() && statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() =>
            {
                Ok(())
            }
            other => other.map(drop).doing("make", &self.path_of(place)),
        }
    }

    /// /dev is read-only but for this moment.
    pub fn node(&mut self, slot: Slot, path: &[u8]) -> Outcome<()> {
        let Some(dev) = self.dev.take() else { return Err(Failure::new("there is no /dev of the run's own")) };
        let rights = self.prepared.rights;
        let lock = |on| rights.raise(MOUNT).and_then(|_raised| sys::set_read_only(dev.as_fd(), on));
        lock(false).doing("open", b"/dev")?;
        let point = make_point(&dev, path);
        lock(true).doing("close", b"/dev")?;
        let mount = self.mount(slot)?;
        let raised = rights.raise(MOUNT);
        raised
            .and_then(|_raised| sys::set_mount(mount.root.as_fd(), kernel_attributes(attr::NOSUID | attr::NOEXEC)))
            .doing("set attributes of the mount for /dev/", path)?;
        move_onto(mount.root.as_fd(), point.doing("make /dev/", path)?.as_fd(), rights)
            .doing("mount onto /dev/", path)?;
        mount.attached = true;
        self.dev = Some(dev);
        Ok(())
    }

    pub fn symlink(&mut self, place: &Place, target: &[u8]) -> Outcome<()> {
        let (directory, name) = self.make_parent(place)?;
        symlinkat(target, directory, name).doing("make the link", &self.path_of(place))
    }

    /// The directory that a place is in, made if it is missing, and the place's name there.
    fn make_parent<'a>(&mut self, place: &Place<'a>) -> Outcome<(OwnedFd, &'a [u8])> {
        let cut = place.path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = cut.map_or((&[][..], place.path), |cut| (&place.path[..cut], &place.path[cut + 1..]));
        Ok((self.make_directory(place.base, parent, 0o755)?, name))
    }

    /// From here on base root starts at this slot's mount.
    pub fn new_root(&mut self, slot: Slot, attrs: u32) -> Outcome<()> {
        let rights = self.prepared.rights;
        let top = open_path(CWD, b"/").doing("open", b"/")?;
        let mount = self.mount(slot)?;
        let raised = rights.raise(MOUNT);
        raised
            .and_then(|_raised| sys::set_mount(mount.root.as_fd(), kernel_attributes(attrs)))
            .doing("set attributes of the new root", b"")?;
        // Nobody sees it on top of the root directory: a path from the root starts below what is mounted there.
        move_onto(mount.root.as_fd(), top.as_fd(), rights).doing("attach the new root", b"")?;
        mount.attached = true;
        let root = rustix::io::fcntl_dupfd_cloexec(&mount.root, 3).doing("keep the new root", b"")?;
        self.root = Some(root);
        Ok(())
    }

    pub fn pivot_root(&mut self, read_only: bool) -> Outcome<()> {
        self.remove_layers()?;
        let plan = self.prepared.plan;
        for step in &plan.steps {
            if let Step::Fuse { slot, .. } = *step {
                // Answers when the program is up: what it loads must not be looked for in the new root.
                let _ = fstatvfs(&self.mount(slot)?.root);
            }
        }
        let Some(root) = self.root.take() else { return Err(Failure::new("there is no new root")) };
        let old = open_path(CWD, b"/").doing("open", b"/")?;
        let go = || -> Result<(), Errno> {
            let _raised = self.prepared.rights.raise(MOUNT)?;
            if read_only {
                sys::add_attributes(root.as_fd(), kernel_attributes(attr::READ_ONLY), false)?;
            }
            // With both in one place the old root lies on the new one: pivot_root(2).
            fchdir(&root)?;
            pivot_root(".", ".")?;
            fchdir(&old)?;
            unmount(".", UnmountFlags::DETACH)?;
            chdir("/")
        };
        go().doing("change to the new root", b"")
    }
}

/// A file to mount on, in directories that are made for it; through no link.
fn make_point(dev: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(cut) => (&path[..cut], &path[cut + 1..]),
        None => (&[][..], path),
    };
    let mut fd = rustix::io::fcntl_dupfd_cloexec(dev, 3)?;
    for part in parent.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        match mkdirat(&fd, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => fd = open_path(&fd, part)?,
            Err(error) => return Err(error),
        }
    }
    match openat(&fd, name, NEW, Mode::RUSR) {
        Err(Errno::EXIST) => {}
        other => drop(other?),
    }
    openat(&fd, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
