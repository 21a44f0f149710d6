//! Who the command is and what it may still do: ids, capabilities, descriptors; and the names of its world.

use super::namespaces::{NoNetwork, join_network};
use super::ranges::lines;
use super::{Child, explained};
use crate::attendance::receive_fd;
use crate::error::{Doing, Failure, Outcome};
use crate::plan::{Plan, Slot, Slots, Step};
use crate::prelude::*;
use crate::setuid::{MOUNT, NETWORK, Rights};
use crate::supervisor::ID_MAP;
use crate::sys;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};
use rustix::process::Pid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Ids are 32 bits, and the last one means none.
const ALL_IDS: u32 = u32::MAX;

impl Child<'_> {
    pub fn identity(&mut self, uid: u32, gid: u32) -> Outcome<()> {
        self.remove_layers()?;
        become_command_ids(uid, gid)
    }

    pub fn drop_capabilities(&mut self) -> Outcome<()> {
        self.remove_layers()?;
        drop_capabilities(self.prepared.rights)
    }

    pub fn hostname(&self, name: &[u8]) -> Outcome<()> {
        let raised = self.prepared.rights.raise(MOUNT);
        raised.and_then(|_raised| rustix::system::sethostname(name)).doing("set the host name to", name)
    }

    pub fn loopback(&mut self) -> Outcome<()> {
        let up = match self.network.as_ref().map(join_network) {
            Some(Err(NoNetwork::Namespace(error))) => return Err(error).doing("make the namespaces", b""),
            Some(Err(NoNetwork::Loopback(error))) => Err(error),
            Some(Ok(())) => Ok(()),
            None => self.prepared.rights.raise(NETWORK).and_then(|_raised| sys::loopback_up()).map(drop),
        };
        self.network = None;
        up.doing("bring up the loopback device", b"")
    }

    /// All of our own descriptors are close-on-exec: one that is not was inherited. Below a directory of the host's,
    /// all of the host can be reached, as it was mounted there.
    pub fn keep_descriptors(&self, fds: Slots) -> Outcome<()> {
        (0..3).try_for_each(no_directory)?;
        let mut kept: Vec<u32> = fds.iter().collect();
        kept.sort_unstable();
        let mut start = 3;
        for fd in kept {
            if !sys::is_inherited(fd) {
                let failure = Failure::new(format!("descriptor {fd} is not open"));
                return Err(failure.hint("open it for sandbox: --pass-fd 3 3<FILE"));
            }
            no_directory(fd)?;
            if fd > start {
                sys::close_on_exec(start, fd - 1).doing("close descriptors", b"")?;
            }
            start = start.max(fd + 1);
        }
        sys::close_on_exec(start, u32::MAX).doing("close descriptors", b"")
    }

    /// Exchange ids in what a slot shows, before it is used: until then the supervisor has time to make the namespace.
    pub fn idmap(&mut self, slot: Slot) -> Outcome<()> {
        self.unmapped.push((slot, self.id_maps_asked));
        self.id_maps_asked += 1;
        Ok(())
    }

    /// Do so now, if it is still to be done.
    pub fn map_ids(&mut self, slot: Slot) -> Outcome<()> {
        while let Some(at) = self.unmapped.iter().position(|(of, _)| *of == slot) {
            self.mapping = Some(self.unmapped[at].1);
            self.map_ids_by(slot, self.unmapped[at].1)
                .doing("map the ids of a mount", b"")
                .map_err(|failure| failure.hint("its filesystem cannot on this kernel: copy it to another one"))?;
            self.mapping = None;
            self.unmapped.remove(at);
        }
        Ok(())
    }

    fn map_ids_by(&mut self, slot: Slot, which: usize) -> Result<(), Errno> {
        while self.id_maps.len() <= which {
            let socket = self.prepared.exchange.ok_or(Errno::BADF)?;
            poll(&mut [PollFd::new(socket, PollFlags::IN)], None)?;
            let mut message = [0; ID_MAP.len()];
            self.id_maps.push(receive_fd(socket.as_fd(), &mut message).ok_or(Errno::BADF)?);
        }
        let found = self.mounts.iter().find(|(of, _)| *of == slot).ok_or(Errno::BADF)?;
        sys::set_idmap(&found.1.root, &self.id_maps[which])
    }
}

/// Make the user namespaces of all `Idmap` and `Shift` steps, not by the child: a process of a new pid namespace does not find
/// its children in the `/proc` that is there.
pub fn id_maps(plan: &Plan, hand_over: impl Fn(OwnedFd) -> Result<(), Errno>) -> Outcome<()> {
    for step in &plan.steps {
        let (uids, gids) = match *step {
            Step::Idmap { uid, shown_uid, gid, shown_gid, .. } => (swap((uid, shown_uid)), swap((gid, shown_gid))),
            Step::Shift { uids, gids, .. } => (lines(uids), lines(gids)),
            _ => continue,
        };
        mapping_namespace(&uids, &gids)
            .and_then(&hand_over)
            .doing("make a user namespace for an id-mapped mount", b"")
            .map_err(|failure| failure.hint("allow them: sysctl user.max_user_namespaces=15000"))
            .map_err(|failure| explained(step, failure, plan))?;
    }
    Ok(())
}

/// Without supplementary groups, and with nothing in the bounding set while that can be changed.
pub fn become_command_ids(uid: u32, gid: u32) -> Outcome<()> {
    sys::cut_bounding_set(0);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[]).doing("leave all groups", b"")?;
    set_thread_res_gid(gid, gid, gid).doing("become the command's group", b"")?;
    set_thread_res_uid(uid, uid, uid).doing("become the command's user", b"")
}

/// From every set.
pub fn drop_capabilities(rights: Rights) -> Outcome<()> {
    if rights.are_lent() {
        return rights.drop_for_good();
    }
    sys::cut_bounding_set(0);
    clear_ambient_capability_set().doing("drop ambient capabilities", b"")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).doing("drop capabilities", b"")
}

/// A user namespace with these maps, for nothing but to be given to a mount. It needs a process while it is
/// made: one that the supervisor reaps.
fn mapping_namespace(uids: &str, gids: &str) -> Result<OwnedFd, Errno> {
    let pid = sys::namesake(libc::CLONE_NEWUSER)?;
    write_maps(pid, uids, gids).and_then(|()| open_user_namespace(pid))
}

/// The maps of the user namespace of a process, written by this one.
pub fn write_maps(pid: Pid, uids: &str, gids: &str) -> Result<(), Errno> {
    for (name, text) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
        let file = openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, text.as_bytes())?;
    }
    Ok(())
}

/// The user namespace that a process is in.
pub fn open_user_namespace(pid: Pid) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
    openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// All ids as they are, but these two exchanged, as lines of a map: user_namespaces(7).
fn swap((one, other): (u32, u32)) -> String {
    if one == other {
        return format!("0 0 {ALL_IDS}\n");
    }
    let (low, high) = (one.min(other), one.max(other));
    let ranges = [
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, ALL_IDS - high - 1),
    ];
    let lines = ranges.iter().filter(|(_, _, count)| *count > 0);
    lines.map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
}

fn no_directory(fd: u32) -> Outcome<()> {
    if !sys::is_directory(fd) {
        return Ok(());
    }
    let failure = Failure::new(format!("descriptor {fd} is a directory, which would lead out of the sandbox"));
    Err(failure.hint("give the command a file there, or show it the directory: --bind DIR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_covers_every_id_once() {
        assert_eq!(swap((0, 5)), "0 5 1\n1 1 4\n5 0 1\n6 6 4294967289\n");
        assert_eq!(swap((7, 7)), "0 0 4294967295\n");
    }
}
