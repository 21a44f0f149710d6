//! What the supervisor counts in the end: an overlay's upper, or a copy.

use super::Child;
use crate::attendance::send_fds;
use crate::error::{Doing, Outcome};
use crate::fsops::open_path;
use crate::plan::{Slot, Step};
use crate::prelude::*;
use crate::sys;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};

/// The clock of a filesystem ticks this often at least, in nanoseconds (CONFIG_HZ=100).
const TICK: i64 = 10_000_000;

impl Child<'_> {
    /// All in an upper is changed; in a copy, what is younger than the copy.
    pub fn count_changes(&mut self, slot: Slot) -> Outcome<()> {
        let upper = self.prepared.plan.steps.iter().find_map(|step| match *step {
            Step::Overlay { slot: made, upper, .. } if made == slot => Some(upper),
            _ => None,
        });
        let path = upper.map_or_else(|| ".".to_string(), |_| format!("{slot}/upper"));
        let root = &self.mount(upper.unwrap_or(slot))?.root;
        let directory = open_path(root, path.as_bytes()).doing("open what is changed", b"")?;
        let since = if upper.is_some() { 0 } else { tick() };
        let socket = self.prepared.exchange.ok_or(Errno::BADF).doing("tell the supervisor", b"")?;
        send_fds(socket.as_fd(), &since.to_le_bytes(), &[directory.as_fd()]).doing("tell the supervisor", b"")
    }
}

/// Now, in nanoseconds since 1970; what is changed from here on is younger.
fn tick() -> i64 {
    let now = i64::try_from(sys::wall_clock().as_nanos()).unwrap_or(i64::MAX);
    let mut left = Timespec { tv_sec: 0, tv_nsec: TICK };
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
    now
}
