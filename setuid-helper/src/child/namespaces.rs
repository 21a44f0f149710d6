//! Steps about the process itself: namespaces, ids, propagation, what it may still gain, and when it dies.

use super::Child;
use crate::error::{Doing, Failure, LAUNCHER_FAILED, Outcome};
use crate::fsops::{open_path, read_all};
use crate::plan::Propagation;
use crate::prelude::*;
use crate::setuid::{MOUNT, Rights};
use crate::sys;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{DumpableBehavior, Pid, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal};

/// An optional field of /proc/PID/mountinfo: proc_pid_mountinfo(5).
const UNBINDABLE: &[u8] = b" unbindable ";

impl Child<'_> {
    pub fn unshare(&mut self, flags: u64) -> Outcome<()> {
        let raised = self.prepared.rights.raise(MOUNT);
        let done = raised.and_then(|_raised| sys::unshare(flags));
        done.doing("make the namespaces", b"")?;
        if flags & libc::CLONE_NEWNS as u64 != 0 {
            // A descriptor from before cannot be mounted onto.
            self.procdirs = None;
            self.procdir = None;
        }
        Ok(())
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
