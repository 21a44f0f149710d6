//! One system call, and the few that neither rustix nor safe Rust offers.
//!
//! There is no C library below this crate: its start-up alone costs as much as the whole launch may
//! (`README.md`, "Why no C library"), and errno needs no thread-local storage this way.

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;

/// A system call. What it does is up to its number and arguments.
///
/// # Safety
///
/// Every pointer among the arguments must be valid for what the call does with it, and no descriptor that somebody
/// owns may be closed or replaced.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<usize, Errno> {
    let a = all_six(arguments);
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 and returns in rax; the caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    checked(result)
}

/// A system call; see above.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
pub unsafe fn syscall<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<usize, Errno> {
    let a = all_six(arguments);
    let result: isize;
    // SAFETY: the kernel keeps all registers but x0, which holds the result; the caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number, inlateout("x0") a[0] => result,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack)
        );
    }
    checked(result)
}

/// clone(2) on this very stack; the child exits with 0 before it could use it.
///
/// # Safety
///
/// No signal handler may run in the child.
#[cfg(target_arch = "x86_64")]
pub unsafe fn clone_and_exit(flags: usize) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: as in `syscall`; what the child does has no effect on this process.
    unsafe {
        core::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f",
            "xor edi, edi", "mov eax, {exit}", "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone as isize => result,
            inlateout("rdi") flags => _, in("rsi") 0, in("rdx") 0, in("r10") 0, in("r8") 0,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    checked(result)
}

/// The same.
///
/// # Safety
///
/// As above.
#[cfg(target_arch = "aarch64")]
pub unsafe fn clone_and_exit(flags: usize) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "svc 0", "cbnz x0, 2f",
            "mov x8, {exit}", "svc 0",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("x0") flags => result,
            inlateout("x8") libc::SYS_clone => _, in("x1") 0, in("x2") 0, in("x3") 0, in("x4") 0,
            options(nostack)
        );
    }
    checked(result)
}

fn all_six<const N: usize>(arguments: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    all
}

fn checked(result: isize) -> Result<usize, Errno> {
    match i32::try_from(result) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw_os_error(-error)),
        _ => Ok(result.cast_unsigned()),
    }
}

/// A descriptor as an argument.
pub fn number(fd: BorrowedFd) -> usize {
    fd.as_raw_fd().unsigned_abs() as usize
}

/// A shared reference as an argument.
pub fn input<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

/// A mutable reference as an argument.
pub fn output<T>(value: &mut T) -> usize {
    core::ptr::from_mut(value) as usize
}

/// End this process with an instruction that there is not.
pub fn trap() -> ! {
    // SAFETY: nothing is read or written, and the kernel ends the process of its signal, blocked or not.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("ud2", options(noreturn, nomem, nostack))
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("udf #0", options(noreturn, nomem, nostack))
    }
}
