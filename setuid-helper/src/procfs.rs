//! What /proc says of processes. A directory of it that is open stands for its process: when that has ended nothing can
//! be read there, whoever has the number by then.

use crate::fsops::read_all;
use crate::prelude::*;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

/// More than any of these files is long that another user has a hand in.
const MOST: usize = 8 << 20;

/// `/proc/PID`.
pub fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/{}", pid.as_raw_nonzero()), flags, Mode::empty())
}

/// This process's own.
pub fn own() -> Result<OwnedFd, Errno> {
    open(getpid())
}

/// All of a file of it.
pub fn read(process: impl AsFd, name: &str) -> Result<Vec<u8>, Errno> {
    let fd = openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let text = read_all(fd, MOST)?;
    if text.len() < MOST { Ok(text) } else { Err(Errno::FBIG) }
}

/// A number of proc_pid_stat(5), by its number there, from 4 on. The name before these may hold anything.
pub fn number(stat: &[u8], field: usize) -> Option<u64> {
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    let field = after_name.split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(field.checked_sub(3)?)?;
    parse(field)
}

/// A decimal number.
pub fn parse(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        assert_eq!(number(b"12 (a) R (b) S 7 12 13 0", 4), Some(7));
        assert_eq!(number(b"12 (a) R (b) S 7 12 13 0", 6), Some(13));
        assert_eq!((number(b"", 4), number(b"1 (a) S 2", 2)), (None, None));
    }
}
