//! `/etc/sandbox/policy.toml`: what the administrator allows (`docs/setuid.md`).

use super::ground;
use super::refused;
use super::toml::{Value, parse};
use crate::error::{Doing, Failure, Outcome};
use crate::fsops::read_all;
use crate::prelude::*;
use alloc::borrow::Cow;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

const PATH: &str = "/etc/sandbox/policy.toml";
/// The longest policy, in bytes.
const LONGEST: usize = 65_536;

/// What is done with an image that the user may have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// Unpacked and packed again by the builder.
    Rebuild,
    /// Shown to the kernel as it is, from a copy that nobody can change.
    Any,
    /// Refused.
    Trusted,
}

/// The administrator's word.
#[derive(Debug, PartialEq, Eq)]
pub struct Policy {
    /// `images`
    pub images: Images,
    /// `trusted_directories`, absolute paths.
    pub trusted: Vec<Vec<u8>>,
    /// `groups`; empty: whoever may execute the helper.
    pub groups: Vec<u32>,
    /// The longest image that is rebuilt or copied, in bytes.
    pub image_bytes: u64,
    /// All images of a launch that are rebuilt or copied, in bytes.
    pub memfd_bytes: u64,
    /// All tmpfs of a launch, in bytes.
    pub tmpfs_bytes: u64,
    /// User and group that rebuild images.
    pub builder: (u32, u32),
    /// How many images are rebuilt at once for a user.
    pub builders: u64,
    /// How many loop devices a user has.
    pub loop_devices: u64,
    /// Where rebuilt images are kept, in a directory per user.
    pub store: Cow<'static, [u8]>,
    /// All images of a user there, in bytes.
    pub store_bytes: u64,
    /// Whether a plan may leave out `NoNewPrivs`.
    pub allow_new_privs: bool,
}

const STRICT: Policy = Policy {
    images: Images::Rebuild,
    trusted: Vec::new(),
    groups: Vec::new(),
    image_bytes: 16 << 30,
    memfd_bytes: 16 << 30,
    tmpfs_bytes: u64::MAX,
    builder: (0, 0),
    builders: 2,
    loop_devices: 64,
    store: Cow::Borrowed(STORE),
    store_bytes: 32 << 30,
    allow_new_privs: false,
};
/// Where rebuilt images are kept, unless the policy names another place.
pub const STORE: &[u8] = b"/var/lib/sandbox";

impl Policy {
    /// The policy of this machine; the strict defaults where there is none.
    pub fn load() -> Outcome<Policy> {
        match open_root_owned(PATH.as_bytes())? {
            None => Ok(STRICT),
            Some(file) => match read_all(file, LONGEST).doing("read", PATH.as_bytes())? {
                text if text.len() >= LONGEST => Err(refused(format!("{PATH} is too long"))),
                text => Policy::parse(&text).map_err(|line| {
                    refused(format!("{PATH}: line {line} is not understood")).hint("ask the administrator")
                }),
            },
        }
    }

    /// From its text; the error is the number of a line.
    pub fn parse(text: &[u8]) -> Result<Policy, usize> {
        let mut policy = STRICT;
        for (key, value, line) in parse(text)? {
            // The limits may stand in a table of their own.
            let key = key.strip_prefix("limits.").filter(|key| key.ends_with("_bytes")).unwrap_or(&key);
            policy.set(key, &value).ok_or(line)?;
        }
        Ok(policy)
    }

    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match (key, value) {
            ("images", Value::Text(b"rebuild")) => self.images = Images::Rebuild,
            ("images", Value::Text(b"any")) => self.images = Images::Any,
            ("images", Value::Text(b"trusted")) => self.images = Images::Trusted,
            ("trusted_directories", Value::Texts(paths)) if paths.iter().all(|path| path.starts_with(b"/")) => {
                self.trusted = paths.iter().map(|path| path.to_vec()).collect();
            }
            ("trusted_directories", Value::Numbers(none)) if none.is_empty() => {}
            ("groups", Value::Numbers(groups)) => {
                self.groups = groups.iter().map(|group| u32::try_from(*group).ok()).collect::<Option<_>>()?;
            }
            ("image_bytes", Value::Number(bytes)) => self.image_bytes = *bytes,
            ("memfd_bytes", Value::Number(bytes)) => self.memfd_bytes = *bytes,
            ("tmpfs_bytes", Value::Number(bytes)) => self.tmpfs_bytes = *bytes,
            ("builder_uid", Value::Number(id)) => self.builder.0 = user(*id)?,
            ("builder_gid", Value::Number(id)) => self.builder.1 = user(*id)?,
            ("builders", Value::Number(count)) => self.builders = *count,
            ("loop_devices", Value::Number(count)) => self.loop_devices = *count,
            ("store", Value::Text(path)) if path.starts_with(b"/") => self.store = path.to_vec().into(),
            ("store_bytes", Value::Number(bytes)) => self.store_bytes = *bytes,
            ("allow_new_privs", Value::Truth(allowed)) => self.allow_new_privs = *allowed,
            _ => return None,
        }
        Some(())
    }

    /// Whether the caller may use the helper at all.
    pub fn check_groups(&self) -> Outcome<()> {
        let mut own = rustix::process::getgroups().doing("read the groups of the caller", b"")?;
        own.push(rustix::process::getgid());
        if self.groups.is_empty() || own.iter().any(|group| self.groups.contains(&group.as_raw())) {
            return Ok(());
        }
        Err(refused("the policy does not allow you to use setuid mode").hint("use --mode userns"))
    }
}

/// The last number means "no change" to setresuid(2).
fn user(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX)
}

/// Whether only root can change what this describes. A mask of an ACL shows in the bits of the group.
pub fn is_roots(status: &Stat) -> bool {
    status.st_uid == 0 && status.st_mode & 0o022 == 0
}

/// A file that, like every directory on the way to it, only root can change. None: it does not exist.
fn open_root_owned(path: &[u8]) -> Outcome<Option<OwnedFd>> {
    let cut = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let Some(directory) = ground::open(&path[..cut])? else { return Ok(None) };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(&directory, &path[cut + 1..], flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(refused(Failure::os("open", path, error).message)),
    };
    let status = fstat(&file).doing("look at", path)?;
    let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    if is_file && is_roots(&status) { Ok(Some(file)) } else { Err(ground::unsafe_owner(path)) }
}

#[cfg(test)]
#[path = "tests/policy.rs"]
mod tests;
