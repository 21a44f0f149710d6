//! Everything that the compiler cannot check: calls that rustix does not have, or has only as unsafe functions.
//!
//! The only module tree in which `unsafe` is allowed. Each function is small, takes and returns ordinary types, and
//! is safe to call with any arguments.
#![allow(unsafe_code)]

mod fd;
mod loopdev;
mod mount;
mod process;
mod signal;

pub use fd::{adopt, place_at};
pub use loopdev::{get_free, loop_configure, loop_status};
pub use mount::{set_mount, unshare};
pub use process::{CStrings, Forked, environment, error_text, execute, exit_now, fork, is_secure_execution};
pub use signal::{Arrived, Mask, block_all, default_action, die_of, ignore, is_ignored, send, send_to_self, wait};
