//! What is told while a launch goes on: each step that is done, and that the command has been executed.

use crate::error::{Doing, Outcome};
use crate::fsops::read_all;
use crate::plan::{Plan, Step};
use crate::prelude::*;
use crate::report::Reports;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::Pid;

/// The supervisor's end of a pipe that gets a byte for each mark, and ends when the command is executed.
pub struct Progress<'a> {
    told: &'a Reports,
    ticks: OwnedFd,
    /// Where the child says why it could not become the command.
    failure: &'a OwnedFd,
    /// The command is a child of the process that stands for it.
    has_init: bool,
    done: usize,
}

impl<'a> Progress<'a> {
    /// And the other end.
    pub fn new(told: &'a Reports, failure: &'a OwnedFd, plan: &Plan) -> Outcome<(Progress<'a>, OwnedFd)> {
        let (ticks, writer) = super::report::announced_pipe().doing("make a pipe", b"")?;
        let has_init = plan.steps.iter().any(|step| matches!(step, Step::Init { as_pid_1: false }));
        Ok((Progress { told, ticks, failure, has_init, done: 0 }, writer))
    }

    /// Tell what is new; `command` is who stands for the command. False when there is nothing more to come.
    pub fn look(&mut self, command: Pid) -> bool {
        let goes_on = self.take();
        if !goes_on {
            self.conclude(command);
        }
        goes_on
    }

    /// The same where the command has ended. A process that was forked beside it may still have the other end.
    pub fn look_back(mut self, command: Pid) {
        self.take();
        self.conclude(command);
    }

    /// Whether more may come.
    fn take(&mut self) -> bool {
        let mut ticks = [0u8; 256];
        loop {
            match rustix::io::read(&self.ticks, &mut ticks) {
                Ok(0) => return false,
                Ok(count) => {
                    self.told.steps(self.done, count);
                    self.done += count;
                }
                Err(_) => return true,
            }
        }
    }

    fn conclude(&self, command: Pid) {
        let mut failure = [PollFd::new(self.failure, PollFlags::IN)];
        let _ = poll(&mut failure, Some(&Timespec::default()));
        if !failure[0].revents().contains(PollFlags::IN) {
            self.told.started(if self.has_init { first_child(command) } else { Some(command) });
        }
    }
}

/// The oldest child, if it is still there: proc_pid_task(5).
fn first_child(pid: Pid) -> Option<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children", pid = pid.as_raw_nonzero());
    let children = read_all(&openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?, 4096).ok()?;
    let first = children.split(|byte| *byte == b' ').next()?;
    Pid::from_raw(core::str::from_utf8(first).ok()?.parse().ok()?)
}
