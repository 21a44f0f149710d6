//! The caller's terminal: a job that has it open can leave it in any state.

use crate::plan::{Plan, Step};
use crate::sys;
use rustix::fd::BorrowedFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, ioctl_tiocnxcl, tcgetattr, tcgetpgrp, tcsetattr};

/// How the first of descriptors 0 to 2 that is a terminal was before an isolated command got it, and the flags of all
/// three: whoever reads there next shares them (fcntl(2)). With a terminal of its own the command has none of the
/// caller's.
pub struct Settings(Option<(BorrowedFd<'static>, Termios, [Option<OFlags>; 3])>);

impl Settings {
    /// As it is now.
    pub fn of(plan: &Plan) -> Self {
        let isolates = plan.steps.iter().any(|step| matches!(step, Step::Init { .. }));
        if !isolates || plan.has_terminal() {
            return Self(None);
        }
        let flags = || [0, 1, 2].map(|fd| fcntl_getfl(sys::standard(fd)).ok());
        Self((0..3).map(sys::standard).find_map(|fd| Some((fd, tcgetattr(fd).ok()?, flags()))))
    }

    /// As it was, unless it is somebody else's by now: a shell that has put this run into the background.
    pub fn restore(&self) {
        let Some((fd, before, flags)) = &self.0 else { return };
        if tcgetpgrp(fd).is_ok_and(|group| group != getpgrp()) {
            return;
        }
        let _ = ioctl_tiocnxcl(fd);
        let _ = tcsetattr(fd, OptionalActions::Now, before);
        for (fd, flags) in (0..3).map(sys::standard).zip(flags) {
            let _ = flags.map(|flags| fcntl_setfl(fd, flags));
        }
    }
}
