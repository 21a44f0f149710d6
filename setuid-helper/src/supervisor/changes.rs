//! How many files of the workspace the command changed: counted when nothing of it is alive.

use crate::fsops::{level, next_entry, open_dir};
use crate::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, statat};

/// The job made what is walked here: it must not take long, nor many descriptors.
const MOST: u64 = 100_000;
const DEEPEST: usize = 64;

/// What is younger than `since` in the directory that the child handed over. At most `MOST`.
pub fn count((directory, since): (OwnedFd, i64)) -> Option<u64> {
    let mut found = 0;
    let mut stack = vec![level(open_dir(&directory, b".").ok()?, c"").ok()?];
    loop {
        let depth = stack.len();
        let Some(top) = stack.last_mut() else { break };
        let Ok(Some(name)) = next_entry(&mut top.entries) else {
            stack.pop();
            continue;
        };
        let Ok(status) = statat(&top.fd, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            let changed = status.st_ctime * 1_000_000_000 + status.st_ctime_nsec as i64;
            found += u64::from(changed > since);
        } else if depth <= DEEPEST
            && let Ok(fd) = open_dir(&top.fd, name.to_bytes())
            && let Ok(below) = level(fd, &name)
        {
            stack.push(below);
        }
        if found >= MOST {
            break;
        }
    }
    Some(found)
}

/// For a person.
pub fn line(found: u64) -> String {
    let least = if found >= MOST { "at least " } else { "" };
    let (end, were) = if found == 1 { ("", "was") } else { ("s", "were") };
    format!("{least}{found} changed file{end} of the working directory {were} discarded (--keep, --workspace rw)")
}
