//! The record and procdir of one run. The lock on the record is what says that the run lives.

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{proc_fd, remove_dir, write_all};
use crate::home::Home;
use crate::json::{quote, quote_list};
use crate::plan::{LAST_VERSION, Plan, Step, encode};
use crate::prelude::*;
use crate::sys;
use crate::{scratch, stale};
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, ftruncate, linkat, mkdirat,
    openat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Names that are tried: `<pid>`, `<pid>.1` and so on.
const NAMES: u32 = 10_000;
/// What the kernel counts the start of processes in: proc_pid_stat(5), time(7).
const MILLISECONDS_PER_TICK: u128 = 10;
/// Empty directories in the home that are the next runs' procdirs: to move one costs a tenth of making and removing one
/// where directories have blocks of their own on a disk.
const SPARE: [&str; 4] = ["spare-0", "spare-1", "spare-2", "spare-3"];
/// Empty files that are the next runs' records. Without a journal ext4 gives out no inode that was freed in the last
/// minute: whoever frees one with every launch has each launch search all that the others freed.
const SPARE_RECORD: [&str; 4] = ["spare-record-0", "spare-record-1", "spare-record-2", "spare-record-3"];

/// This run on the host. Dropping it takes everything away again.
pub struct Record<'h> {
    home: &'h Home,
    /// 32 hexadecimal digits.
    pub id: String,
    /// In both `records/` and `procdirs/`.
    pub name: String,
    /// Paths of private scratch directories, which may not all exist yet.
    pub scratch: Vec<Vec<u8>>,
    /// Open, and locked, as long as the run lives.
    lock: OwnedFd,
    /// How long it was when it was made, in bytes: who joins the run appends to it.
    size: usize,
}

impl<'h> Record<'h> {
    /// A locked record and an empty procdir.
    pub fn new(home: &'h Home, plan: &Plan, command: &[&CStr]) -> Outcome<Record<'h>> {
        let id = random_id()?;
        let scratch = scratch::paths(plan, &id);
        let encoded = encode(plan, LAST_VERSION);
        let mut text = describe(plan, command, &id, &scratch, encoded.len())?.into_bytes();
        text.extend(encoded);
        let draft = Draft::new(home).map_err(|error| unwritable("make a run record in", plan.home.path, error))?;
        write_all(&draft.fd, &text)
            .map_err(|error| undo(&draft, unwritable("write a run record in", plan.home.path, error)))?;
        let called = plan.steps.iter().find_map(|step| if let Step::Name { name } = *step { Some(name) } else { None });
        let (name, lock) = match called {
            Some(name) => claim_called(home, draft, plan.home.path, name)?,
            None => claim(home, draft, plan.home.path)?,
        };
        Ok(Record { home, id, name, scratch, lock, size: text.len() })
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if fstat(&self.lock).is_ok_and(|status| status.st_size as usize != self.size) {
            // Somebody joined: what holds the mounts beside what the run started.
            let _ = stale::end_orphans(&self.id);
        }
        for path in &self.scratch {
            let _ = scratch::remove(path, &self.id);
        }
        // The record last: what is left behind must stay findable.
        put_procdir(self.home, &self.name);
        put_record(self.home, &self.name, &self.lock);
    }
}

/// A record that nobody can see yet, empty and locked.
struct Draft<'h> {
    home: &'h Home,
    fd: OwnedFd,
    /// Where `O_TMPFILE` is missing.
    temporary: Option<String>,
    /// The name that it has now, if it has one.
    name: Option<String>,
}

impl<'h> Draft<'h> {
    fn new(home: &'h Home) -> Result<Draft<'h>, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        if let Some(draft) = Draft::of_spare(home) {
            return Ok(draft);
        }
        let draft = match openat(&home.records, ".", flags | OFlags::TMPFILE, mode) {
            Ok(fd) => Ok(Draft { home, fd, temporary: None, name: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let name = format!(".{}.{}", rustix::process::getpid(), random_id().map_err(|_| Errno::IO)?);
                let fd = openat(&home.records, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
                Ok(Draft { home, fd, temporary: Some(name), name: None })
            }
            Err(error) => Err(error),
        }?;
        flock(&draft.fd, FlockOperation::LockExclusive)?;
        Ok(draft)
    }

    /// One that a run has left. A name of its own makes it this run's alone; whoever should still look at it for the
    /// last one has the lock, or sees that it is not empty.
    fn of_spare(home: &'h Home) -> Option<Draft<'h>> {
        let records = home.records.as_fd();
        let name = format!(".{}.{}", rustix::process::getpid(), random_id().ok()?);
        let take = |spare: &str| renameat_with(&home.fd, spare, records, &name, RenameFlags::NOREPLACE).is_ok();
        SPARE_RECORD.iter().any(|spare| take(spare)).then_some(())?;
        let fd = open_spare(home, &name);
        if fd.is_none() {
            let _ = unlinkat(records, &name, AtFlags::empty());
        }
        Some(Draft { home, fd: fd?, temporary: Some(name), name: None })
    }

    /// Give it a name, in place of the one that it may have. EEXIST: somebody has it.
    fn rename(&mut self, name: &str) -> Result<(), Errno> {
        let records = self.home.records.as_fd();
        if let Some(old) = self.name.as_ref().or(self.temporary.as_ref()) {
            renameat_with(records, old, records, name, RenameFlags::NOREPLACE)?;
            self.temporary = None;
        } else {
            // By descriptor since Linux 6.10; what was looked up in /proc costs at the end of the process, too.
            linkat(&self.fd, "", records, name, AtFlags::EMPTY_PATH)
                .or_else(|_| linkat(CWD, proc_fd(&self.fd), records, name, AtFlags::SYMLINK_FOLLOW))?;
        }
        self.name = Some(name.to_owned());
        Ok(())
    }
}

/// The home is full, or read-only.
fn unwritable(doing: &str, path: &[u8], error: Errno) -> Failure {
    Failure::os(doing, path, error)
        .hint("free some space there, or set SANDBOX_HOME to a directory that can be written to")
}

/// A name that neither a record nor a procdir has. The procdir is made after the record.
fn claim(home: &Home, mut draft: Draft, path: &[u8]) -> Outcome<(String, OwnedFd)> {
    let pid = rustix::process::getpid();
    for number in 0..NAMES {
        let name = if number == 0 { pid.to_string() } else { format!("{pid}.{number}") };
        match draft.rename(&name) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(undo(&draft, unwritable("make a run record in", path, error))),
        }
        match take_procdir(home, &name) {
            Ok(()) => return Ok((name, draft.fd)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(undo(&draft, unwritable("make a procdir in", path, error))),
        }
    }
    Err(undo(&draft, Failure::new("no name is free for the run").hint("remove what is left in procdirs/ and records/")))
}

/// The name that the user chose, if no running sandbox has it.
fn claim_called(home: &Home, mut draft: Draft, path: &[u8], name: &[u8]) -> Outcome<(String, OwnedFd)> {
    let name = String::from_utf8_lossy(name).into_owned();
    match draft.rename(&name) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let failure = Failure::new(format!("--name: a sandbox called {name} is running"));
            return Err(undo(&draft, failure.hint("another name, or sandbox kill")));
        }
        Err(error) => return Err(undo(&draft, unwritable("make a run record in", path, error))),
    }
    // Without a record, a procdir of that name is nobody's.
    let _ = remove_dir(&home.procdirs, name.as_bytes());
    match take_procdir(home, &name) {
        Ok(()) => Ok((name, draft.fd)),
        Err(error) => Err(undo(&draft, unwritable("make a procdir in", path, error))),
    }
}

/// An empty directory of this name, which nothing had.
fn take_procdir(home: &Home, name: &str) -> Result<(), Errno> {
    for spare in SPARE {
        // With the slash it is a directory or nothing.
        match renameat_with(&home.fd, format!("{spare}/"), &home.procdirs, name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(Errno::EXIST),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
    mkdirat(&home.procdirs, name, Mode::RWXU)
}

/// Whoever should still have something mounted on it keeps that, which removing would detach.
fn put_procdir(home: &Home, name: &str) {
    let put = |spare: &&str| renameat_with(&home.procdirs, name, &home.fd, *spare, RenameFlags::NOREPLACE).is_ok();
    if !SPARE.iter().any(put) {
        let _ = remove_dir(&home.procdirs, name.as_bytes());
    }
}

/// Locked, if it is a file of the user's alone that nobody holds.
fn open_spare(home: &Home, name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(&home.records, name, flags, Mode::empty()).ok()?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
    let status = fstat(&fd).ok()?;
    let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    let is_own = status.st_uid == rustix::process::getuid().as_raw() && status.st_mode & 0o7777 == 0o600;
    (is_file && is_own && status.st_nlink == 1 && status.st_size == 0).then_some(fd)
}

/// What it said is nobody's business any more.
fn put_record(home: &Home, name: &str, lock: &OwnedFd) {
    let put = |spare: &&str| renameat_with(&home.records, name, &home.fd, *spare, RenameFlags::NOREPLACE).is_ok();
    if SPARE_RECORD.iter().any(put) {
        let _ = ftruncate(lock, 0);
    } else {
        let _ = unlinkat(&home.records, name, AtFlags::empty());
    }
}

fn undo(draft: &Draft, failure: Failure) -> Failure {
    if let Some(name) = draft.name.as_ref().or(draft.temporary.as_ref()) {
        let _ = unlinkat(&draft.home.records, name, AtFlags::empty());
    }
    failure
}

fn random_id() -> Outcome<String> {
    let mut raw = [0u8; 16];
    getrandom(&mut raw, GetRandomFlags::empty()).doing("get random bytes", b"")?;
    let mut id = String::with_capacity(32);
    for byte in raw {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// The record's text, one line of JSON.
fn describe(plan: &Plan, command: &[&CStr], id: &str, scratch: &[Vec<u8>], encoded: usize) -> Outcome<String> {
    let namespace = sys::pid_namespace().doing("look at the pid namespace", b"")?;
    let (pid, start_time) = (rustix::process::getpid(), sys::since_boot().as_millis() / MILLISECONDS_PER_TICK);
    let mut text = format!("{{\"id\": \"{id}\", \"host\": ");
    quote(&mut text, rustix::system::uname().nodename().to_bytes());
    let _ = write!(text, ", \"boot_id\": \"{}\", \"pid_namespace\": {namespace}", boot_id()?);
    let _ = write!(text, ", \"pid\": {pid}, \"start_time\": {start_time}, \"command\": ");
    let run = plan.steps.iter().find_map(|step| if let Step::Run { path, .. } = *step { Some(path) } else { None });
    quote_list(&mut text, run.into_iter().chain(command.iter().map(|word| word.to_bytes())));
    let _ = write!(text, ", \"mode\": \"{}\", \"scratch\": ", plan.mode.name());
    quote_list(&mut text, scratch.iter().map(Vec::as_slice));
    for step in &plan.steps {
        match *step {
            Step::Name { name } => {
                text.push_str(", \"name\": ");
                quote(&mut text, name);
            }
            Step::Label { level, images } => {
                text.push_str(", \"level\": ");
                quote(&mut text, level);
                text.push_str(", \"images\": ");
                quote_list(&mut text, images.iter());
            }
            _ => {}
        }
    }
    let _ = writeln!(text, ", \"engine\": \"native\", \"plan\": {encoded}}}");
    Ok(text)
}

/// Random per boot (random(4)).
pub fn boot_id() -> Outcome<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = read_start(path, 64)?;
    Ok(text.trim_ascii().iter().map(|byte| *byte as char).collect())
}

fn read_start(path: &str, limit: usize) -> Outcome<Vec<u8>> {
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing("open", path.as_bytes())?;
    let mut text = vec![0; limit];
    let length = rustix::io::read(&fd, text.as_mut_slice()).doing("read", path.as_bytes())?;
    text.truncate(length);
    Ok(text)
}
