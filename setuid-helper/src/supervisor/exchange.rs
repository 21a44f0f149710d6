//! What the supervisor and the child hand each other while the child sets up. One way: the user namespaces of id-mapped
//! mounts, which are made beside the child. The other way: what is counted in the end, and mounts to be let go of.

use super::report::announce;
use crate::attendance::{pair, receive_fds, send_fds};
use crate::child::id_maps;
use crate::error::{Doing, Outcome};
use crate::plan::{Plan, Step};
use rustix::fd::{AsFd, OwnedFd};

/// A message that comes with the user namespace of an `Idmap` or `Shift` step, in the order of these.
pub const ID_MAP: &[u8] = b"i";
/// A message that comes with mounts that are attached nowhere.
pub const LAYERS: &[u8] = b"l";

/// The supervisor's end of the socket.
pub struct Exchange {
    socket: OwnedFd,
    changed: Option<(OwnedFd, i64)>,
}

impl Exchange {
    /// Both ends, if anything is to be handed over. What arrives here announces itself with SIGIO.
    pub fn of(plan: &Plan) -> Outcome<Option<(Exchange, OwnedFd)>> {
        let has_need = |step: &Step| match step {
            Step::CountChanges { .. } => true,
            Step::Overlay { .. } | Step::Stack { .. } => plan.has_init(plan.steps.len()),
            other => other.maps_mount_ids(),
        };
        if !plan.steps.iter().any(has_need) {
            return Ok(None);
        }
        let (socket, other) = pair().doing("make a socket", b"")?;
        announce(&socket).doing("make a socket", b"")?;
        Ok(Some((Exchange { socket, changed: None }, other)))
    }

    /// Make what the child waits for.
    pub fn hand_over_id_maps(&self, plan: &Plan) -> Outcome<()> {
        id_maps(plan, |userns| send_fds(self.socket.as_fd(), ID_MAP, &[userns.as_fd()]))
    }

    /// Take what has come. Mounts end with their last descriptor, and the kernel has whoever closes that wait for everybody
    /// who may still look at them (RCU): here nobody waits for it, as the command runs by now.
    pub fn take(&mut self) {
        let mut message = [0; 8];
        while let Some((length, mut fds)) = receive_fds(self.socket.as_fd(), &mut message) {
            if length == message.len() && !fds.is_empty() {
                self.changed = Some((fds.swap_remove(0), i64::from_le_bytes(message)));
            }
        }
    }

    /// The directory to count in, and the time since when what is in there has changed.
    pub fn changed(mut self) -> Option<(OwnedFd, i64)> {
        self.take();
        self.changed
    }
}
