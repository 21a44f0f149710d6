//! What the command left behind: asked to end, then killed, and reaped until nothing is left.

use super::wait::count;
use crate::prelude::*;
use crate::procfs;
use crate::report::Usage;
use crate::sys::{self, Mask};
use core::time::Duration;
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

const GRACE: Duration = Duration::from_millis(500);
/// How often what is left is looked at again: it may have started something new.
pub const LOOK: Duration = Duration::from_millis(50);
/// How often at most before the killing: each time fewer are left that can start something.
const SCANS: usize = 100;

/// End every process below this one, which is a child subreaper. Costs one system call when there is none.
pub fn end(usage: &mut Usage) {
    let children = Mask::of(&[libc::SIGCHLD]);
    let deadline = sys::now() + GRACE;
    let mut asked = Vec::new();
    while any_left(usage) {
        let left = deadline.saturating_sub(sys::now());
        if !left.is_zero() {
            ask_all(&mut asked);
        } else if !kill_all() {
            return;
        }
        sys::wait(children, Some(if left.is_zero() { LOOK } else { LOOK.min(left) }));
    }
}

/// Ask everything below this process to end, but for what was asked already.
pub fn ask_all(asked: &mut Vec<Pid>) {
    for pid in descendants() {
        let _ = ask(pid, asked);
    }
}

/// Kill everything below this process; false when none of it is ours to kill, and so not ours to wait for.
///
/// Stopped first, until no new one appears: whoever is killed makes room for a child of one that is not yet.
pub fn kill_all() -> bool {
    let mut stopped: Vec<Pid> = Vec::new();
    for _ in 0..SCANS {
        let new: Vec<Pid> = descendants().into_iter().filter(|pid| !stopped.contains(pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in &new {
            let _ = sys::send(*pid, libc::SIGSTOP);
        }
        stopped.extend(new);
    }
    let refused = stopped.iter().filter(|pid| sys::send(**pid, libc::SIGKILL) == Err(Errno::PERM)).count();
    stopped.is_empty() || refused < stopped.len()
}

fn ask(pid: Pid, asked: &mut Vec<Pid>) -> Result<(), Errno> {
    if asked.contains(&pid) {
        return Ok(());
    }
    asked.push(pid);
    sys::send(pid, libc::SIGTERM)?;
    sys::send(pid, libc::SIGCONT)
}

/// Reaps what has ended; whether a child still lives.
fn any_left(usage: &mut Usage) -> bool {
    loop {
        match sys::wait_any(false) {
            Ok(Some(waited)) => count(&waited, usage),
            Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// All processes below this one.
fn descendants() -> Vec<Pid> {
    let all = all_processes().unwrap_or_default();
    let mut found = vec![getpid()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, of)| *of == parent.as_raw_nonzero().get()).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// Every process and its parent, from /proc: a child's children are found whatever thread started them.
fn all_processes() -> Result<Vec<(Pid, i32)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", flags, Mode::empty())?;
    let mut all = Vec::new();
    let mut entries = Dir::read_from(&proc)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let pid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        let path = format!("{}/stat", pid.as_raw_nonzero());
        let Ok(fd) = openat(&proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { continue };
        let mut text = [0u8; 512];
        let length = rustix::io::read(&fd, &mut text).unwrap_or(0);
        let parent = procfs::number(&text[..length], 4).and_then(|parent| i32::try_from(parent).ok());
        all.extend(parent.map(|parent| (pid, parent)));
    }
    Ok(all)
}
