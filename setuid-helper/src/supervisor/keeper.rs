//! Leaving processes running: somebody has to hold the record until the last one ends, and clean up then.

use crate::record::Record;
use crate::stale::members;
use crate::sys::{self, Forked};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Let go of the run. While a process lives in its namespaces, removing its procdir on the host would take its mounts
/// away, so a process of its own stays behind for that; otherwise this is only the cleaning up.
pub fn leave(record: Record) {
    if members(&record.id).is_ok_and(|left| left.is_empty()) {
        return;
    }
    match sys::fork() {
        Ok(Forked::Parent(_)) => core::mem::forget(record), // the lock is shared with the child
        Ok(Forked::Child) => {
            let_go();
            wait_for_last(&record);
            drop(record);
            sys::exit_now(0)
        }
        // Nobody can stay behind: what is left running keeps its mounts, and the next launch cleans up.
        Err(_) => core::mem::forget(record),
    }
}

/// Hold nothing that the caller may be waiting for.
fn let_go() {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    if let Ok(null) = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        for number in 0..=2 {
            let _ = sys::place_at(null.as_fd(), number);
        }
    }
}

fn wait_for_last(record: &Record) {
    while let Ok(left) = members(&record.id) {
        let Some(one) = left.first() else { return };
        // Readable when it has ended (pidfd_open(2)).
        let _ = poll(&mut [PollFd::new(one, PollFlags::IN)], None);
    }
}
