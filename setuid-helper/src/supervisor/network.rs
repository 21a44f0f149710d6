//! The end of a private network: whoever holds the other end of its socket takes down what was made for the run.

use crate::error::{Doing, Outcome};
use crate::plan::{Plan, Step};
use crate::sources::Sources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{Shutdown, shutdown};

/// How long that may take, in seconds.
const PATIENCE: i64 = 10;

/// Our end. When the supervisor is killed the kernel closes it, which says the same.
pub struct Network(OwnedFd);

impl Network {
    /// That of the plan.
    pub fn of(plan: &Plan, sources: &Sources) -> Outcome<Option<Network>> {
        let source = plan.steps.iter().find_map(|step| match *step {
            Step::Network { source, .. } => Some(source),
            _ => None,
        });
        let Some(source) = source else { return Ok(None) };
        fcntl_dupfd_cloexec(sources.file(source)?, 3)
            .doing("keep the socket of the network", b"")
            .map(Network)
            .map(Some)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if shutdown(&self.0, Shutdown::Write).is_err() {
            return;
        }
        // It closes its end as its last act.
        let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit));
    }
}
