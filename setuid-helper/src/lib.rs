//! The native engine of sandbox: executes a plan (`docs/plan.md`), the same way as the Python engine.
//!
//! `sandbox-engine` is never setuid; `sandbox-helper` may be. Both start here.
#![deny(unsafe_code)]

mod child;
mod cli;
mod environment;
mod error;
mod fsops;
mod home;
mod json;
pub mod plan;
mod record;
mod scratch;
mod sources;
mod stale;
mod supervisor;
mod sys;

pub use cli::{Program, main};
