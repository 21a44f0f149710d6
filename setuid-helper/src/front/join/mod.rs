//! `sandbox exec ID -- COMMAND`: run a command inside a run, with no more rights than what runs there has. The same as
//! sandbox/joining.py and sandbox/engine/join.py, and for the same reasons, but for what can go wrong: whatever is not
//! as it should be is left to these two, which look again and say it.
//!
//! What a record says decides nothing that the kernel would not let this user do: the command is opened by pidfd, its
//! namespaces are entered by that, and everything else is taken from it.

mod enter;
mod find;
mod target;

use crate::environment::Environment;
use crate::error::{Failure, LAUNCHER_FAILED};
use crate::plan;
use crate::prelude::*;
use crate::report::Ending;
use crate::setuid::Rights;
use crate::supervisor::{self, Inherited, Reports};
use crate::sys::{self, Forked};
use core::ffi::CStr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getpid, set_child_subreaper};
use target::Target;

/// How the command ended; None where it is Python's to find out why it did not start.
pub fn run(words: &[&'static CStr], environment: &[&'static CStr], rights: Rights) -> Option<Result<Ending, Failure>> {
    // A directory among what comes along would lead out of the sandbox: the command, and whoever else is in there.
    let leads_out = (0..3).any(sys::is_directory);
    let (id, command) = split(words).filter(|_| !rights.are_lent() && !leads_out)?;
    let run = find::find(id.to_bytes(), environment)?;
    let plan = plan::decode(&run.plan).ok()?;
    let target = Target::look(&run, &plan)?;
    let environment = environment_of(&target)?;
    run.mark_joined().ok()?;
    match join(&target, &environment, command)? {
        Err(failure) if failure.code == LAUNCHER_FAILED => None,
        ended => Some(ended),
    }
}

/// `exec ID [--] COMMAND ...`, without options.
fn split<'w>(words: &'w [&'static CStr]) -> Option<(&'static CStr, &'w [&'static CStr])> {
    let (&[exec, id], rest) = words.split_at_checked(2)? else { return None };
    let command = if rest.first() == Some(&c"--") { &rest[1..] } else { rest };
    let first = command.first()?.to_bytes();
    // What begins so may be an option, or a second `--`.
    let is_plain = |word: &[u8]| !word.is_empty() && !word.starts_with(b"-");
    (exec == c"exec" && is_plain(id.to_bytes()) && is_plain(first)).then_some((id, command))
}

/// The target's, each variable once.
fn environment_of(target: &Target) -> Option<Environment<'static>> {
    let mut environment = Environment::own(Vec::new());
    for entry in target.environment.split(|byte| *byte == 0) {
        if let Some(equals @ 1..) = entry.iter().position(|byte| *byte == b'=') {
            environment.set(&entry[..equals], &entry[equals + 1..]);
        }
    }
    Some(environment)
}

/// Fork the process that goes in, and wait for what becomes of it. None when there is none.
fn join(target: &Target, environment: &Environment, command: &[&CStr]) -> Option<Result<Ending, Failure>> {
    let (report, writer) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    set_child_subreaper(Some(getpid())).ok()?;
    let inherited = Inherited::take();
    let forked = Reports::open().and_then(|(reports, status)| Ok((enter::fork(target)?, reports, status)));
    let Ok((forked, reports, status)) = forked else {
        enter::stay_outside();
        inherited.restore();
        return None;
    };
    match forked {
        Forked::Child => {
            let failure = enter::become_command(target, environment, command, &writer, &status, &inherited);
            supervisor::report_failure(&writer, &failure)
        }
        Forked::Parent(first) => {
            drop((writer, status));
            let ending = supervisor::attend(first, &reports);
            let Some(failure) = supervisor::read_failure(&report) else { return Some(Ok(ending)) };
            enter::stay_outside();
            inherited.restore();
            let code = if let Ending::Exited(code) = ending { code } else { LAUNCHER_FAILED };
            Some(Err(failure.code(code)))
        }
    }
}
