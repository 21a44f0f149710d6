//! What a stored launch depended on, and whether it is still so.

use crate::plan::reader::{Read, Reader};
use crate::prelude::*;
use crate::sources::nanoseconds;
use crate::sys;
use core::ffi::CStr;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::{getgid, getgroups, getuid};
use rustix::thread::{CapabilitySet, capabilities, no_new_privs};
use sha2::{Digest, Sha256};

/// One thing that must be as it was.
pub enum Condition<'a> {
    /// An environment variable: the SHA-256 of its value, or unset.
    Variable(&'a [u8], Option<&'a [u8]>),
    /// A file, links followed: dev, inode, size, mtime_ns, ctime_ns.
    File(&'a [u8], [u64; 5]),
    /// A directory, links followed: dev, inode.
    Directory(&'a [u8], [u64; 2]),
    /// Nothing has this name.
    Missing(&'a [u8]),
    /// A symbolic link, and where it leads.
    Link(&'a [u8], &'a [u8]),
    /// The user, the group, and the other groups in their order.
    Identity(&'a [u8]),
    /// The kernel's boot id.
    Boot(&'a [u8]),
    /// Whether CAP_SYS_ADMIN is effective, and whether no_new_privs is set.
    Powers(bool, bool),
    /// Seconds since 1970 at which it must be compiled anew.
    Until(u64),
}

/// Read one.
pub fn read<'a>(reader: &mut Reader<'a>) -> Read<Condition<'a>> {
    Ok(match reader.u8()? {
        1 => {
            let name = reader.string()?;
            Condition::Variable(name, if reader.u8()? == 0 { None } else { Some(reader.take(32)?) })
        }
        2 => {
            Condition::File(reader.path()?, [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?])
        }
        3 => Condition::Directory(reader.path()?, [reader.u64()?, reader.u64()?]),
        4 => Condition::Missing(reader.path()?),
        5 => Condition::Link(reader.path()?, reader.path()?),
        6 => {
            let count = reader.count()? as usize;
            Condition::Identity(reader.take(count * 4)?)
        }
        7 => Condition::Boot(reader.string()?),
        8 => Condition::Powers(reader.u8()? != 0, reader.u8()? != 0),
        9 => Condition::Until(reader.u64()?),
        _ => return Err(reader.fail("an unknown condition")),
    })
}

impl Condition<'_> {
    /// Whether it is still so.
    pub fn holds(&self, environment: &[&CStr]) -> bool {
        match self {
            Condition::Variable(name, wanted) => match (value(environment, name), wanted) {
                (None, None) => true,
                (Some(now), Some(wanted)) => Sha256::digest(now).as_slice() == *wanted,
                _ => false,
            },
            Condition::File(path, wanted) => status(path).is_ok_and(|now| times(&now) == *wanted),
            Condition::Directory(path, wanted) => status(path).is_ok_and(|now| [now.st_dev, now.st_ino] == *wanted),
            Condition::Missing(path) => {
                statat(CWD, *path, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT)
            }
            Condition::Link(path, target) => {
                readlinkat(CWD, *path, Vec::new()).is_ok_and(|now| now.to_bytes() == *target)
            }
            Condition::Identity(wanted) => ids().as_ref() == Some(wanted).map(|wanted| wanted.to_vec()).as_ref(),
            Condition::Boot(wanted) => boot().is_some_and(|now| now.trim_ascii_end() == *wanted),
            Condition::Powers(may_mount, locked) => {
                capabilities(None).is_ok_and(|now| now.effective.contains(CapabilitySet::SYS_ADMIN) == *may_mount)
                    && no_new_privs().is_ok_and(|now| now == *locked)
            }
            Condition::Until(seconds) => sys::wall_clock().as_secs() < *seconds,
        }
    }
}

/// The value of a variable.
pub fn value<'e>(environment: &[&'e CStr], name: &[u8]) -> Option<&'e [u8]> {
    environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(name)?.strip_prefix(b"="))
}

fn status(path: &[u8]) -> Result<Stat, Errno> {
    statat(CWD, path, AtFlags::empty())
}

fn times(status: &Stat) -> [u64; 5] {
    let size = status.st_size.try_into().unwrap_or(u64::MAX);
    let modified = nanoseconds(status.st_mtime, status.st_mtime_nsec);
    [status.st_dev, status.st_ino, size, modified, nanoseconds(status.st_ctime, status.st_ctime_nsec)]
}

fn ids() -> Option<Vec<u8>> {
    let mut ids = vec![getuid().as_raw(), getgid().as_raw()];
    ids.extend(getgroups().ok()?.into_iter().map(|group| group.as_raw()));
    Some(ids.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn boot() -> Option<Vec<u8>> {
    let fd = openat(CWD, "/proc/sys/kernel/random/boot_id", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    crate::fsops::read_all(&fd, 4096).ok()
}
