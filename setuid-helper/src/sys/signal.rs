//! Signals: blocked and waited for, never handled.

use super::fd::last_error;
use rustix::io::Errno;
use rustix::process::Pid;
use std::mem::{MaybeUninit, zeroed};
use std::time::Duration;

/// A signal mask.
#[derive(Clone, Copy)]
pub struct Mask(libc::sigset_t);

impl Mask {
    /// Exactly these signals.
    pub fn of(signals: &[i32]) -> Mask {
        // SAFETY: an all-zero sigset_t is a valid one, and sigaddset refuses numbers that are no signals.
        unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            Mask(set)
        }
    }

    /// Make it this process's mask.
    pub fn apply(&self) {
        // SAFETY: the set is a valid one and nothing is stored.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Block everything; returns the mask from before.
pub fn block_all() -> Mask {
    // SAFETY: both sets live on the stack for the whole call; an all-zero sigset_t is a valid one.
    unsafe {
        let mut all: libc::sigset_t = zeroed();
        let mut before: libc::sigset_t = zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        Mask(before)
    }
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
pub fn wait(mask: &Mask, limit: Option<Duration>) -> Option<Arrived> {
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    let timeout = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: set and timeout (or NULL) are valid for the call; the kernel fills in info when it returns a signal.
    let signal = unsafe { libc::sigtimedwait(&raw const mask.0, info.as_mut_ptr(), timeout) };
    if signal <= 0 {
        return None;
    }
    // SAFETY: a positive result means that info was filled in; si_pid only reads bytes of that union.
    let (code, sender) = unsafe { (info.assume_init_ref().si_code, info.assume_init_ref().si_pid()) };
    Some(Arrived { signal, from_kernel: code == libc::SI_KERNEL, sender })
}

/// kill(2) of one process.
pub fn send(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two numbers; a Pid is positive, so it is never a group or everybody.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } == -1 { Err(last_error()) } else { Ok(()) }
}

/// kill(2) of this process.
pub fn send_to_self(signal: i32) {
    // SAFETY: as above; getpid never fails.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// Set the action of a signal to default.
pub fn default_action(signal: i32) {
    // SAFETY: SIG_DFL is no function, so no code can run in a signal context.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Whether a signal is ignored, as it may be from before exec.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a NULL new action sigaction only fills in the old one, which is read only if it said so.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init_ref().sa_sigaction == libc::SIG_IGN
    }
}

/// Ignore a signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no function, so no code can run in a signal context.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// End this process by `signal`, without a core file: the caller sees what happened to the command.
/// Every other signal must be blocked, or one that is pending may be what ends it.
pub fn die_of(signal: i32) -> ! {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    default_action(signal);
    // SAFETY: the limit is read from a valid struct; an all-zero sigset_t is a valid one, and lives for the call.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        send_to_self(signal);
        let set = Mask::of(&[signal]);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set.0, std::ptr::null_mut()); // delivered before it returns
    }
    super::exit_now(128 + signal)
}
