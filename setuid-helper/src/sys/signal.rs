//! Signals: blocked and waited for, never handled.

use super::raw::{input, output, syscall};
use core::mem::{offset_of, zeroed};
use core::time::Duration;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};

/// `SIGEV`-less view of the start of the kernel's siginfo_t (asm-generic/siginfo.h), with its full size of 128 bytes.
#[repr(C, align(8))]
struct Info {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    pid: i32,
    rest: [i32; 27],
}

/// The kernel's struct sigaction (linux/signal_types.h), which is not the C library's.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

const SET: usize = size_of::<u64>();
const _: () = assert!(size_of::<Info>() == 128 && offset_of!(Info, pid) == 16);

/// A signal mask: bit N-1 for signal N.
#[derive(Clone, Copy)]
pub struct Mask(u64);

impl Mask {
    /// Exactly these signals.
    pub fn of(signals: &[i32]) -> Mask {
        Mask(signals.iter().fold(0, |set, signal| set | 1 << (signal - 1)))
    }

    /// Make it this process's mask.
    pub fn apply(self) {
        change(libc::SIG_SETMASK, self);
    }
}

fn change(how: i32, new: Mask) -> Mask {
    let mut old = 0u64;
    // SAFETY: both sets are of the size that is given, and live for the call.
    let _ = unsafe { syscall(libc::SYS_rt_sigprocmask, [how as usize, input(&new.0), output(&mut old), SET]) };
    Mask(old)
}

/// Block everything; returns the mask from before.
pub fn block_all() -> Mask {
    change(libc::SIG_SETMASK, Mask(u64::MAX))
}

/// Block one signal more; whether it was not blocked already.
pub fn hold(signal: i32) -> bool {
    let mask = Mask::of(&[signal]);
    change(libc::SIG_BLOCK, mask).0 & mask.0 == 0
}

/// A signal that was taken from the queue.
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel sent it, as a terminal does.
    pub from_kernel: bool,
    /// Who sent it, where somebody did.
    pub sender: i32,
}

/// The next blocked signal of `mask`; None when the time is up, or on a stop and continue.
pub fn wait(mask: Mask, limit: Option<Duration>) -> Option<Arrived> {
    // SAFETY: integers only, for which all zeroes is a value.
    let mut info: Info = unsafe { zeroed() };
    let timeout = limit.map(|limit| [limit.as_secs(), limit.subsec_nanos().into()]);
    let timeout = timeout.as_ref().map_or(0, input);
    // SAFETY: the set is of the size that is given; info is as large as the kernel's; the timeout is NULL or a
    // struct timespec of two 64-bit numbers; all live for the call.
    let signal =
        unsafe { syscall(libc::SYS_rt_sigtimedwait, [input(&mask.0), output(&mut info), timeout, SET]) }.ok()?;
    Some(Arrived { signal: signal as i32, from_kernel: info.code == libc::SI_KERNEL, sender: info.pid })
}

/// A SIGCONT for this process at a time of `now`, for as long as the process lives: it ends a stop. timer_create(2).
pub fn continue_at(time: Duration) -> Result<(), Errno> {
    // struct sigevent: value, signal, SIGEV_SIGNAL (0), and unused space up to 64 bytes.
    let mut event = [0u64; 8];
    event[1] = libc::SIGCONT.unsigned_abs().into();
    let mut timer = 0i32;
    let clock = libc::CLOCK_MONOTONIC as usize;
    // SAFETY: the kernel reads one struct sigevent and writes one timer id, an int; both live for the call.
    unsafe { syscall(libc::SYS_timer_create, [clock, input(&event), output(&mut timer)]) }?;
    let absolute = [0, 0, time.as_secs(), u64::from(time.subsec_nanos())];
    let arguments = [timer as usize, libc::TIMER_ABSTIME as usize, input(&absolute), 0];
    // SAFETY: the kernel reads one struct itimerspec of four 64-bit numbers, which lives for the call.
    unsafe { syscall(libc::SYS_timer_settime, arguments) }.map(drop)
}

/// kill(2) of one process.
pub fn send(pid: Pid, signal: i32) -> Result<(), Errno> {
    let pid = pid.as_raw_nonzero().get() as usize;
    // SAFETY: no pointers; a Pid is positive, so it is never a group or everybody.
    unsafe { syscall(libc::SYS_kill, [pid, signal as usize]) }.map(drop)
}

/// kill(2) of the process group that `leader` leads.
pub fn send_to_group(leader: Pid, signal: i32) -> Result<(), Errno> {
    let group = -leader.as_raw_nonzero().get() as isize;
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_kill, [group as usize, signal as usize]) }.map(drop)
}

/// kill(2) of this process.
pub fn send_to_self(signal: i32) {
    let _ = send(rustix::process::getpid(), signal);
}

fn set_action(signal: i32, handler: usize) {
    let action = Action { handler, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: the action lives for the call, and its handler is SIG_DFL or SIG_IGN, so no code of ours ever runs in
    // a signal context.
    let _ = unsafe { syscall(libc::SYS_rt_sigaction, [signal as usize, input(&action), 0, SET]) };
}

/// Set the action of a signal to default.
pub fn default_action(signal: i32) {
    set_action(signal, libc::SIG_DFL);
}

/// Ignore a signal.
pub fn ignore(signal: i32) {
    set_action(signal, libc::SIG_IGN);
}

/// Whether a signal is ignored, as it may be from before exec.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: the kernel fills in one of its struct sigaction, which lives for the call.
    let result = unsafe { syscall(libc::SYS_rt_sigaction, [signal as usize, 0, output(&mut action), SET]) };
    result.is_ok() && action.handler == libc::SIG_IGN
}

/// End this process by `signal`, without a core: the caller sees what happened to the command. A core that is piped to
/// core_pattern asks for no limit (core(5)), but there is none of what is not dumpable.
/// Every other signal must be blocked, or one that is pending may be what ends it.
pub fn die_of(signal: i32) -> ! {
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    default_action(signal);
    send_to_self(signal);
    change(libc::SIG_UNBLOCK, Mask::of(&[signal])); // delivered before it returns
    super::exit_now(128 + signal)
}
