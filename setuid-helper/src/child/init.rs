//! A pid namespace, and its init: reaps, forwards, and reports, as it can neither stop nor die of a signal.

use super::identity::{become_command_ids, drop_capabilities};
use super::namespaces::make_network;
use super::{Child, birth};
use crate::attendance::pair;
use crate::error::{Doing, LAUNCHER_FAILED, Outcome};
use crate::setuid::MOUNT;
use crate::supervisor::{FORWARDED, Report};
use crate::sys::{self, Forked, Mask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, chdir, set_dumpable_behavior,
    set_parent_process_death_signal, setsid, wait,
};
use rustix::thread::set_no_new_privs;

impl Child<'_> {
    /// Go on in a new pid namespace, as the child of its init or as the init, and in a session of its own: `kill(0)`
    /// must not reach the launcher's process group.
    pub fn enter_pid_namespace(&mut self, as_pid_1: bool) -> Outcome<()> {
        if self.has_init { Ok(()) } else { self.fork_from_init(as_pid_1, None) }
    }

    /// Do so now, and let the init make the network namespace while this process goes on.
    pub fn leave_network_to_init(&mut self) -> Outcome<()> {
        let (here, there) = pair().doing("make a socket", b"")?;
        self.fork_from_init(false, Some(there))?;
        self.network = Some(here);
        Ok(())
    }

    fn fork_from_init(&mut self, as_pid_1: bool, network: Option<OwnedFd>) -> Outcome<()> {
        let Some(status) = self.prepared.status else { return Err(Errno::BADF).doing("report to the supervisor", b"") };
        sys::block_all();
        if birth(self.prepared.plan).is_none() {
            let raised = self.prepared.rights.raise(MOUNT);
            let forked = raised.and_then(|_raised| sys::fork_beside(libc::CLONE_NEWPID));
            if let Forked::Parent(init) = forked.doing("make a pid namespace", b"")? {
                Report::Started(init).send(status);
                sys::exit_now(0);
            }
        }
        die_with_supervisor(status).doing("set the death signal", b"")?;
        if !as_pid_1 && let Forked::Parent(command) = sys::fork().doing("fork", b"")? {
            if let Some(socket) = network {
                // What goes wrong ends the process that waits for it, and tells there.
                let _ = make_network(&socket);
            }
            let _ = self.be_init(status, command);
            sys::exit_now(LAUNCHER_FAILED);
        }
        setsid().doing("start a session", b"")?;
        sys::leave_session_keyring();
        // A process outside has no number in here: pid_namespaces(7).
        self.prepared.supervisor = if as_pid_1 { None } else { Some(Pid::INIT) };
        self.prepared.inherited.mask.apply();
        self.has_init = true;
        Ok(())
    }

    /// With no more rights than the command, and not to be traced by it. Returns only when that cannot be had.
    fn be_init(&self, status: &OwnedFd, command: Pid) -> Outcome<()> {
        // At once, and again: the command, which may be there soon, is never to find an init with its own rights and this
        // unset, and a change of ids sets it to fs.suid_dumpable.
        hide_memory()?;
        chdir("/").doing("change to", b"/")?;
        if let Some((uid, gid)) = self.owner {
            become_command_ids(uid, gid)?;
            hide_memory()?;
        }
        drop_capabilities(self.prepared.rights)?;
        set_no_new_privs(true).doing("set no_new_privs", b"")?;
        // Again: a change of ids cleared it.
        die_with_supervisor(status).doing("set the death signal", b"")?;
        sys::keep_only(&[status.as_fd()]);
        serve(status, command, self.prepared.plan.has_terminal())
    }
}

/// Nobody without more rights traces this process, nor reads what `/proc` says of it.
fn hide_memory() -> Outcome<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide the memory of the init", b"")
}

/// The supervisor is the parent, and reads the other end of the pipe.
pub fn die_with_supervisor(status: &OwnedFd) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut ends = [PollFd::new(status, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut ends, Some(&now))? > 0 {
        sys::exit_now(LAUNCHER_FAILED);
    }
    Ok(())
}

fn serve(status: &OwnedFd, command: Pid, has_terminal: bool) -> ! {
    let mut signals = [libc::SIGCHLD; FORWARDED.len() + 1];
    signals[1..].copy_from_slice(&FORWARDED);
    let mask = Mask::of(&signals);
    loop {
        match sys::wait(mask, None) {
            Some(arrived) if arrived.signal == libc::SIGCHLD => reap(status, command),
            Some(arrived) if has_terminal && arrived.signal == libc::SIGWINCH => {}
            // Who is outside has no number in here.
            Some(arrived) if arrived.sender == 0 => forward(command, arrived.signal, arrived.from_kernel),
            _ => {}
        }
    }
}

/// What a terminal sends is for the whole group. Its stop would be ignored there: no shell is in that session.
fn forward(command: Pid, signal: i32, from_terminal: bool) {
    let signal = if signal == libc::SIGTSTP { libc::SIGSTOP } else { signal };
    if from_terminal || signal == libc::SIGSTOP || signal == libc::SIGCONT {
        let _ = sys::send_to_group(command, signal);
    } else {
        let _ = sys::send(command, signal);
    }
}

/// After the end of the command this process waits for the supervisor to end it, and with it all that is left.
fn reap(status: &OwnedFd, command: Pid) {
    loop {
        match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(Some((pid, what))) if pid == command => report(status, what),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

fn report(status: &OwnedFd, what: WaitStatus) {
    let report = if let Some(code) = what.exit_status() {
        Report::Exited(code)
    } else if let Some(signal) = what.terminating_signal() {
        Report::Killed(signal)
    } else {
        Report::Stopped
    };
    report.send(status);
}
