//! Everything that the compiler cannot check: system calls that rustix does not have, or has only as unsafe
//! functions, and the start of a program without a C library.
//!
//! The only module tree in which `unsafe` is allowed. Each function is small, takes and returns ordinary types, and
//! is safe to call with any arguments.
#![allow(unsafe_code)]

mod fd;
mod filter;
mod landlock;
mod loopdev;
mod mount;
mod net;
mod process;
mod raw;
mod signal;

#[cfg(freestanding)]
mod allocator;
#[cfg(freestanding)]
mod entry;
#[cfg(freestanding)]
mod memory;
pub mod start;

#[cfg(freestanding)]
pub use entry::forget_code;
pub use fd::{
    adopt, close_all_on_exec, close_on_exec, is_directory, is_inherited, is_open_for_writing, keep_only,
    occupy_standard, place_at, set_owner, standard,
};
pub use filter::{cut_bounding_set, install_filter};
pub use landlock::{add_rule, forbid_changes, make_ruleset, restrict_self};
pub use loopdev::{LoopStatus, get_free, loop_configure, loop_status};
pub use mount::{add_attributes, make_device_mount, set_idmap, set_mount, set_propagation, set_read_only, unshare};
pub use net::{loopback_up, make_tap, network_of};
pub use process::{
    CStrings, Forked, Namespace, Waited, all_ids, execute, exit_now, fork, fork_beside, fork_into, has_clone3,
    leave_session_keyring, namesake, now, own_namespaces, pid_namespace, set_file_uid, since_boot, wait_any, wait_for,
    wall_clock,
};
pub use signal::{
    Arrived, Mask, block_all, continue_at, default_action, die_of, hold, ignore, is_ignored, send, send_to_group,
    send_to_self, wait,
};

/// A program of the C library's is not laid out by us.
#[cfg(not(freestanding))]
pub fn forget_code() {}
