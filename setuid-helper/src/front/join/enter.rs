//! Going in. From before the first step inside until the exec nobody can trace or dump who does: what runs in the
//! sandbox has the same uid, and must not take it over while it has more rights. No path is opened inside before every
//! right is gone: what lies there is the sandbox's.
//!
//! A pid namespace takes in children only. Where it is of our own user namespace the supervisor's next child is born in
//! it; else a process enters the user namespace, leaves a second one there as the supervisor's child, and ends.

use super::target::Target;
use crate::cgroup::Cgroup;
use crate::child::{candidates, die_with_supervisor, execute};
use crate::environment::Environment;
use crate::error::{Doing, Failure, Outcome};
use crate::prelude::*;
use crate::procfs;
use crate::supervisor::{Inherited, Report, default_actions};
use crate::sys::{self, CStrings, Forked};
use core::ffi::CStr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Rlimit, Signal, fchdir, getpriority_process, getrlimit, getuid, set_dumpable_behavior,
    set_parent_process_death_signal, setpriority_process, setrlimit, setsid, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, ThreadNameSpaceType, Uid, capabilities,
    clear_ambient_capability_set, move_into_link_name_space, move_into_thread_name_spaces, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Fork the process that goes in, into the cgroup first.
pub fn fork(target: &Target) -> Result<Forked, Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if is_born_inside(target) {
        enter(target, libc::CLONE_NEWPID)?;
    }
    sys::fork_into(0, target.cgroup.as_ref().and_then(Cgroup::birthplace))
}

/// No child to come is born inside any more.
pub fn stay_outside() {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = procfs::own().and_then(|own| openat(own, "ns/pid", flags, Mode::empty()));
    let _ = own.and_then(|own| move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID)));
}

fn is_born_inside(target: &Target) -> bool {
    let has = |kind: i32| target.namespaces & kind != 0;
    has(libc::CLONE_NEWPID) && !has(libc::CLONE_NEWUSER)
}

fn enter(target: &Target, namespaces: i32) -> Result<(), Errno> {
    let kinds = ThreadNameSpaceType::from_bits_retain(namespaces.unsigned_abs());
    move_into_thread_name_spaces(target.pidfd.as_fd(), kinds)
}

/// Go in. Returns only to say why it could not become the command.
pub fn become_command(
    target: &Target,
    environment: &Environment,
    command: &[&CStr],
    writer: &OwnedFd,
    status: &OwnedFd,
    inherited: &Inherited,
) -> Failure {
    let Some(name) = command.first() else { return Failure::new("no command was given") };
    // Made before anything is limited.
    let (argv, variables): (CStrings, CStrings) = (command.iter().copied().collect(), environment.pointers());
    let candidates = candidates(name.to_bytes(), environment);
    if let Err(failure) = go_in(target, status).and_then(|()| confine(target, writer, status)) {
        return failure;
    }
    default_actions();
    inherited.restore_children();
    inherited.mask.apply();
    if !target.filter.is_empty()
        && let Err(error) = sys::install_filter(&target.filter, false)
    {
        return Failure::os("install the seccomp filter", b"", error);
    }
    execute(name, &candidates, &argv, &variables)
}

fn go_in(target: &Target, status: &OwnedFd) -> Outcome<()> {
    die_with_supervisor(status).doing("set the death signal", b"")?;
    target.cgroup.as_ref().map_or(Ok(()), Cgroup::enter)?;
    let namespaces = target.namespaces & if is_born_inside(target) { !libc::CLONE_NEWPID } else { !0 };
    if namespaces != 0 {
        enter(target, namespaces).doing("join the sandbox", b"")?;
    }
    if namespaces & libc::CLONE_NEWPID != 0 {
        leave_second(status)?;
    }
    // To enter a user namespace clears it.
    die_with_supervisor(status).doing("set the death signal", b"")
}

/// Go on as a child of the supervisor's, which is born inside and whose number is told.
fn leave_second(status: &OwnedFd) -> Outcome<()> {
    let (waiting, going) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe", b"")?;
    if let Forked::Parent(second) = sys::fork_beside(0).doing("fork", b"")? {
        Report::Started(second).send(status);
        sys::exit_now(0);
    }
    drop(going);
    // It must not end before its number was told, which is so when the first process has ended.
    let _ = read(&waiting, &mut [0u8; 1]);
    Ok(())
}

/// Nothing more than the target has, from here on.
fn confine(target: &Target, writer: &OwnedFd, status: &OwnedFd) -> Outcome<()> {
    if target.own_session {
        setsid().doing("start a session", b"")?;
        sys::leave_session_keyring();
    }
    fchdir(&target.directory).doing("enter the working directory", b"")?;
    sys::keep_only(&[writer.as_fd(), status.as_fd()]);
    umask(target.umask);
    if getpriority_process(None).doing("look at the nice value", b"")? < target.nice {
        setpriority_process(None, target.nice).doing("set the nice value", b"")?;
    }
    for &(resource, limit) in &target.limits {
        let own = getrlimit(resource);
        let maximum = lower(limit.maximum, own.maximum);
        let wanted = Rlimit { current: lower(limit.current, maximum), maximum };
        if wanted != own {
            setrlimit(resource, wanted).doing("set the limits", b"")?;
        }
    }
    drop_rights(target)?;
    if target.no_new_privs {
        set_no_new_privs(true).doing("set no_new_privs", b"")?;
    }
    // Every change of ids or capabilities clears it.
    set_parent_process_death_signal(Some(Signal::KILL)).doing("set the death signal", b"")
}

fn drop_rights(target: &Target) -> Outcome<()> {
    sys::cut_bounding_set(target.bounding);
    clear_ambient_capability_set().doing("drop ambient capabilities", b"")?;
    if getuid().is_root() && target.namespaces & libc::CLONE_NEWUSER == 0 {
        let [uid, effective_uid, saved_uid, gid, effective_gid, saved_gid] = target.ids;
        let groups: Vec<Gid> = target.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups).doing("take the groups of the command", b"")?;
        let [gid, effective_gid, saved_gid] = [gid, effective_gid, saved_gid].map(Gid::from_raw);
        set_thread_res_gid(gid, effective_gid, saved_gid).doing("become the command's group", b"")?;
        let [uid, effective_uid, saved_uid] = [uid, effective_uid, saved_uid].map(Uid::from_raw);
        set_thread_res_uid(uid, effective_uid, saved_uid).doing("become the command's user", b"")?;
    }
    let own = capabilities(None).doing("read the capabilities", b"")?;
    let kept = CapabilitySet::from_bits_retain(target.permitted);
    let sets = CapabilitySets {
        effective: own.effective.intersection(kept),
        permitted: own.permitted.intersection(kept),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).doing("drop capabilities", b"")
}

/// The lower of two limits; None is none.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
