//! seccomp(2) and the capability bounding set.

use super::raw::{input, syscall};
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const u64,
}

/// Install a filter of classic BPF instructions, each a struct sock_filter as a number. With `listen` the descriptor
/// that SECCOMP_RET_USER_NOTIF asks: seccomp_unotify(2), Linux 5.0.
pub fn install_filter(instructions: &[u64], listen: bool) -> Result<Option<OwnedFd>, Errno> {
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, instructions: instructions.as_ptr() };
    let flags = if listen { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    let arguments = [libc::SECCOMP_SET_MODE_FILTER as usize, flags as usize, input(&program)];
    // SAFETY: the kernel reads a sock_fprog and `length` instructions of 8 bytes; both live for the call.
    let listener = unsafe { syscall(libc::SYS_seccomp, arguments) }?;
    let Some(listener) = i32::try_from(listener).ok().filter(|_| listen) else { return Ok(None) };
    // SAFETY: the kernel has just opened it for this process.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }))
}

/// Empty the bounding set but for these (bit N for capability N), which takes CAP_SETPCAP; without it no_new_privs has to
/// do.
pub fn cut_bounding_set(kept: u64) {
    for capability in (0..64).filter(|capability| kept >> capability & 1 == 0) {
        // SAFETY: no pointers.
        let dropped = unsafe { syscall(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, capability, 0, 0, 0]) };
        // EINVAL is behind the last one, EPERM without the right.
        if dropped.is_err() {
            return;
        }
    }
}
