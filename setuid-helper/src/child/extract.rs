//! Extract: a program unpacks a source into a mount.

use super::Child;
use super::spawn::{c_strings, last_words, spawn};
use crate::error::{Doing, Failure, Outcome, printable};
use crate::plan::{Slot, SourceKind, Strings};
use crate::prelude::*;
use rustix::fd::AsFd;
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom, memfd_create, openat, seek};
use rustix::process::{WaitOptions, waitpid};

/// The longest message that is shown, in bytes.
const MESSAGE: usize = 4096;

impl Child<'_> {
    pub fn extract(&mut self, slot: Slot, source: u32, argv: Strings) -> Outcome<()> {
        let described = &self.prepared.plan.sources[source as usize];
        let label = if described.path.is_empty() { b"the converted archive" } else { described.path };
        let directory;
        let input = if described.kind == SourceKind::Directory {
            directory = self.directory_source(source)?.1;
            directory.as_fd()
        } else {
            let file = self.prepared.sources.file(source)?;
            seek(file, SeekFrom::Start(0)).doing("rewind", label)?;
            file
        };
        let argv = c_strings(argv.iter());
        let output = memfd_create("sandbox-message", MemfdFlags::CLOEXEC).doing("unpack", label)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mounted = self.mounts.iter().find(|(other, _)| *other == slot).map(|(_, mount)| &mount.root);
        let mounted = mounted.ok_or_else(|| Failure::new(format!("there is no slot {slot}")))?;
        let root = openat(mounted, ".", flags, Mode::empty()).doing("open the place for", label)?;
        let fds = [(input, 0), (output.as_fd(), 1), (root.as_fd(), 3)];
        let pid = spawn(&argv, &fds, self.prepared.rights, || true)?;
        let status = waitpid(Some(pid), WaitOptions::empty()).doing("wait for", argv[0].as_bytes())?;
        match status {
            Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
            Some((_, status)) => Err(failed(label, &output, status.terminating_signal())),
            None => Err(Failure::new("the unpacking program was lost")),
        }
    }
}

/// What the program says of itself is the whole line.
fn failed(label: &[u8], output: &impl AsFd, signal: Option<i32>) -> Failure {
    let said = last_words(output, MESSAGE);
    let why = match signal {
        Some(signal) => format!("its program was killed by signal {signal}"),
        None if said.is_empty() => "its program failed without a word".to_owned(),
        None => return Failure::new(said),
    };
    Failure::new(format!("cannot unpack {}: {why}", printable(label)))
}
