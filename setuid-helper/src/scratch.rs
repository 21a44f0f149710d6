//! Private scratch directories on a disk: made before the fork, named in the record before they are made.

use crate::cgroup;
use crate::error::{Doing, Outcome};
use crate::fsops::{make_new_dir, open_parent, remove_tree};
use crate::plan::{Plan, Step};
use crate::prelude::*;
use crate::sources::same_directory;
use rustix::fd::AsFd;
use rustix::fs::fstat;
use rustix::io::Errno;

/// The directory in it that becomes the procdir.
pub const PROCDIR: &[u8] = b"procdir";
/// The directory in it for upper and work directories of overlays.
pub const OVERLAY: &[u8] = b"overlay";

fn name(id: &str) -> String {
    format!("sandbox-{id}")
}

/// The path of the private directory in the source directory `parent`.
pub fn path_in(parent: &[u8], id: &str) -> Vec<u8> {
    let separator: &[u8] = if parent.ends_with(b"/") { b"" } else { b"/" };
    [parent, separator, name(id).as_bytes()].concat()
}

/// Where the plan's scratch directories will be, and last its cgroup.
pub fn paths(plan: &Plan, id: &str) -> Vec<Vec<u8>> {
    sources(plan).map(|source| source.path).chain(cgroup::parent(plan)).map(|path| path_in(path, id)).collect()
}

fn sources<'p>(plan: &'p Plan) -> impl Iterator<Item = &'p crate::plan::Source<'p>> {
    plan.steps.iter().filter_map(|step| match *step {
        Step::Scratch { source, .. } => plan.sources.get(source as usize),
        _ => None,
    })
}

/// Make them. The record names them already.
pub fn make(plan: &Plan, id: &str) -> Outcome<()> {
    for source in sources(plan) {
        let path = path_in(source.path, id);
        let (parent, name) = open_parent(&path).doing("open", source.path)?;
        same_directory(source.path, source.dev, source.ino, &fstat(&parent).doing("look at", source.path)?)?;
        let make = || -> Result<(), Errno> {
            let own = make_new_dir(&parent, name.as_bytes())?;
            make_new_dir(&own, PROCDIR)?;
            make_new_dir(&own, OVERLAY).map(drop)
        };
        make().map_err(|error| {
            let failure = crate::error::Failure::os("make a scratch directory in", source.path, error);
            failure.hint("name a directory that you may write to")
        })?;
    }
    Ok(())
}

/// Remove one, or the cgroup, and only one of this run: its name is the run's.
pub fn remove(path: &[u8], id: &str) -> Result<(), Errno> {
    let (parent, last) = open_parent(path)?;
    if id.is_empty() || last.to_bytes() != name(id).as_bytes() {
        return Err(Errno::INVAL);
    }
    cgroup::remove(parent.as_fd(), &last).unwrap_or_else(|| remove_tree(parent.as_fd(), &last))
}
