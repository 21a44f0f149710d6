//! Rights that root lent: capabilities that are permitted, and effective only while a `Raised` lives.

use super::limits::Limits;
use crate::error::{Doing, Failure, Outcome};
use crate::sys;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs, set_thread_res_gid, set_thread_res_uid,
};

/// For namespaces and mounts.
pub const MOUNT: CapabilitySet = CapabilitySet::SYS_ADMIN;
/// For device nodes that are root's alone.
pub const NODE: CapabilitySet = CapabilitySet::DAC_OVERRIDE;
/// For the creation of an overlay, which keeps them: it must get into its own work directory, of mode 0.
pub const OVERLAY: CapabilitySet = MOUNT.union(NODE);
/// For devices, addresses and routes in a network namespace of the run's own.
pub const NETWORK: CapabilitySet = CapabilitySet::NET_ADMIN;
/// For the port of the name server in there.
pub const PORT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;
/// For becoming the builder.
pub const IDENTITY: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);
/// Everything that is ever needed.
pub const ALL: CapabilitySet = OVERLAY.union(IDENTITY).union(NETWORK).union(PORT);

/// Whose rights mounts are made with.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant)] // there is one of it
pub enum Rights {
    /// The caller's own: nothing is ever raised.
    Own,
    /// Root's, lent to a caller who has none.
    Lent {
        /// What can be raised.
        permitted: CapabilitySet,
        /// Whether the command may gain privileges, by setuid programs.
        lifted: bool,
        /// What the command's limits are.
        limits: Limits,
    },
}

impl Rights {
    /// Whether they are root's.
    pub fn are_lent(self) -> bool {
        matches!(self, Rights::Lent { .. })
    }

    /// Make `wanted` effective until the result is dropped.
    pub fn raise(self, wanted: CapabilitySet) -> Result<Raised, Errno> {
        match self {
            Rights::Own => Ok(Raised(None)),
            Rights::Lent { permitted, .. } => {
                effective(permitted, wanted)?;
                Ok(Raised(Some(permitted)))
            }
        }
    }

    /// Open and make files of root's until the result is dropped: with root's id for files, and without any capability,
    /// so that nothing of anybody else's gives way.
    pub fn as_root(self) -> Result<AsRoot, Errno> {
        self.files_as(0)?;
        Ok(AsRoot(self))
    }

    fn files_as(self, uid: u32) -> Result<(), Errno> {
        let _raised = self.raise(CapabilitySet::SETUID)?;
        sys::set_file_uid(uid)?;
        // A change of this id, too, sets it anew: prctl(2).
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
    }

    /// Give up for good what `keep` does not name.
    pub fn narrow(mut self, keep: CapabilitySet) -> Outcome<Rights> {
        if let Rights::Lent { permitted, .. } = &mut self {
            *permitted &= keep;
            effective(*permitted, CapabilitySet::empty()).doing("drop capabilities", b"")?;
        }
        Ok(self)
    }

    /// Whether the command may gain privileges is decided; until now nothing was executed.
    pub fn lift(mut self, allowed: bool) -> Outcome<Rights> {
        if let Rights::Lent { lifted, .. } = &mut self {
            *lifted = allowed;
            if !allowed {
                set_no_new_privs(true).doing("set no_new_privs", b"")?;
            }
        }
        Ok(self)
    }

    /// The caller's limits again, for a program of his.
    pub fn restore_limits(self) -> Outcome<()> {
        if let Rights::Lent { limits, .. } = self { limits.restore() } else { Ok(()) }
    }

    /// Give up everything for good, and make sure of it. From here on this process has its caller's rights only.
    pub fn drop_for_good(self) -> Outcome<()> {
        let Rights::Lent { lifted, .. } = self else { return Ok(()) };
        effective(CapabilitySet::empty(), CapabilitySet::empty()).doing("drop capabilities", b"")?;
        clear_ambient_capability_set().doing("drop ambient capabilities", b"")?;
        if !lifted {
            set_no_new_privs(true).doing("set no_new_privs", b"")?;
        }
        is_harmless(lifted)
    }
}

fn effective(permitted: CapabilitySet, effective: CapabilitySet) -> Result<(), Errno> {
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}

/// No id is root's, no capability is left, and nothing brings one back, unless it is `lifted` for setuid programs.
fn is_harmless(lifted: bool) -> Outcome<()> {
    let left = capabilities(None).doing("read the capabilities", b"")?;
    let none = (left.effective | left.permitted | left.inheritable).is_empty();
    let [uid, effective, saved, ..] = sys::all_ids();
    let back = set_thread_res_uid(None::<Uid>, Uid::ROOT, None::<Uid>).is_ok();
    let group = rustix::process::getgid();
    let group_back = group != Gid::ROOT && set_thread_res_gid(None::<Gid>, Gid::ROOT, None::<Gid>).is_ok();
    let new = rustix::thread::no_new_privs().doing("read no_new_privs", b"")?;
    if none && new != lifted && !back && !group_back && uid != 0 && uid == effective && uid == saved {
        return Ok(());
    }
    Err(Failure::new("root's rights could not be dropped"))
}

/// Files are root's while this lives.
#[must_use]
pub struct AsRoot(Rights);

impl Drop for AsRoot {
    fn drop(&mut self) {
        if self.0.files_as(rustix::process::getuid().as_raw()).is_err() {
            sys::exit_now(crate::error::LAUNCHER_FAILED); // as below
        }
    }
}

/// Capabilities that are effective while this lives.
#[must_use]
pub struct Raised(Option<CapabilitySet>);

impl Drop for Raised {
    fn drop(&mut self) {
        let Some(permitted) = self.0 else { return };
        if effective(permitted, CapabilitySet::empty()).is_err() {
            // Never known to happen; to go on with them is out of the question.
            sys::exit_now(crate::error::LAUNCHER_FAILED);
        }
    }
}
