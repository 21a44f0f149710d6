//! The run that a word names, as its record tells: sandbox/running.py.

use crate::front::stored::{home, is_private};
use crate::fsops::{open_dir, read_all, same_inode};
use crate::json::{self, Value};
use crate::prelude::*;
use crate::procfs;
use crate::record::boot_id;
use crate::sys;
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::Pid;

/// As long as the kernel lets a command line be, and a plan.
const MAX_RECORD: usize = 8 << 20;
const SHORTEST_ID: usize = 3;

/// A live run of this home, and its supervisor.
pub struct Run {
    /// The supervisor.
    pub pid: Pid,
    /// Its `/proc/PID`, open while it was the one that the record means.
    pub supervisor: OwnedFd,
    /// Paths of private directories of the run.
    pub scratch: Vec<Vec<u8>>,
    /// Encoded.
    pub plan: Vec<u8>,
    id: Vec<u8>,
    called: Vec<u8>,
    records: OwnedFd,
    name: String,
    record: OwnedFd,
}

/// The one run of this name, or whose id starts so.
pub fn find(text: &[u8], environment: &[&CStr]) -> Option<Run> {
    let directory = || open_dir(home(environment)?, b"records").ok();
    let text = core::str::from_utf8(text).ok().filter(|text| !text.contains('/'))?;
    if let Some(run) = read(directory()?, text)
        && run.called == text.as_bytes()
    {
        return Some(run);
    }
    if text.len() < SHORTEST_ID {
        return None;
    }
    let mut found = None;
    let mut entries = Dir::read_from(directory()?).ok()?;
    while let Some(entry) = entries.read() {
        let Ok(name) = entry.ok()?.file_name().to_str().map(ToOwned::to_owned) else { continue };
        let Some(run) = read(directory()?, &name).filter(|run| run.id.starts_with(text.as_bytes())) else { continue };
        if found.replace(run).is_some() {
            return None;
        }
    }
    found
}

impl Run {
    /// Tell the supervisor, through the record's length, that others may hold the mounts of the run when it ends.
    pub fn mark_joined(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.records, &self.name, flags, Mode::empty())?;
        if !same_inode(&fstat(&fd)?, &fstat(&self.record)?) {
            return Err(Errno::NOENT);
        }
        rustix::io::write(&fd, b"\n").map(drop)
    }
}

/// The live run with the record of this name.
fn read(records: OwnedFd, name: &str) -> Option<Run> {
    if name.starts_with('.') {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let record = openat(&records, name, flags, Mode::empty()).ok()?;
    let status = fstat(&record).ok()?;
    let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    if !is_file || !is_private(&status) || !is_locked(&record) {
        return None;
    }
    let text = read_all(&record, MAX_RECORD).ok()?;
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let members = json::parse(&text[..end])?;
    let number = |wanted: &str| match members.iter().find(|(name, _)| name == wanted.as_bytes()) {
        Some((_, Value::Number(number))) => Some(*number),
        _ => None,
    };
    let is_here = number("pid_namespace") == sys::pid_namespace().ok();
    let pid = i32::try_from(number("pid")?).ok().and_then(Pid::from_raw).filter(|_| is_here)?;
    let supervisor = procfs::open(pid).ok()?;
    // Who got the number later is younger than the record.
    let start = procfs::number(&procfs::read(&supervisor, "stat").ok()?, 22)?;
    let made = number("start_time").filter(|made| start <= *made);
    let length = usize::try_from(number("plan")?).ok().filter(|_| made.is_some())?;
    let plan = text.get(end + 1..)?.get(..length)?.to_vec();
    let mut run = Run {
        pid,
        supervisor,
        scratch: Vec::new(),
        plan,
        id: Vec::new(),
        called: Vec::new(),
        records,
        name: name.to_owned(),
        record,
    };
    for (name, value) in members {
        match (name.as_slice(), value) {
            (b"id", Value::Text(text)) => run.id = text,
            (b"name", Value::Text(text)) => run.called = text,
            (b"scratch", Value::List(list)) => run.scratch = list,
            (b"boot_id", Value::Text(text)) if !boot_id().is_ok_and(|boot| boot.as_bytes() == text) => return None,
            _ => {}
        }
    }
    (!run.id.is_empty()).then_some(run)
}

/// Whether somebody lives in this record. A shared lock is let go at once, and disturbs no one who is alive.
fn is_locked(record: &OwnedFd) -> bool {
    match flock(record, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = flock(record, FlockOperation::Unlock);
            false
        }
        Err(error) => error == Errno::WOULDBLOCK,
    }
}
