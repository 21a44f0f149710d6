//! User namespaces with maps of ranges, made before the fork: what writes such maps has to stay outside of them.

use super::identity::{become_command_ids, open_user_namespace, write_maps};
use super::spawn::{last_words, open_null, spawn};
use super::{Child, explained};
use crate::error::{Doing, Failure, Outcome, printable};
use crate::plan::{Plan, Step, Strings, Words};
use crate::prelude::*;
use crate::setuid::Rights;
use crate::sys::{self, Forked};
use alloc::ffi::CString;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, WaitOptions, set_dumpable_behavior, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const DONE: &[u8] = b"ok";
const MESSAGE: usize = 4096;
const REMEDY: &str =
    "mend this user's lines in /etc/subuid and /etc/subgid, or remove them: then there is one id inside";

/// A `UserNamespace` step.
#[derive(Clone, Copy)]
struct Wanted<'p> {
    uids: Words<'p>,
    gids: Words<'p>,
    programs: Strings<'p>,
    /// The command's ids where they are not the user's.
    owner: Option<(u32, u32)>,
    rights: Rights,
}

/// Those of all `UserNamespace` steps in their order, each in the one before.
pub fn user_namespaces(plan: &Plan, rights: Rights) -> Outcome<Vec<OwnedFd>> {
    let owner = plan
        .steps
        .iter()
        .find_map(|step| if let Step::Identity { uid, gid } = *step { Some((uid, gid)) } else { None });
    let mut made: Vec<OwnedFd> = Vec::new();
    for step in &plan.steps {
        let Step::UserNamespace { uids, gids, programs } = *step else { continue };
        let wanted = Wanted { uids, gids, programs, owner, rights };
        let found = made.last().map_or_else(|| wanted.make(), |outer| wanted.make_in(outer));
        made.push(found.map_err(|failure| explained(step, failure, plan))?);
    }
    Ok(made)
}

impl Child<'_> {
    pub fn enter_user_namespace(&mut self) -> Outcome<()> {
        let all = self.prepared.user_namespaces;
        let next = all.get(self.entered).ok_or_else(|| Failure::new("there is no such user namespace"))?;
        self.entered += 1;
        enter(next)
    }
}

fn enter(userns: &OwnedFd) -> Outcome<()> {
    move_into_link_name_space(userns.as_fd(), Some(LinkNameSpaceType::User)).doing("enter a user namespace", b"")
}

impl Wanted<'_> {
    fn make(self) -> Outcome<OwnedFd> {
        let enter = || {
            self.owner.map_or(Ok(()), |(uid, gid)| become_command_ids(uid, gid))?;
            sys::unshare(libc::CLONE_NEWUSER as u64).doing("make a user namespace", b"")?;
            set_dumpable_behavior(DumpableBehavior::Dumpable).doing("open the maps of", b"/proc/self")
        };
        of_process(enter, |pid| self.map(pid))
    }

    /// Its maps are written by a process of the outer one, which has every right there.
    fn make_in(self, outer: &OwnedFd) -> Outcome<OwnedFd> {
        of_process(|| enter(outer).and_then(|()| self.make()).and_then(|inner| enter(&inner)), |_| Ok(()))
    }

    fn map(self, pid: Pid) -> Outcome<()> {
        let mut programs = self.programs.iter();
        if let (Some(of_uids), Some(of_gids)) = (programs.next(), programs.next()) {
            return self.run(of_uids, pid, self.uids).and_then(|()| self.run(of_gids, pid, self.gids));
        }
        write_maps(pid, &lines(self.uids), &lines(self.gids)).doing("map the ids of a user namespace", b"")
    }

    fn run(self, program: &[u8], pid: Pid, words: Words) -> Outcome<()> {
        let numbers = words.iter().map(|word| word.to_string());
        let texts = core::iter::once(pid.as_raw_nonzero().to_string()).chain(numbers);
        let program_alone = CString::new(program).unwrap_or_default();
        let mut argv = vec![program_alone];
        argv.extend(texts.map(|text| CString::new(text).unwrap_or_default()));
        let (null, output) = (open_null()?, memfd_create("sandbox-message", MemfdFlags::CLOEXEC));
        let output = output.doing("start", program)?;
        let fds = [(null.as_fd(), 0), (output.as_fd(), 1), (output.as_fd(), 2)];
        let started = spawn(&argv, &fds, self.rights, || true)?;
        let ended = waitpid(Some(started), WaitOptions::empty()).doing("wait for", program)?;
        if ended.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
            return Ok(());
        }
        let said = last_words(&output, MESSAGE);
        let program = printable(program);
        let why = format!("--as-root: {program} does not give this user its subordinate ids: {said}");
        Err(Failure::new(why).hint(REMEDY))
    }
}

/// The user namespace that a process has entered, which waits until `then` is done with it.
fn of_process(enter: impl FnOnce() -> Outcome<()>, then: impl FnOnce(Pid) -> Outcome<()>) -> Outcome<OwnedFd> {
    let what = "make a user namespace";
    let (wait, done) = pipe_with(PipeFlags::CLOEXEC).doing(what, b"")?;
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC).doing(what, b"")?;
    let pid = match sys::fork().doing(what, b"")? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            drop((done, ready));
            let said = enter().map_or_else(|failure| last_words_of(&failure), |()| DONE.to_vec());
            let _ = write(&tell, &said[..said.len().min(MESSAGE)]);
            let _ = read(&wait, &mut [0u8; 1]);
            sys::exit_now(0)
        }
    };
    drop((wait, tell));
    let mut said = vec![0; MESSAGE];
    let length = read(&ready, said.as_mut_slice()).unwrap_or(0);
    let made = match &said[..length] {
        DONE => then(pid).and_then(|()| open_user_namespace(pid).doing("open a user namespace", b"")),
        said => Err(failure_of(said)),
    };
    drop(done);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    made
}

/// A failure as bytes: the kernel's reason, or 0, and the line.
fn last_words_of(failure: &Failure) -> Vec<u8> {
    let number = failure.errno.map_or(0, Errno::raw_os_error);
    [&number.to_le_bytes(), failure.text().as_bytes()].concat()
}

fn failure_of(said: &[u8]) -> Failure {
    let Some((number, message)) = said.split_first_chunk::<4>() else {
        return Failure::new("the process that makes a user namespace has died");
    };
    let mut failure = Failure::new(printable(message));
    failure.errno = Some(i32::from_le_bytes(*number)).filter(|number| *number != 0).map(Errno::from_raw_os_error);
    failure
}

/// Ranges as the kernel reads them: user_namespaces(7).
pub fn lines(words: Words) -> String {
    let all: Vec<u64> = words.iter().collect();
    all.chunks(3).map(|range| range.iter().map(|word| format!("{word} ")).collect::<String>() + "\n").collect()
}
