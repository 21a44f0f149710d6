//! What may run before root is dropped for good, beyond what every mode shares: the setuid surface. The order is in
//! `README.md`.

mod builder;
mod builders;
mod copy;
mod door;
mod ground;
mod limits;
mod policy;
mod refusal;
mod rights;
mod rules;
mod store;
mod toml;
mod trust;

pub use door::close;
pub use ground::{image_lock, lock, lock_file};
pub use policy::{Images, Policy};
pub use refusal::refused;
pub use rights::{MOUNT, NETWORK, NODE, OVERLAY, PORT, Rights};
#[cfg(any(test, fuzzing))]
pub use rules::judge;
pub use rules::{check_plan, check_target, is_proc};

use crate::error::{Doing, Outcome, printable};
use crate::messages::note;
use crate::plan::{KEEP_IMAGES, Plan, SourceKind, Step};
use crate::prelude::*;
use crate::sources::{Sources, Whose};
use builders::Turn;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::fstat;
use rustix::thread::{Timespec, nanosleep};
use store::Store;

/// Longer than a tick of the clock that files are stamped with.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Replace every image that the kernel may not be shown by one that it may, or refuse.
pub fn admit_images(plan: &Plan, sources: &mut Sources, policy: &Policy, rights: Rights) -> Outcome<()> {
    let mut budget = policy.memfd_bytes;
    let mut seen = Vec::new();
    for step in &plan.steps {
        let Step::Image { source: index, .. } = *step else { continue };
        if seen.contains(&index) {
            continue;
        }
        seen.push(index);
        let source = &plan.sources[index as usize];
        let file = sources.file(index)?;
        if source.kind == SourceKind::File && trust::is_trusted(file, policy, rights) {
            continue;
        }
        if policy.images == Images::Trusted {
            return Err(trust::untrusted(source.path));
        }
        let (image, whose) = if plan.flags & KEEP_IMAGES != 0 && source.kind == SourceKind::File {
            kept(file, source.path, policy, budget, rights)?
        } else {
            let _turn = Turn::take(None, policy, rights)?;
            (made(file, source.path, policy, budget, rights)?, Whose::Run)
        };
        if whose == Whose::Run {
            budget = budget.saturating_sub(copy::size(&image));
        }
        sources.replace(index, image, whose);
    }
    Ok(())
}

/// An image of the store, put there if it is not; or one that stayed in memory, and is this run's.
fn kept(file: BorrowedFd, path: &[u8], policy: &Policy, budget: u64, rights: Rights) -> Outcome<(OwnedFd, Whose)> {
    let status = fstat(file).doing("look at", path)?;
    let name = store::name(&status, policy.images);
    let store = Store::open(policy, rights);
    let find = || store.as_ref().ok().and_then(|store| store.find(&name)).map(|image| (image, Whose::User));
    if let Some(found) = find() {
        return Ok(found);
    }
    let turn = Turn::take(Some(status.st_dev ^ status.st_ino), policy, rights)?;
    if let Some(found) = find() {
        return Ok(found);
    }
    // A change within this tick would show in no time of the file.
    let now = fstat(&copy::empty()?).doing("look at the clock of", path)?;
    if (now.st_ctime, now.st_ctime_nsec) <= (status.st_ctime, status.st_ctime_nsec) {
        let _ = nanosleep(&TICK);
    }
    let image = made(file, path, policy, budget, rights)?;
    let unchanged = fstat(file).is_ok_and(|now| store::name(&now, policy.images) == name);
    if !turn.is_only || !unchanged {
        return Ok((image, Whose::Run));
    }
    store.and_then(|store| store.keep(&name, &image)).map(|image| (image, Whose::User)).or_else(|failure| {
        note(&format!("{} is not kept, but stays in memory: {}", printable(path), failure.text()));
        Ok((image, Whose::Run))
    })
}

/// A sealed image that the kernel may see.
fn made(file: BorrowedFd, path: &[u8], policy: &Policy, budget: u64, rights: Rights) -> Outcome<OwnedFd> {
    let copy = copy::sealed(file, path, policy.image_bytes.min(budget))?;
    if policy.images == Images::Any { Ok(copy) } else { builder::rebuild(&copy, path, policy, budget, rights) }
}
