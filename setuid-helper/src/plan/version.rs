//! What version 1 of the encoding had not. One line for each addition here, one in `sandbox/versions.py`.

use super::{FIRST_VERSION, LEAVE_RUNNING, MAGIC, Mode, Plan, Step};

/// Since which version helpers do what no plan asks for.
pub const BESIDE: u16 = 2;

/// The version that an encoded plan says it has; 0 for what is none.
pub fn told(encoded: &[u8]) -> u16 {
    let rest = encoded.strip_prefix(MAGIC).unwrap_or_default();
    rest.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// The oldest version that has all that the plan says.
pub fn version_of(plan: &Plan) -> u16 {
    let of_mode = if plan.mode == Mode::Landlock { 2 } else { FIRST_VERSION };
    plan.steps.iter().map(of_step).fold(of_flags(plan.flags).max(of_mode), u16::max)
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
        Step::Bind { .. } | Step::Text { .. } | Step::File { .. } | Step::Symlink { .. } | Step::Node { .. } => 2,
        Step::NewRoot { .. } | Step::PivotRoot { .. } => 2,
        Step::Limit { .. } | Step::Nice { .. } | Step::Timeout { .. } | Step::Cgroup { .. } => 2,
        Step::Stack { .. } | Step::Erofs { .. } | Step::Part { .. } => 2,
        Step::Allow { .. } | Step::Landlock { .. } | Step::Network { .. } => 2,
        Step::Name { .. } | Step::Label { .. } => 2,
        Step::UserNamespace { .. } | Step::Shift { .. } => 2,
        Step::Expose | Step::Audit | Step::Terminal | Step::CountChanges { .. } | Step::Protect { .. } => 2,
        _ => FIRST_VERSION,
    }
}
