//! A fence of Landlock rules: built when its step runs, put up right before the filter, as nobody behind it can mount.

use super::Child;
use super::place::resolve;
use crate::error::{Doing, Outcome};
use crate::plan::{Base, Place};
use crate::sys;
use rustix::fs::{CWD, OFlags, ResolveFlags};
use rustix::io::Errno;

impl Child<'_> {
    /// Kept by descriptor until the fence is built: what it means is settled now, with the command's rights.
    pub fn allow(&mut self, place: &Place, access: u64, optional: bool) -> Outcome<()> {
        let fd = match place.base {
            Base::Procdir => self.open_place(place)?,
            Base::Root => {
                let how = ResolveFlags::NO_MAGICLINKS;
                match resolve(CWD, place.path, OFlags::PATH | OFlags::CLOEXEC, how) {
                    Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) if optional => return Ok(()),
                    other => other.doing("open", place.path)?,
                }
            }
        };
        self.allowed.push((fd, access));
        Ok(())
    }

    pub fn build_fence(&mut self, handled: u64, scoped: u64) -> Outcome<()> {
        let rules = core::mem::take(&mut self.allowed);
        let fence = sys::make_ruleset(handled, scoped).doing("make a Landlock ruleset", b"")?;
        for (fd, access) in &rules {
            sys::add_rule(&fence, fd, access & handled).doing("add a Landlock rule", b"")?;
        }
        self.fence = Some(fence);
        Ok(())
    }
}
