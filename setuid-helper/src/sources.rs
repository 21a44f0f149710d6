//! Data sources: opened with the user's rights before the fork, or handed over, and compared with the plan.

use crate::attendance::Attendance;
use crate::cli::descriptor;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::plan::{Plan, Slot, Source, SourceKind, Step};
use crate::prelude::*;
use crate::sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fcntl_getfl, fstat, openat};

/// Descriptor numbers that were handed over.
#[derive(Default)]
pub struct Handed {
    /// By number of the source.
    files: Vec<(u32, i32)>,
    /// By slot of the tree: where it is handed out.
    trees: Vec<(Slot, i32)>,
    attendant: Option<i32>,
    parent: Option<i32>,
}

impl Handed {
    /// `attend=FD`, the number of the socket to who attends the run.
    pub fn add_attendant(&mut self, number: &[u8]) -> Outcome<()> {
        match self.attendant.replace(descriptor(number)?) {
            None => Ok(()),
            Some(_) => Err(Failure::new("a run has one attendant")),
        }
    }

    /// `parent=FD`, the number of a pidfd of this program's parent.
    pub fn add_parent(&mut self, number: &[u8]) -> Outcome<()> {
        match self.parent.replace(descriptor(number)?) {
            None => Ok(()),
            Some(_) => Err(Failure::new("a process has one parent")),
        }
    }

    /// That pidfd, where the run is to end with its parent.
    pub fn parent(&self) -> Outcome<Option<OwnedFd>> {
        self.parent.map(adopt).transpose()
    }

    /// That socket.
    pub fn attendance(&self) -> Outcome<Option<Attendance>> {
        self.attendant.map(|number| Ok(Attendance::new(adopt(number)?))).transpose()
    }

    /// Parse `INDEX=FD` or `tree=SLOT,FD`.
    pub fn add(&mut self, pair: &[u8]) -> Outcome<()> {
        if let Some(numbers) = pair.strip_prefix(b"tree=") {
            let mut parts = numbers.splitn(2, |byte| *byte == b',').map(descriptor);
            let (Some(slot), Some(number)) = (parts.next(), parts.next()) else {
                return Err(Failure::new("a tree needs a slot and a descriptor"));
            };
            self.trees.push((slot?.unsigned_abs(), number?));
            return Ok(());
        }
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let index = descriptor(parts.next().unwrap_or_default())?.unsigned_abs();
        let number = descriptor(parts.next().unwrap_or_default())?;
        if self.files.iter().any(|(other, _)| *other == index) {
            return Err(Failure::new(format!("source {index} is handed over twice")));
        }
        self.files.push((index, number));
        Ok(())
    }

    /// All descriptor numbers.
    pub fn numbers(&self) -> impl Iterator<Item = i32> {
        self.files.iter().chain(&self.trees).map(|(_, number)| *number).chain(self.attendant).chain(self.parent)
    }

    fn adopt(self, plan: &Plan) -> Outcome<Adopted> {
        let mut fds: Vec<Option<OwnedFd>> = plan.sources.iter().map(|_| None).collect();
        for (index, number) in self.files {
            let fd = adopt(number)?;
            match (fds.get_mut(index as usize), plan.sources.get(index as usize)) {
                (Some(entry), Some(source)) => {
                    readable(fd.as_fd(), source.kind, index)?;
                    *entry = Some(fd);
                }
                _ => return Err(Failure::new(format!("source {index} is handed over and is not in the plan"))),
            }
        }
        let trees = self.trees.into_iter().map(|(slot, number)| Ok((shown(slot, plan)?, adopt(number)?)));
        Ok((fds, trees.collect::<Outcome<_>>()?))
    }
}

type Adopted = (Vec<Option<OwnedFd>>, Vec<(Slot, OwnedFd)>);

fn adopt(number: i32) -> Outcome<OwnedFd> {
    sys::adopt(number).doing("use descriptor", number.to_string().as_bytes())
}

/// What was opened without the right to read it, as anybody can open the name of a file, says nothing about who may: a
/// mount of it, which a loop device may have already, would show it. What is in memory, or a socket, is known by
/// nothing but its descriptor, and of a directory nothing is used but its lock.
fn readable(fd: BorrowedFd, kind: SourceKind, index: u32) -> Outcome<()> {
    let flags = fcntl_getfl(fd).doing("look at source", index.to_string().as_bytes())?;
    let reads = !flags.contains(OFlags::PATH) && matches!(flags & OFlags::RWMODE, OFlags::RDONLY | OFlags::RDWR);
    if reads || kind != SourceKind::File {
        return Ok(());
    }
    Err(Failure::new(format!("source {index} is handed over without the right to read it")))
}

/// The slot, if the command sees what is in it. Of the layers of an overlay its user has no descriptor: what he did to
/// them would be done with the overlay's rights.
fn shown(slot: Slot, plan: &Plan) -> Outcome<Slot> {
    let attaches = |step: &Step| matches!(*step, Step::Attach { slot: attached, .. } if attached == slot);
    if plan.steps.iter().any(attaches) {
        return Ok(slot);
    }
    Err(Failure::new(format!("slot {slot} is attached nowhere, and cannot be handed out")))
}

/// Who can have the same file, and so share a loop device with this run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It lies on a disk.
    Everybody,
    /// An image of the user's store: his other runs.
    User,
    /// It is in memory.
    Run,
}

/// The open files, by index. A directory is opened where it is used; one that was handed over is only held, for the
/// lock that its descriptor carries.
pub struct Sources {
    files: Vec<Option<OwnedFd>>,
    whose: Vec<Whose>,
    /// Sockets that trees are handed out through, by slot.
    trees: Vec<(Slot, OwnedFd)>,
}

impl Sources {
    /// Open or take over every file.
    pub fn open(plan: &Plan, handed: Handed) -> Outcome<Sources> {
        let (mut fds, trees) = handed.adopt(plan)?;
        for (source, entry) in plan.sources.iter().zip(&mut fds) {
            match source.kind {
                SourceKind::Directory => {}
                SourceKind::Memory if entry.is_none() => {
                    return Err(Failure::new("a memory source of the plan was not handed over"));
                }
                SourceKind::Memory => {}
                SourceKind::File => {
                    let fd = match entry.take() {
                        Some(fd) => fd,
                        None => open_file(source.path)?,
                    };
                    same_file(source, fd.as_fd())?;
                    *entry = Some(fd);
                }
            }
        }
        let whose = |source: &Source| if source.kind == SourceKind::Memory { Whose::Run } else { Whose::Everybody };
        Ok(Sources { files: fds, whose: plan.sources.iter().map(whose).collect(), trees })
    }

    /// The open file of a source.
    pub fn file(&self, index: u32) -> Outcome<BorrowedFd<'_>> {
        let fd = self.files.get(index as usize).and_then(Option::as_ref);
        fd.map(AsFd::as_fd).ok_or_else(|| Failure::new(format!("source {index} is a directory, a file is needed")))
    }

    /// Where trees are handed out, by slot.
    pub fn trees(&self) -> &[(Slot, OwnedFd)] {
        &self.trees
    }

    /// What is held until the end of the run: a tree of the cache goes when nobody has a lock on it. What an image is
    /// in, its loop device or its server holds.
    pub fn into_directories(self, plan: &Plan) -> Vec<OwnedFd> {
        let is_directory = |source: &Source| source.kind == SourceKind::Directory;
        self.files
            .into_iter()
            .zip(plan.sources.iter())
            .filter(|(_, source)| is_directory(source))
            .filter_map(|(fd, _)| fd)
            .collect()
    }

    /// Who can have the same file.
    pub fn whose(&self, index: u32) -> Whose {
        self.whose.get(index as usize).copied().unwrap_or(Whose::Run)
    }

    /// Use another file instead.
    pub fn replace(&mut self, index: u32, file: OwnedFd, whose: Whose) {
        if let (Some(entry), Some(old)) = (self.files.get_mut(index as usize), self.whose.get_mut(index as usize)) {
            (*entry, *old) = (Some(file), whose);
        }
    }
}

fn open_file(path: &[u8]) -> Outcome<OwnedFd> {
    // NONBLOCK: somebody may have put a FIFO there, and opening one would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(CWD, path, flags, Mode::empty()).doing("open", path)
}

fn same_file(source: &Source, fd: BorrowedFd) -> Outcome<()> {
    let now = fstat(fd).doing("look at", source.path)?;
    let times = (nanoseconds(now.st_mtime, now.st_mtime_nsec), nanoseconds(now.st_ctime, now.st_ctime_nsec));
    let same = (now.st_dev, now.st_ino) == (source.dev, source.ino)
        && now.st_size.try_into() == Ok(source.size)
        && times == (source.mtime_ns, source.ctime_ns);
    if same && FileType::from_raw_mode(now.st_mode) == FileType::RegularFile {
        return Ok(());
    }
    Err(changed(source.path))
}

/// Whether a directory is the one that the plan means.
pub fn same_directory(path: &[u8], dev: u64, ino: u64, now: &Stat) -> Outcome<()> {
    if (now.st_dev, now.st_ino) == (dev, ino) { Ok(()) } else { Err(changed(path)) }
}

fn changed(path: &[u8]) -> Failure {
    let message = format!("{} is not what it was when the plan was made", printable(path));
    Failure::new(message).hint("launch again; if it stays, somebody is changing it")
}

/// A time of a file, as plans have it.
pub fn nanoseconds(seconds: i64, nanoseconds: impl TryInto<u64>) -> u64 {
    // Times before 1970 are stored as 0.
    let part: u64 = nanoseconds.try_into().unwrap_or(0);
    u64::try_from(seconds).map_or(0, |seconds| seconds.saturating_mul(1_000_000_000).saturating_add(part))
}
