//! The native engine of sandbox: executes a plan (`docs/plan.md`), the same way as the Python engine.
//!
//! `sandbox-engine` is never setuid; `sandbox-helper` may be. Both start here.
#![cfg_attr(freestanding, no_std)]
#![deny(unsafe_code)]

extern crate alloc;

mod attendance;
mod cgroup;
mod child;
mod cli;
mod copies;
mod environment;
mod errno;
mod error;
pub mod front;
mod fsops;
mod home;
mod json;
mod messages;
pub mod plan;
mod prelude;
#[cfg(any(test, fuzzing))]
pub mod probe;
mod procfs;
mod record;
mod report;
mod scratch;
mod setuid;
mod sources;
mod stale;
mod supervisor;
mod sys;

pub use cli::{Program, main};
pub use sys::start::Start;
