//! Landlock, Linux 5.13 (linux/landlock.h).

use super::raw::{input, number, syscall};
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

/// `LANDLOCK_ACCESS_FS_*` of the first ABI that change a filesystem: write a file, remove and make anything.
const CHANGES: u64 = 0b1_1111_1111_0010;
/// Those that a file can have: execute, write, read, truncate, ioctl of a device.
const OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;
const RULE_PATH_BENEATH: usize = 1;

/// struct landlock_ruleset_attr of ABI 6. Older kernels take it as long as what they do not know is 0.
#[repr(C)]
struct Ruleset {
    filesystem: u64,
    network: u64,
    scoped: u64,
}

/// struct landlock_path_beneath_attr.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: i32,
}

/// From here on this process and its children change nothing on any filesystem but through what is open, and trace no
/// process that is not in the same domain. Needs no_new_privs.
pub fn forbid_changes() -> Result<(), Errno> {
    restrict_self(make_ruleset(CHANGES, 0)?)
}

/// A ruleset that refuses these rights everywhere, and has these scopes.
pub fn make_ruleset(handled: u64, scoped: u64) -> Result<OwnedFd, Errno> {
    let attributes = Ruleset { filesystem: handled, network: 0, scoped };
    let arguments = [input(&attributes), size_of::<Ruleset>(), 0];
    // SAFETY: the kernel reads a struct of the size that is given, which lives for the call.
    let fd = unsafe { syscall(libc::SYS_landlock_create_ruleset, arguments) }?;
    // SAFETY: the call has just made it, close-on-exec, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Leave these of its handled rights open for a file, or for everything beneath a directory.
pub fn add_rule(ruleset: &OwnedFd, target: &OwnedFd, access: u64) -> Result<(), Errno> {
    let is_directory = FileType::from_raw_mode(fstat(target)?.st_mode) == FileType::Directory;
    let access = if is_directory { access } else { access & OF_FILES };
    if access == 0 {
        return Ok(());
    }
    let rule = PathBeneath { access, parent: number(target.as_fd()) as i32 };
    let arguments = [number(ruleset.as_fd()), RULE_PATH_BENEATH, input(&rule), 0];
    // SAFETY: the kernel reads one packed struct of that kind of rule, which lives for the call.
    unsafe { syscall(libc::SYS_landlock_add_rule, arguments) }.map(drop)
}

/// Put up a ruleset for this process and its children, for good. Needs no_new_privs.
pub fn restrict_self(ruleset: impl AsFd) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_landlock_restrict_self, [number(ruleset.as_fd()), 0]) }.map(drop)
}
