//! Places: directories inside the run's mount namespace, resolved when their step runs.

use super::Child;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::{NO_LINKS, open_path, same_inode};
use crate::plan::{Base, Place};
use crate::prelude::*;
use crate::sources::same_directory;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

pub const PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(NO_LINKS);
/// RESOLVE_BENEATH and RESOLVE_IN_ROOT answer EAGAIN when a rename ran beside them: openat2(2), "try again".
const ATTEMPTS: u32 = 100;

/// openat2(2) that does not give up for a rename elsewhere.
pub fn resolve(dir: BorrowedFd, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    for _ in 0..ATTEMPTS {
        match openat2(dir, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

impl Child<'_> {
    /// `procdirs/` in this mount namespace, the same directory as the one that the supervisor has open.
    pub fn open_procdirs(&self) -> Outcome<OwnedFd> {
        let path = [self.prepared.plan.home.path, b"/procdirs"].concat();
        let fd = open_path(CWD, &path).doing("open", &path)?;
        let (now, before) = (fstat(&fd), fstat(&self.prepared.home.procdirs));
        let same = same_inode(&now.doing("look at", &path)?, &before.doing("look at", &path)?);
        if same { Ok(fd) } else { Err(Failure::new(format!("{} was replaced", printable(&path)))) }
    }

    /// The procdir, or what is mounted on it.
    pub fn procdir(&mut self) -> Outcome<BorrowedFd<'_>> {
        if self.procdir.is_none() {
            let procdirs = match self.procdirs.take() {
                Some(fd) => fd,
                None => self.open_procdirs()?,
            };
            let name = self.prepared.name.as_bytes();
            self.procdir = Some(open_path(&procdirs, name).doing("open the procdir", name)?);
            self.procdirs = Some(procdirs);
        }
        match &self.procdir {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Failure::new("there is no procdir")),
        }
    }

    /// The absolute path of a place, as the command sees it.
    pub fn path_of(&self, place: &Place) -> Vec<u8> {
        if place.base == Base::Root {
            return place.path.to_vec();
        }
        if let Some(procdir) = &self.procdir_path {
            let separator: &[u8] = if place.path.is_empty() { b"" } else { b"/" };
            return [procdir, separator, place.path].concat();
        }
        let mut path = [self.prepared.plan.home.path, b"/procdirs/", self.prepared.name.as_bytes()].concat();
        if !place.path.is_empty() {
            path.push(b'/');
            path.extend(place.path);
        }
        path
    }

    /// The directory at a place, checked.
    pub fn open_place(&mut self, place: &Place) -> Outcome<OwnedFd> {
        let path = self.path_of(place);
        let fd = match place.base {
            Base::Root => self.open_root(place.path, PATH, ResolveFlags::NO_MAGICLINKS),
            Base::Procdir if place.path.is_empty() => openat(self.procdir()?, ".", PATH, Mode::empty()),
            Base::Procdir => resolve(self.procdir()?, place.path, PATH, BENEATH),
        };
        let fd = fd.doing("open", &path)?;
        if (place.dev, place.ino) != (0, 0) {
            same_directory(&path, place.dev, place.ino, &fstat(&fd).doing("look at", &path)?)?;
        }
        Ok(fd)
    }

    /// Where a tree or a file is mounted. What was not looked at before the run may lie in another tree: its links,
    /// which are its author's, do not say where.
    pub fn open_target(&mut self, place: &Place, is_directory: bool) -> Outcome<OwnedFd> {
        if place.base != Base::Root {
            return self.open_place(place);
        }
        let known = (place.dev, place.ino) != (0, 0);
        let mut flags = PATH;
        flags.set(OFlags::DIRECTORY, is_directory);
        let how = if known { ResolveFlags::NO_MAGICLINKS } else { NO_LINKS };
        let fd = self.open_root(place.path, flags, how).doing("open", place.path)?;
        if known {
            same_directory(place.path, place.dev, place.ino, &fstat(&fd).doing("look at", place.path)?)?;
        }
        Ok(fd)
    }

    /// A directory and its missing parents.
    pub fn mkdir(&mut self, place: &Place, mode: u32) -> Outcome<()> {
        let fd = self.make_directory(place.base, place.path, mode)?;
        if (place.dev, place.ino) != (0, 0) {
            let path = self.path_of(place);
            same_directory(&path, place.dev, place.ino, &fstat(&fd).doing("look at", &path)?)?;
        }
        Ok(())
    }

    /// No link is on the way, but in a new root, where links lead nowhere out of it.
    pub fn make_directory(&mut self, base: Base, wanted: &[u8], mode: u32) -> Outcome<OwnedFd> {
        let path = self.path_of(&Place { base, path: wanted, dev: 0, ino: 0 });
        let how = if base == Base::Root { NO_LINKS } else { BENEATH };
        let is_new = base == Base::Root && self.root.is_some();
        let mut fd = match base {
            Base::Root => self.open_root(b"/", PATH, NO_LINKS).doing("open", b"/")?,
            Base::Procdir => openat(self.procdir()?, ".", PATH, Mode::empty()).doing("open", &path)?,
        };
        let mut reached = Vec::with_capacity(wanted.len() + 1);
        for part in wanted.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            reached.push(b'/');
            reached.extend(part);
            if is_new && let Ok(next) = self.open_root(&reached, PATH, how) {
                fd = next;
                continue;
            }
            match mkdirat(&fd, part, Mode::from_raw_mode(mode & 0o7777)) {
                Ok(()) => self.own(&fd, part).doing("make the directory", &path)?,
                Err(Errno::EXIST) => {}
                // What is there needs no right to be made.
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if resolve(fd.as_fd(), part, PATH, how).is_ok() => {}
                Err(error) => return Err(Failure::os("make the directory", &path, error)),
            }
            fd = resolve(fd.as_fd(), part, PATH, how).doing("make the directory", &path)?;
        }
        Ok(fd)
    }

    /// What was just made belongs to the command.
    fn own(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    pub fn chdir(&mut self, place: &Place) -> Outcome<()> {
        let fd = self.open_place(place)?;
        rustix::process::fchdir(fd).doing("change to the directory", &self.path_of(place))
    }
}
