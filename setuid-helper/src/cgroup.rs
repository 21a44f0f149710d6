//! The cgroup (version 2) of one run: made and filled in before the fork with the caller's rights, with which the child is
//! born in it, read and removed by the supervisor.

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{make_new_dir, open_dir, open_parent, read_all, remove_dir};
use crate::plan::{Plan, Step};
use crate::prelude::*;
use crate::report::Peaks;
use crate::sources::same_directory;
use crate::sys;
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::thread::{Timespec, nanosleep};

/// `CGROUP2_SUPER_MAGIC`
const CGROUP2: u64 = 0x6367_7270;
/// No limit, in a plan.
const UNLIMITED: u64 = u64::MAX;
/// What `cpu_us` is a part of, in microseconds.
const PERIOD: u64 = 100_000;
/// Rounds of waiting for what was killed, 5 ms each.
const ROUNDS: u32 = 400;
/// What fails where the kernel does not let this user put a process into the cgroup.
pub const ENTER: &str = "enter the run's cgroup";
/// How deep a command may have nested cgroups of its own for them to be removed.
const DEPTH: u32 = 64;

/// The run's cgroup, open.
pub struct Cgroup {
    fd: OwnedFd,
    /// Where a process writes "0" that cannot be born in it: only where there is no clone3(2).
    procs: Option<OwnedFd>,
}

/// The directory that the plan's cgroup goes into.
pub fn parent<'p>(plan: &'p Plan<'p>) -> Option<&'p [u8]> {
    plan.steps.iter().find_map(|step| match *step {
        Step::Cgroup { source, .. } => plan.sources.get(source as usize).map(|source| source.path),
        _ => None,
    })
}

impl Cgroup {
    /// The one at `path`, which the record names already, with its limits; None when the plan has none.
    pub fn make(plan: &Plan, path: Option<&[u8]>) -> Outcome<Option<Cgroup>> {
        for step in &plan.steps {
            let (Step::Cgroup { source, memory, swap, pids, cpu_us }, Some(path)) = (*step, path) else { continue };
            let source = plan.sources[source as usize];
            let hint = "another process changes it; leave the limit out, or use --limits best-effort";
            let (parent, name) = open_parent(path).doing("open the cgroup", source.path)?;
            let status = fstat(&parent).doing("look at", source.path)?;
            same_directory(source.path, source.dev, source.ino, &status)?;
            if !is_cgroup(parent.as_fd()) {
                return Err(Failure::new("the directory of a Cgroup step is no cgroup of version 2"));
            }
            let make = || -> Result<Cgroup, Errno> {
                make_new_dir(&parent, name.to_bytes())?;
                let fd = open_dir(&parent, name.to_bytes())?;
                for (file, value) in [("memory.max", memory), ("memory.swap.max", swap), ("pids.max", pids)] {
                    set(&fd, file, value, &value.to_string())?;
                }
                // All of a job or nothing: what is left after its largest process was killed is of no use.
                set(&fd, "memory.oom.group", memory, "1")?;
                set(&fd, "cpu.max", cpu_us, &format!("{cpu_us} {PERIOD}"))?;
                Cgroup::of(fd)
            };
            return make().doing("make a cgroup in", source.path).map(Some).map_err(|failure| failure.hint(hint));
        }
        Ok(None)
    }

    /// The one at `path`, of a run that goes on.
    pub fn open(path: &[u8]) -> Result<Cgroup, Errno> {
        let fd = open_dir(CWD, path)?;
        if is_cgroup(fd.as_fd()) { Cgroup::of(fd) } else { Err(Errno::INVAL) }
    }

    fn of(fd: OwnedFd) -> Result<Cgroup, Errno> {
        let open = |fd| openat(fd, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let procs = if sys::has_clone3() { None } else { Some(open(&fd)?) };
        Ok(Cgroup { fd, procs })
    }

    /// What a child is to be born in (`sys::fork_into`); None where it has to `enter` instead.
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.procs.is_none().then(|| self.fd.as_fd())
    }

    /// By the child, before anything else: it and all its children belong to the cgroup, as they do if it was born there.
    pub fn enter(&self) -> Outcome<()> {
        let Some(procs) = &self.procs else { return Ok(()) };
        rustix::io::write(procs, b"0").doing(ENTER, b"").map(drop)
    }

    /// Kill everything in it (Linux 5.14).
    pub fn kill(&self) {
        let _ = kill(self.fd.as_fd());
    }

    /// What the kernel counted; of what it does not count, nothing.
    pub fn peaks(&self) -> Peaks {
        let number = |file: &str| read(self.fd.as_fd(), file).and_then(|text| text.trim().parse().ok());
        let event = |file: &str, name: &str| {
            let text = read(self.fd.as_fd(), file)?;
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        Peaks {
            memory: number("memory.peak"),
            processes: number("pids.peak"),
            oom_kills: event("memory.events", "oom_kill "),
            forks_refused: event("pids.events", "max "),
        }
    }
}

/// A file of a controller that is not there is fine only where nothing was asked of it, and for swap.
fn set(fd: &OwnedFd, file: &str, value: u64, text: &str) -> Result<(), Errno> {
    if value == UNLIMITED {
        return Ok(());
    }
    match openat(fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) if file == "memory.swap.max" => Ok(()),
        opened => rustix::io::write(opened?, text.as_bytes()).map(drop),
    }
}

fn is_cgroup(fd: BorrowedFd) -> bool {
    fstatfs(fd).is_ok_and(|status| status.f_type as u64 & 0xffff_ffff == CGROUP2)
}

fn read(fd: BorrowedFd, file: &str) -> Option<String> {
    let file = openat(fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    String::from_utf8(read_all(file, 4096).ok()?).ok()
}

fn kill(fd: BorrowedFd) -> Result<(), Errno> {
    let file = openat(fd, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, b"1").map(drop)
}

/// Whether the directory `name` in `parent` is a cgroup; if so it is emptied and removed.
pub fn remove(parent: BorrowedFd, name: &CStr) -> Option<Result<(), Errno>> {
    is_cgroup(parent).then(|| match open_dir(parent, name.to_bytes()) {
        Ok(fd) => end(fd.as_fd()).and_then(|()| remove_dir(parent, name.to_bytes())),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    })
}

fn end(fd: BorrowedFd) -> Result<(), Errno> {
    let is_empty = || read(fd, "cgroup.events").is_some_and(|text| text.lines().any(|line| line == "populated 0"));
    if !is_empty() {
        kill(fd)?;
    }
    for _ in 0..ROUNDS {
        if is_empty() {
            return remove_children(fd, DEPTH);
        }
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 });
    }
    Err(Errno::BUSY)
}

/// Cgroups that the command made in its own.
fn remove_children(fd: BorrowedFd, depth: u32) -> Result<(), Errno> {
    let mut names: Vec<CString> = Vec::new();
    let mut entries = Dir::read_from(fd)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        if entry.file_type() == FileType::Directory && !entry.file_name().to_bytes().starts_with(b".") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        if depth > 0 {
            remove_children(open_dir(fd, name.to_bytes())?.as_fd(), depth - 1)?;
        }
        remove_dir(fd, name.to_bytes())?;
    }
    Ok(())
}
