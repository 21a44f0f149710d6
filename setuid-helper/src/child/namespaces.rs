//! Steps about the process itself: namespaces, ids, propagation, what it may still gain, and when it dies.

use super::{Child, birth};
use crate::attendance::{receive_fd, send_fds};
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome};
use crate::fsops::{open_path, read_all};
use crate::plan::{Propagation, Step};
use crate::prelude::*;
use crate::setuid::{MOUNT, Rights};
use crate::sys::{self, Namespace};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{DumpableBehavior, Pid, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An optional field of /proc/PID/mountinfo: proc_pid_mountinfo(5).
const UNBINDABLE: &[u8] = b" unbindable ";

impl Child<'_> {
    pub fn unshare(&mut self, flags: u64) -> Outcome<()> {
        let is_apart = flags & NETWORK != 0 && self.has_init_for_network();
        if flags & NETWORK != 0 && self.prepared.rights.are_lent() && self.prepared.plan.has_network() {
            let [left] = sys::own_namespaces([Namespace::NET]).doing("look at the network namespace", b"")?;
            self.left_network = Some(left);
        }
        let raised = self.prepared.rights.raise(MOUNT);
        let done = raised.and_then(|_raised| sys::unshare(if is_apart { flags & !NETWORK } else { flags }));
        done.doing("make the namespaces", b"")?;
        if flags & libc::CLONE_NEWNS as u64 != 0 {
            // A descriptor from before cannot be mounted onto.
            self.procdirs = None;
            self.procdir = None;
        }
        if is_apart { self.leave_network_to_init() } else { Ok(()) }
    }

    /// A network namespace takes as long as all mounts together: the init can make it beside them.
    fn has_init_for_network(&self) -> bool {
        let steps = &self.prepared.plan.steps;
        let has_loopback = steps.iter().any(|step| matches!(step, Step::Loopback));
        let forks = steps.iter().any(|step| matches!(step, Step::Init { as_pid_1: false }));
        has_loopback && forks && birth(self.prepared.plan).is_some() && !self.prepared.rights.are_lent()
    }

    /// Whose a failure of this step is: what it waits for may be part of an earlier one.
    pub fn to_blame<'a>(&self, step: &'a Step<'a>, steps: &'a [Step<'a>]) -> &'a Step<'a> {
        if let Some(which) = self.mapping {
            return steps.iter().filter(|step| step.maps_mount_ids()).nth(which).unwrap_or(step);
        }
        let makes_network = |step: &&Step| matches!(step, Step::Unshare { flags } if flags & NETWORK != 0);
        let waits = matches!(step, Step::Loopback) && self.network.is_some();
        if waits { steps.iter().find(makes_network).unwrap_or(step) } else { step }
    }
}

const NETWORK: u64 = libc::CLONE_NEWNET as u64;

/// What could not be had of a network namespace whose loopback device is up.
pub enum NoNetwork {
    Namespace(Errno),
    Loopback(Errno),
}

/// Make a network namespace with its loopback device up, and hand it over; or the number of the error, which is negative where
/// there is a namespace.
pub fn make_network(to: &OwnedFd) -> Result<(), Errno> {
    let up = || sys::loopback_up().and_then(|socket| sys::network_of(&socket));
    let made = sys::unshare(NETWORK).map_err(Errno::raw_os_error).and_then(|()| up().map_err(|it| -it.raw_os_error()));
    match made {
        Ok(network) => send_fds(to.as_fd(), &[0; 4], &[network.as_fd()]),
        Err(error) => rustix::io::write(to, &error.to_ne_bytes()).map(drop),
    }
}

/// Enter the network namespace that comes out of here.
pub fn join_network(from: &OwnedFd) -> Result<(), NoNetwork> {
    poll(&mut [PollFd::new(from, PollFlags::IN)], None).map_err(NoNetwork::Namespace)?;
    let mut error = [0; 4];
    if let Some(network) = receive_fd(from.as_fd(), &mut error) {
        let moved = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network));
        return moved.map_err(NoNetwork::Namespace);
    }
    match i32::from_ne_bytes(error) {
        up @ ..0 => Err(NoNetwork::Loopback(Errno::from_raw_os_error(up.saturating_neg()))),
        made => Err(NoNetwork::Namespace(Errno::from_raw_os_error(made.max(1)))),
    }
}

/// One-id maps; `(inside, outside)`.
pub fn id_map(uid: (u32, u32), gid: (u32, u32)) -> Outcome<()> {
    // A change of ids took the right to: these files are those of a dumpable process. No helper comes here.
    set_dumpable_behavior(DumpableBehavior::Dumpable).doing("open the maps of", b"/proc/self")?;
    // gid_map can be written without privilege only after setgroups is denied: user_namespaces(7).
    write_own("setgroups", "deny")?;
    write_own("uid_map", &format!("{} {} 1", uid.0, uid.1))?;
    write_own("gid_map", &format!("{} {} 1", gid.0, gid.1))
}

fn write_own(name: &str, text: &str) -> Outcome<()> {
    let path = format!("/proc/self/{name}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = openat(CWD, &path, flags, Mode::empty()).doing("open", path.as_bytes())?;
    rustix::io::write(fd, text.as_bytes()).doing("write", path.as_bytes()).map(drop)
}

pub fn set_propagation(kind: Propagation, rights: Rights) -> Outcome<()> {
    if rights.are_lent() {
        return set_propagation_by_descriptor(kind, rights);
    }
    let flags = match kind {
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Private => MountPropagationFlags::PRIVATE,
    };
    mount_change("/", flags | MountPropagationFlags::REC).doing("set the propagation of", b"/")
}

/// An unbindable mount would be left out of every clone, and what it hides would show. A private one is bindable.
fn set_propagation_by_descriptor(kind: Propagation, rights: Rights) -> Outcome<()> {
    let root = open_path(CWD, b"/").doing("open", b"/")?;
    let path = "/proc/self/mountinfo";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mounts = openat(CWD, path, flags, Mode::empty()).and_then(|fd| read_all(fd, usize::MAX));
    let hides = mounts.doing("read", path.as_bytes())?.windows(UNBINDABLE.len()).any(|window| window == UNBINDABLE);
    let propagation = if hides || kind == Propagation::Private { libc::MS_PRIVATE } else { libc::MS_SLAVE };
    let raised = rights.raise(MOUNT);
    raised.and_then(|_raised| sys::set_propagation(root.as_fd(), propagation)).doing("set the propagation of", b"/")
}

pub fn no_new_privs() -> Outcome<()> {
    rustix::thread::set_no_new_privs(true).doing("set no_new_privs", b"")
}

pub fn death_signal(signal: u32, supervisor: Option<Pid>) -> Outcome<()> {
    let number = i32::try_from(signal).ok().and_then(Signal::from_named_raw);
    let signal = number.ok_or_else(|| Failure::os("set the death signal", b"", Errno::INVAL))?;
    set_parent_process_death_signal(Some(signal)).doing("set the death signal", b"")?;
    // It may have died before the call.
    if getppid() != supervisor {
        sys::exit_now(LAUNCHER_FAILED);
    }
    Ok(())
}
