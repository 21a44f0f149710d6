//! Landlock, Linux 5.13 (linux/landlock.h).

use super::raw::{input, syscall};
use rustix::io::Errno;

/// `LANDLOCK_ACCESS_FS_*` of the first ABI that change a filesystem: write a file, remove and make anything.
const CHANGES: u64 = 0b1_1111_1111_0010;

/// From here on this process and its children change nothing on any filesystem but through what is open, and trace no
/// process that is not in the same domain. Needs no_new_privs.
pub fn forbid_changes() -> Result<(), Errno> {
    // SAFETY: the kernel reads the 8 bytes of the first member of struct landlock_ruleset_attr.
    let ruleset = unsafe { syscall(libc::SYS_landlock_create_ruleset, [input(&CHANGES), size_of::<u64>(), 0]) }?;
    // SAFETY: no pointers. The descriptor is close-on-exec, and this process is about to exec.
    unsafe { syscall(libc::SYS_landlock_restrict_self, [ruleset, 0]) }.map(drop)
}
