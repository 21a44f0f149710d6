//! seccomp(2) and the capability bounding set.

use super::raw::{input, syscall};
use rustix::io::Errno;

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const u64,
}

/// Install a filter of classic BPF instructions, each a struct sock_filter as a number.
pub fn install_filter(instructions: &[u64]) -> Result<(), Errno> {
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, instructions: instructions.as_ptr() };
    let arguments = [libc::SECCOMP_SET_MODE_FILTER as usize, 0, input(&program)];
    // SAFETY: the kernel reads a sock_fprog and `length` instructions of 8 bytes; both live for the call.
    unsafe { syscall(libc::SYS_seccomp, arguments) }.map(drop)
}

/// Empty the bounding set, which takes CAP_SETPCAP; without it no_new_privs has to do.
pub fn drop_bounding_set() {
    for capability in 0..64 {
        // SAFETY: no pointers.
        let there = unsafe { syscall(libc::SYS_prctl, [libc::PR_CAPBSET_READ as usize, capability, 0, 0, 0]) };
        // SAFETY: as above. Each drop makes credentials anew, so what is gone already is only looked at.
        let drop = || unsafe { syscall(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, capability, 0, 0, 0]) };
        if there.is_err() || there == Ok(1) && drop().is_err() {
            return;
        }
    }
}
