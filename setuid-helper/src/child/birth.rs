//! How the child comes into the world: with an init to come it is born as that init, which saves a process, its memory
//! and the waiting for it.

use super::explained;
use crate::cgroup::{Cgroup, ENTER};
use crate::error::{Doing, Outcome};
use crate::plan::{Plan, Step};
use crate::setuid::{MOUNT, Rights};
use crate::sys::{self, Forked};
use rustix::io::Errno;

const USER: u64 = libc::CLONE_NEWUSER as u64;

/// The namespaces that the child is born in: that of its processes, and the user namespace that owns it. None where
/// there is no `Init`, and where something has to stay outside that is started before it, or is told the child's number.
pub fn birth(plan: &Plan) -> Option<i32> {
    let is_outside = |step: &Step| matches!(step, Step::Fuse { .. } | Step::Extract { .. } | Step::Network { .. });
    let enters_first = matches!(plan.steps.first(), Some(Step::UserNamespace { .. }));
    if !plan.has_init(plan.steps.len()) || enters_first || plan.steps.iter().any(is_outside) {
        return None;
    }
    match plan.steps.iter().filter(|step| makes_user_namespace(step)).count() {
        0 => Some(libc::CLONE_NEWPID),
        1 if plan.steps.first().is_some_and(makes_user_namespace) => Some(libc::CLONE_NEWPID | libc::CLONE_NEWUSER),
        // Of two the inner one owns the pid namespace, and mounts its /proc.
        _ => None,
    }
}

fn makes_user_namespace(step: &Step) -> bool {
    matches!(step, Step::Unshare { flags } if flags & USER != 0)
}

/// What is left of an `Unshare` step's flags for the child itself.
pub fn left_to_unshare(plan: &Plan, flags: u64) -> u64 {
    if birth(plan).is_some() { flags & !USER } else { flags }
}

/// Fork the child, into the run's cgroup. Whether it may go there is asked of the caller's own rights in every mode: the
/// kernel looks at who may write to `cgroup.procs` there and in what it leaves (`cgroup_css_set_fork`), and of
/// capabilities only CAP_DAC_OVERRIDE counts, which is not raised.
pub fn fork(plan: &Plan, rights: Rights, cgroup: Option<&Cgroup>) -> Outcome<Forked> {
    let birthplace = cgroup.and_then(Cgroup::birthplace);
    let namespaces = birth(plan);
    let raised = namespaces.map(|_| rights.raise(MOUNT)).transpose();
    let forked = raised.and_then(|_raised| sys::fork_into(namespaces.unwrap_or_default(), birthplace));
    match forked {
        // What no namespace is refused with.
        Err(Errno::ACCESS | Errno::NOENT | Errno::NODEV | Errno::BUSY | Errno::OPNOTSUPP) => {
            return forked.doing(ENTER, b"");
        }
        _ if namespaces.is_none() => return forked.doing("fork", b""),
        _ => {}
    }
    let is_to_blame = |step: &&Step| makes_user_namespace(step) || matches!(step, Step::Init { .. });
    let failed = plan.steps.iter().find(is_to_blame);
    let forked = forked.doing("make the namespaces", b"");
    forked.map_err(|failure| if let Some(step) = failed { explained(step, failure, plan) } else { failure })
}
