//! The account of a run: how it ended and what it used, written where the caller asked for it.
//!
//! What is known before the launch arrives as the start of a JSON text; the rest is appended (docs/report.md).

mod account;
mod text;

pub use account::{Account, Ending, Marks, Peaks, Usage};
pub use text::iso;

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{TEMPORARY, proc_fd, write_all};
use crate::messages;
use crate::prelude::*;
use crate::sys;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, fstat, fsync, linkat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

/// Before the text: kind, mode, origin and the length of the name.
const HEAD: usize = 1 + 4 + 8 + 4;
const LONGEST_NAME: usize = 255;

/// What a report is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The account, when all is over.
    Report,
    /// The same in the Chrome trace format.
    Trace,
    /// A line for each event, as it happens.
    Status,
    /// A given line for each step, when it is done.
    Steps,
}

/// One thing to write.
struct Report {
    kind: Kind,
    mode: Mode,
    /// The moment, on the clock of `sys::now`, that phases count from.
    origin_ns: u64,
    /// In the directory `out`; empty when `out` itself is written to.
    name: Vec<u8>,
    start: Vec<u8>,
    out: OwnedFd,
}

/// Everything to write at the end.
#[derive(Default)]
pub struct Reports(Vec<Report>);

impl Reports {
    /// Take over one: what is in the file that was handed over, and where it goes.
    pub fn add(&mut self, meta: &[u8], out: OwnedFd) -> Outcome<()> {
        self.0.push(parse(meta, out).ok_or_else(|| Failure::new("the report that was handed over is damaged"))?);
        Ok(())
    }

    /// Whether anybody wants an account.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anybody wants to be told while the launch goes on.
    pub fn is_live(&self) -> bool {
        self.0.iter().any(|report| matches!(report.kind, Kind::Status | Kind::Steps))
    }

    /// The command has been executed; its process, if that is known.
    pub fn started(&self, pid: Option<Pid>) {
        let pid = pid.map_or("null".to_owned(), |pid| pid.as_raw_nonzero().to_string());
        for report in self.0.iter().filter(|report| report.kind == Kind::Status) {
            // Who does not listen is told nothing, and stops nothing.
            let _ = write_all(&report.out, format!("{{\"event\": \"started\", \"pid\": {pid}}}\n").as_bytes());
        }
    }

    /// So many more marks were made, after the first `done`. The first of all comes before the first step.
    pub fn steps(&self, done: usize, count: usize) {
        for report in self.0.iter().filter(|report| report.kind == Kind::Steps) {
            let lines = report.start.split_inclusive(|byte| *byte == b'\n');
            for line in lines.skip(done.saturating_sub(1)).take(count - usize::from(done == 0)) {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
                let _ = write_all(&report.out, messages::line("step", &text, "", None).as_bytes());
            }
        }
    }

    /// Write all of them, with the caller's rights; the first failure. A command that is in the way of one does not keep
    /// whoever called from the others.
    pub fn write(&self, account: &Account) -> Outcome<()> {
        let all = self.0.iter().filter(|report| report.kind != Kind::Steps);
        let write = |report: &Report| {
            if report.kind == Kind::Status {
                let _ = write_all(&report.out, text::rest(account, report.origin_ns, report.kind).as_bytes());
                return Ok(());
            }
            let mut text = report.start.clone();
            text.extend(text::rest(account, report.origin_ns, report.kind).as_bytes());
            let written = if report.name.is_empty() { write_all(&report.out, &text) } else { publish(report, &text) };
            let what = if report.kind == Kind::Trace { "trace" } else { "report" };
            let hint = format!("the command has ended as it has; only its {what} is missing");
            written.doing(&format!("write the {what}"), &report.name).map_err(|failure| failure.hint(&hint))
        };
        all.map(write).fold(Ok(()), Outcome::and)
    }
}

fn parse(meta: &[u8], out: OwnedFd) -> Option<Report> {
    let (head, rest) = meta.split_at_checked(HEAD)?;
    let kind = match head[0] {
        1 => Kind::Report,
        2 => Kind::Trace,
        3 => Kind::Status,
        4 => Kind::Steps,
        _ => return None,
    };
    let mode = u32::from_le_bytes(head[1..5].try_into().ok()?) & 0o777;
    let origin_ns = u64::from_le_bytes(head[5..13].try_into().ok()?);
    let length = u32::from_le_bytes(head[13..17].try_into().ok()?) as usize;
    let (name, start) = rest.split_at_checked(length).filter(|(name, _)| name.len() <= LONGEST_NAME)?;
    let is_plain = !name.iter().any(|byte| matches!(byte, b'/' | 0)) && name != b"." && name != b"..";
    let [name, start] = [name.to_vec(), start.to_vec()];
    is_plain.then_some(Report { kind, mode: Mode::from_raw_mode(mode), origin_ns, name, start, out })
}

/// Under its name complete and durable, or not at all; no link is followed, whatever has that name by now.
fn publish(report: &Report, text: &[u8]) -> Result<(), Errno> {
    let mut random = [0u8; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let temporary = format!("{TEMPORARY}{:016x}", u64::from_le_bytes(random));
    let directory = &report.out;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let unnamed = openat(directory, ".", flags | OFlags::TMPFILE, report.mode);
    let named = unnamed.is_err();
    let new = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let fd = unnamed.or_else(|_| openat(directory, &temporary, new, report.mode))?;
    let finish = || -> Result<(), Errno> {
        write_all(&fd, text)?;
        fchmod(&fd, report.mode)?;
        fsync(&fd)?;
        if !named {
            linkat(CWD, proc_fd(&fd), directory, &temporary, AtFlags::SYMLINK_FOLLOW)?;
        }
        renameat(directory, &temporary, directory, &*report.name)?;
        fsync(directory)
    };
    let done = finish();
    if done.is_err() {
        let _ = unlinkat(directory, &temporary, AtFlags::empty());
    }
    done
}

/// The numbers of `report=META,OUT`.
pub fn descriptors(text: &[u8]) -> Outcome<(i32, i32)> {
    let mut parts = text.splitn(2, |byte| *byte == b',').map(crate::cli::descriptor);
    match (parts.next(), parts.next()) {
        (Some(meta), Some(out)) => Ok((meta?, out?)),
        _ => Err(Failure::new("a report needs two descriptors")),
    }
}

/// Where a report goes: a directory or something to write to.
pub fn adopt_out(number: i32) -> Outcome<OwnedFd> {
    let fd = sys::adopt(number).doing("use descriptor", number.to_string().as_bytes())?;
    let status = fstat(&fd).doing("look at descriptor", number.to_string().as_bytes())?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice => Err(Failure::new("a report is not written to a disk")),
        _ => Ok(fd),
    }
}
