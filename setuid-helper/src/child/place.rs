//! Places: directories inside the run's mount namespace, resolved when their step runs.

use super::Child;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::{open_path, same_inode};
use crate::plan::{Base, Place};
use crate::prelude::*;
use crate::sources::same_directory;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

const PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
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
            Base::Root => resolve(CWD, place.path, PATH, ResolveFlags::NO_MAGICLINKS),
            Base::Procdir if place.path.is_empty() => openat(self.procdir()?, ".", PATH, Mode::empty()),
            Base::Procdir => resolve(self.procdir()?, place.path, PATH, BENEATH),
        };
        let fd = fd.doing("open", &path)?;
        if (place.dev, place.ino) != (0, 0) {
            same_directory(&path, place.dev, place.ino, &fstat(&fd).doing("look at", &path)?)?;
        }
        Ok(fd)
    }

    /// Where a tree is mounted. What was not looked at before the run may lie in another tree: its links, which are
    /// its author's, do not say where.
    pub fn open_target(&mut self, place: &Place) -> Outcome<OwnedFd> {
        if place.base == Base::Root && (place.dev, place.ino) == (0, 0) {
            return resolve(CWD, place.path, PATH, NO_LINKS).doing("open", place.path);
        }
        self.open_place(place)
    }

    /// A directory and its missing parents; no link on the way.
    pub fn mkdir(&mut self, place: &Place, mode: u32) -> Outcome<()> {
        let path = self.path_of(place);
        let how = if place.base == Base::Root { NO_LINKS } else { BENEATH };
        let mut fd = match place.base {
            Base::Root => openat(CWD, "/", PATH, Mode::empty()).doing("open", b"/")?,
            Base::Procdir => openat(self.procdir()?, ".", PATH, Mode::empty()).doing("open", &path)?,
        };
        for part in place.path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            match mkdirat(&fd, part, Mode::from_raw_mode(mode & 0o7777)) {
                Ok(()) => self.own(&fd, part).doing("make the directory", &path)?,
                Err(Errno::EXIST) => {}
                // What is there needs no right to be made.
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if resolve(fd.as_fd(), part, PATH, how).is_ok() => {}
                Err(error) => return Err(Failure::os("make the directory", &path, error)),
            }
            fd = resolve(fd.as_fd(), part, PATH, how).doing("make the directory", &path)?;
        }
        if (place.dev, place.ino) != (0, 0) {
            same_directory(&path, place.dev, place.ino, &fstat(&fd).doing("look at", &path)?)?;
        }
        Ok(())
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
