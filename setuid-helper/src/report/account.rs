//! What there is to tell about a run.

use crate::error::{Doing, Failure, Outcome};
use crate::plan::{Plan, Resource, Step};
use crate::prelude::*;
use crate::sys;
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Killed(i32),
}

/// What the processes that were reaped had used, by themselves and by those that they had reaped.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The largest resident set of a single process, in bytes.
    pub largest: u64,
    /// Bytes read from storage.
    pub read: u64,
    /// Bytes written to storage.
    pub written: u64,
}

impl Usage {
    /// And what one more had used.
    pub fn add(&mut self, other: &Usage) {
        self.user += other.user;
        self.system += other.system;
        self.largest = self.largest.max(other.largest);
        self.read += other.read;
        self.written += other.written;
    }
}

/// What the run's cgroup tells, where there is one.
#[derive(Clone, Copy, Default)]
pub struct Peaks {
    /// The most memory at a time, in bytes.
    pub memory: Option<u64>,
    /// The most processes at a time.
    pub processes: Option<u64>,
    /// How many were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// How often no process more could be made.
    pub forks_refused: Option<u64>,
}

/// A part of the launch.
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// On the clock of `sys::now`.
    pub start: Duration,
    /// The same.
    pub end: Duration,
}

/// Everything about one run.
pub struct Account {
    /// In their order.
    pub phases: Vec<Phase>,
    /// How the command ended, if it was started.
    pub ending: Option<Ending>,
    /// Why it could not be started.
    pub failure: Option<(i32, String)>,
    /// Whether its time was up.
    pub timed_out: bool,
    /// What it used.
    pub usage: Usage,
    /// Of its cgroup.
    pub peaks: Peaks,
    /// From the exec of the command to its end.
    pub wall: Option<Duration>,
    /// The hard limit of processor time.
    pub cpu_limit: Option<Duration>,
    /// How many changed files of the workspace are gone, where that was counted.
    pub discarded: Option<u64>,
    /// What the attendant had to say: members of a JSON object.
    pub attended: Vec<u8>,
    /// Whether the size of files is limited.
    pub file_limit: bool,
    last: Duration,
}

impl Account {
    /// From now on.
    pub fn start() -> Account {
        Account {
            phases: Vec::new(),
            ending: None,
            failure: None,
            timed_out: false,
            usage: Usage::default(),
            peaks: Peaks::default(),
            wall: None,
            cpu_limit: None,
            discarded: None,
            attended: Vec::new(),
            file_limit: false,
            last: sys::now(),
        }
    }

    /// What the plan says that matters for the account.
    pub fn note(&mut self, plan: &Plan) {
        for step in &plan.steps {
            match *step {
                Step::Limit { resource: Resource::CpuSeconds, hard, .. } => {
                    self.cpu_limit = Some(Duration::from_secs(hard));
                }
                Step::Limit { resource: Resource::FileBytes, .. } => self.file_limit = true,
                _ => {}
            }
        }
    }

    /// A phase ends now; the next one starts.
    pub fn phase(&mut self, name: &'static str) {
        self.phase_until(name, sys::now());
    }

    fn phase_until(&mut self, name: &'static str, end: Duration) {
        self.phases.push(Phase { name, start: self.last, end });
        self.last = end;
    }

    /// The end of the command, and what its process marked while it set up: a phase per step, then the command.
    pub fn ended(&mut self, ending: Ending, marks: Option<&Marks>, plan: &Plan) {
        self.ending = Some(ending);
        let end = sys::now();
        let Some(marks) = marks else { return };
        let times = marks.read();
        let names = ["Fork"].into_iter().chain(plan.steps.iter().map(Step::name)).chain(["Exec"]);
        for (name, time) in names.zip(&times) {
            self.phase_until(name, *time);
        }
        if times.len() == plan.steps.len() + 2 {
            self.wall = Some(end.saturating_sub(self.last));
        }
        self.phase_until("Command", end);
    }

    /// The launch failed.
    pub fn failed(&mut self, failure: &Failure) {
        self.failure = Some((failure.code, failure.text()));
    }

    /// Why it ended, and the limit where it was one.
    pub fn cause(&self) -> (&'static str, Option<&'static str>) {
        let shell = |signal: i32| [Some(Ending::Killed(signal)), Some(Ending::Exited(128 + signal))];
        let cpu = self.usage.user + self.usage.system;
        let is_fine = self.ending == Some(Ending::Exited(0));
        let is_killed = shell(libc::SIGKILL).contains(&self.ending);
        if self.failure.is_some() || self.ending.is_none() {
            ("launcher", None)
        } else if self.timed_out {
            ("timeout", None)
        } else if !is_fine && self.peaks.oom_kills.is_some_and(|count| count > 0) {
            ("oom", None)
        } else if self
            .cpu_limit
            .is_some_and(|hard| shell(libc::SIGXCPU).contains(&self.ending) || is_killed && cpu >= hard)
        {
            ("limit", Some("cpu-time"))
        } else if self.file_limit && shell(libc::SIGXFSZ).contains(&self.ending) {
            ("limit", Some("fsize"))
        } else if !is_fine && self.peaks.forks_refused.is_some_and(|count| count > 0) {
            ("limit", Some("pids"))
        } else if matches!(self.ending, Some(Ending::Exited(_))) {
            ("exited", None)
        } else {
            ("signalled", None)
        }
    }
}

/// Times that the child notes for its supervisor, in memory that both have open.
pub struct Marks {
    times: OwnedFd,
    /// Gets a byte for each, where somebody waits for it. So many fit into every pipe.
    ticks: Option<OwnedFd>,
}

impl Marks {
    /// None yet.
    pub fn new(ticks: Option<OwnedFd>) -> Outcome<Marks> {
        let times = memfd_create("sandbox-marks", MemfdFlags::CLOEXEC).doing("make a memory file", b"")?;
        Ok(Marks { times, ticks })
    }

    /// In the child: note the time.
    pub fn mark(&self) {
        let now = u64::try_from(sys::now().as_nanos()).unwrap_or(u64::MAX);
        let _ = rustix::io::write(&self.times, &now.to_le_bytes());
        if let Some(ticks) = &self.ticks {
            let _ = rustix::io::write(ticks, b".");
        }
    }

    /// In the supervisor, once there is a child: the ticks end with it.
    pub fn let_go(&mut self) {
        self.ticks = None;
    }

    fn read(&self) -> Vec<Duration> {
        let mut times = Vec::new();
        let mut words = [0u8; 1024];
        while let Ok(length @ 8..) = rustix::io::pread(&self.times, words.as_mut_slice(), times.len() as u64 * 8) {
            let read = words[..length].chunks_exact(8).filter_map(|word| word.try_into().ok());
            times.extend(read.map(|word| Duration::from_nanos(u64::from_le_bytes(word))));
        }
        times
    }
}
