//! What version 1 of the encoding had not. One line for each addition here, one in `sandbox/versions.py`.

use super::{FIRST_VERSION, LEAVE_RUNNING, Plan, Step};

/// The oldest version that has all that the plan says.
pub fn version_of(plan: &Plan) -> u16 {
    plan.steps.iter().map(of_step).fold(of_flags(plan.flags), u16::max)
}

fn of_flags(flags: u8) -> u16 {
    match flags & !LEAVE_RUNNING {
        0 => FIRST_VERSION,
        _ => 2,
    }
}

/// A new bit of `attrs` or `options` is an arm with a condition, above the last.
fn of_step(step: &Step) -> u16 {
    match step {
        Step::Init { .. }
        | Step::LockTree { .. }
        | Step::Procdir { .. }
        | Step::Proc { .. }
        | Step::Dev { .. }
        | Step::Hide { .. }
        | Step::Loopback { .. }
        | Step::Hostname { .. }
        | Step::Identity { .. }
        | Step::DropCapabilities { .. }
        | Step::Idmap { .. }
        | Step::KeepDescriptors { .. }
        | Step::Seccomp { .. } => 2,
        Step::Limit { .. } | Step::Nice { .. } | Step::Timeout { .. } | Step::Cgroup { .. } => 2,
        Step::Stack { .. } => 2,
        _ => FIRST_VERSION,
    }
}
