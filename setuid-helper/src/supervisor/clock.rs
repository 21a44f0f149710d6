//! The time that a job has: a `Timeout` step of the plan, or all of it.

use super::leftovers;
use crate::cgroup::Cgroup;
use crate::error::{Doing, Outcome};
use crate::plan::{Plan, Step};
use crate::prelude::*;
use crate::sys;
use core::time::Duration;

/// When everything is asked to end, and when it is killed.
pub struct Clock<'c> {
    /// Whether the time was up.
    pub is_up: bool,
    /// What comes next.
    deadline: Option<Duration>,
    kill_after: Duration,
    cgroup: Option<&'c Cgroup>,
}

impl<'c> Clock<'c> {
    /// There is no end to it.
    pub fn endless() -> Clock<'c> {
        Clock { is_up: false, deadline: None, kill_after: Duration::ZERO, cgroup: None }
    }

    /// It starts now.
    pub fn start(plan: &Plan, cgroup: Option<&'c Cgroup>) -> Outcome<Clock<'c>> {
        let timeout = plan.steps.iter().find_map(|step| match *step {
            Step::Timeout { limit_ns, kill_after_ns } => Some((limit_ns, kill_after_ns)),
            _ => None,
        });
        let Some((limit, kill_after)) = timeout else {
            return Ok(Clock::endless());
        };
        let deadline = sys::now() + Duration::from_nanos(limit);
        // A job that stops stops its supervisor, and must not stop the clock by that.
        sys::continue_at(deadline).doing("start a timer", b"")?;
        Ok(Clock { is_up: false, deadline: Some(deadline), kill_after: Duration::from_nanos(kill_after), cgroup })
    }

    /// How long there is nothing to do.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(sys::now()))
    }

    /// What the time that has come demands: once SIGTERM, then SIGKILL, again and again.
    pub fn strike(&mut self) {
        if self.left() != Some(Duration::ZERO) {
            return;
        }
        let next = if self.is_up {
            if let Some(cgroup) = self.cgroup {
                cgroup.kill();
            }
            leftovers::kill_all();
            leftovers::LOOK
        } else {
            leftovers::ask_all(&mut Vec::new());
            self.kill_after
        };
        self.is_up = true;
        self.deadline = Some(sys::now() + next);
    }
}
