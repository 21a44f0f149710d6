//! What may run before root is dropped for good, beyond what every mode shares: the setuid surface. The order is in
//! `README.md`.

mod builder;
mod copy;
mod door;
mod policy;
mod refusal;
mod rights;
mod rules;
mod toml;
mod trust;

pub use door::close;
pub use policy::{Images, Policy};
pub use refusal::refused;
pub use rights::{MOUNT, NODE, OVERLAY, Rights};
pub use rules::{Tally, check_plan, check_target};

use crate::error::Outcome;
use crate::plan::{Plan, SourceKind, Step};
use crate::prelude::*;
use crate::sources::Sources;

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
        if source.kind == SourceKind::File && trust::is_trusted(file, policy) {
            continue;
        }
        if policy.images == Images::Trusted {
            return Err(trust::untrusted(source.path));
        }
        let copy = copy::sealed(file, source.path, policy.image_bytes.min(budget))?;
        let admitted = if policy.images == Images::Any {
            copy
        } else {
            builder::rebuild(&copy, source.path, policy, budget, rights)?
        };
        budget = budget.saturating_sub(copy::size(&admitted));
        sources.replace(index, admitted);
    }
    Ok(())
}
