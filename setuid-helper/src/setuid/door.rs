//! The first act of a program that was started setuid-root: the caller's ids, and no effective capability.

use super::limits::Limits;
use super::rights::{ALL, NETWORK, PORT, Rights};
use crate::error::{Doing, Failure, Outcome};
use crate::prelude::*;
use crate::{Program, Start, sys};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set, set_capabilities,
    set_keep_capabilities, set_thread_res_gid, set_thread_res_uid,
};

/// Close the door behind root, before anything of the caller's is looked at.
pub fn close(program: Program, start: &Start) -> Outcome<Rights> {
    let [uid, euid, _, gid, egid, _] = sys::all_ids();
    if !start.is_secure && (uid, gid) == (euid, egid) {
        return Ok(Rights::Own);
    }
    // File capabilities, setgid alone, another owner than root: nothing that an administrator is told to install.
    if program != Program::Helper || euid != 0 || uid == 0 {
        let message = format!("{} must not run with more rights than its caller", program.name());
        return Err(Failure::new(message).hint("remove its setuid and setgid bits and its file capabilities"));
    }
    let limits = Limits::raise();
    take_ids(uid, gid).doing("take the ids of the caller", b"")?;
    // A container may withhold what few runs need.
    let offered = capabilities(None).doing("read the capabilities", b"")?.permitted;
    let permitted = ALL.difference(NETWORK.union(PORT).difference(offered));
    let kept = CapabilitySets { effective: CapabilitySet::empty(), permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept)
        .doing("keep the capabilities that mounting needs", b"")
        .map_err(|failure| failure.hint("a container may withhold them: use --mode userns"))?;
    clear_ambient_capability_set().doing("drop ambient capabilities", b"")?;
    // Every change of ids sets it anew. It stays 0 until exec: nobody may trace this process or read its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide the memory of the helper", b"")?;
    let now = capabilities(None).doing("read the capabilities", b"")?;
    if sys::all_ids() != [uid, uid, uid, gid, gid, gid] || !now.effective.is_empty() || now.permitted != permitted {
        return Err(Failure::new("root's rights could not be put away"));
    }
    Ok(Rights::Lent { permitted, lifted: false, limits })
}

/// All ids become the real ones; the capabilities stay permitted, none is effective: capabilities(7), "Effect of user
/// ID changes on capabilities".
fn take_ids(uid: u32, gid: u32) -> Result<(), rustix::io::Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_keep_capabilities(true)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)
}
