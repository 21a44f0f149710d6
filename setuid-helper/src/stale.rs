//! What the dead left behind. Only who holds the lock of a record may clean up after its run.

use crate::copies;
use crate::fsops::{read_all, remove_dir, same_inode};
use crate::home::Home;
use crate::json::{self, Value};
use crate::prelude::*;
use crate::record::boot_id;
use crate::scratch;
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{Timespec, nanosleep};

/// A record is bounded by the kernel's limit of a command line.
const MAX_RECORD: usize = 8 << 20;
/// Records that every launch looks at, and one launch of how many looks at all.
const SAMPLE: usize = 8;
const EVERY: u8 = 64;
/// Rounds of killing and waiting, 10 ms each, before a process that will not die is left alone.
const ROUNDS: u32 = 300;

/// Look at the records but `own`: each live run costs a failed lock, so where many run only at some of them, and at
/// all once one of these was dead, or every so often.
pub fn clean(home: &Home, own: &str) {
    let mut dice = [0u8; 1];
    let _ = getrandom(&mut dice, GetRandomFlags::empty());
    let found = look_at(home, own, if dice[0] % EVERY == 0 { usize::MAX } else { SAMPLE });
    if found > 0 {
        look_at(home, own, usize::MAX);
    }
}

/// How many runs of these were dead. What cannot be cleaned stays for the next launch; this one does not depend on it.
fn look_at(home: &Home, own: &str, most: usize) -> usize {
    let Ok(mut entries) = Dir::read_from(&home.records) else { return 0 };
    let (mut found, mut left) = (0, most);
    while let (1.., Some(Ok(entry))) = (left, entries.read()) {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(b".") && name.to_bytes() != own.as_bytes() {
            left -= 1;
            found += usize::from(clean_one(home, name) == Ok(true));
        }
    }
    found
}

/// Whether the run was dead, and nothing of it is left.
fn clean_one(home: &Home, name: &CStr) -> Result<bool, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(&home.records, name, flags, Mode::empty())?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    // Whoever was faster may have removed it, and a new run may have taken the name.
    if !same_inode(&fstat(&fd)?, &statat(&home.records, name, AtFlags::SYMLINK_NOFOLLOW)?) {
        return Ok(false);
    }
    let Some(run) = read_record(&fd)? else { return Ok(false) };
    let this_boot = boot_id().is_ok_and(|boot| boot.as_bytes() == run.boot_id);
    let this_host = rustix::system::uname().nodename().to_bytes() == run.host;
    if !this_boot && (!this_host || home.is_shared()) {
        return Ok(false);
    }
    if this_boot {
        end_orphans(&run.id)?;
    }
    for path in &run.scratch {
        scratch::remove(path, &run.id)?;
    }
    copies::remove(&run.copy)?;
    match remove_dir(&home.procdirs, name.to_bytes()) {
        Ok(()) | Err(Errno::NOENT) => unlinkat(&home.records, name, AtFlags::empty()).map(|()| true),
        Err(error) => Err(error),
    }
}

/// What cleaning needs to know of a run.
struct Run {
    id: String,
    host: Vec<u8>,
    boot_id: Vec<u8>,
    scratch: Vec<Vec<u8>>,
    copy: Vec<Vec<u8>>,
}

fn read_record(fd: &OwnedFd) -> Result<Option<Run>, Errno> {
    let text = read_all(fd, MAX_RECORD)?;
    // An encoded plan follows the line.
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(members) = json::parse(line) else { return Ok(None) };
    let mut run =
        Run { id: String::new(), host: Vec::new(), boot_id: Vec::new(), scratch: Vec::new(), copy: Vec::new() };
    for (name, value) in members {
        match (name.as_slice(), value) {
            (b"id", Value::Text(text)) => run.id = String::from_utf8(text).unwrap_or_default(),
            (b"host", Value::Text(text)) => run.host = text,
            (b"boot_id", Value::Text(text)) => run.boot_id = text,
            (b"scratch", Value::List(list)) => run.scratch = list,
            (b"copy", Value::List(list)) => run.copy = list,
            _ => {}
        }
    }
    let is_id = run.id.len() == 32 && run.id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(is_id.then_some(run))
}

/// Kill what still lives in the namespaces of a dead run, and wait until it is gone.
pub fn end_orphans(id: &str) -> Result<(), Errno> {
    for _ in 0..ROUNDS {
        let orphans = members(id)?;
        if orphans.is_empty() {
            return Ok(());
        }
        for orphan in &orphans {
            let _ = pidfd_send_signal(orphan, Signal::KILL);
        }
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 });
    }
    Err(Errno::BUSY)
}

/// The processes that live in the namespaces of a run, but for those of this namespace: descriptors, so that a
/// number that is used again stands for nobody else.
pub fn members(id: &str) -> Result<Vec<OwnedFd>, Errno> {
    // Every tmpfs of a run is named after it; a scratch directory shows as the root of its mount.
    let markers = [format!(" sandbox:{id} "), format!("/sandbox-{id}/")];
    let proc = openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let own_namespace = rustix::fs::stat("/proc/self/ns/mnt")?.st_ino;
    let mut found = Vec::new();
    let mut entries = Dir::read_from(&proc)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let pid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // Who ends meanwhile, or is not ours to look at, is no member.
        found.extend(pid.and_then(|pid| member(&proc, pid, &markers, own_namespace).ok().flatten()));
    }
    Ok(found)
}

fn member(proc: &OwnedFd, pid: Pid, markers: &[String], own_namespace: u64) -> Result<Option<OwnedFd>, Errno> {
    let number = pid.as_raw_nonzero();
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    if statat(proc, format!("{number}/ns/mnt"), AtFlags::empty())?.st_ino == own_namespace {
        return Ok(None);
    }
    let mounts = openat(proc, format!("{number}/mountinfo"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let text = read_all(&mounts, MAX_RECORD)?;
    let found = markers.iter().any(|marker| text.windows(marker.len()).any(|window| window == marker.as_bytes()));
    Ok(found.then_some(process))
}
