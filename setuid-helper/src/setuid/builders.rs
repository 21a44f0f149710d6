//! How many images are rebuilt at once for a user, and by whom: one launch builds an image, the others wait for it.

use super::{Policy, Rights, ground, refused};
use crate::error::Outcome;
use crate::prelude::*;
use rustix::fd::OwnedFd;

/// How long others are waited for, in milliseconds. A user can stop a process of his, and must not hang himself.
const PATIENCE: u32 = 30_000;

/// The right to rebuild an image, until this and all processes of the builder end.
pub struct Turn {
    _lock: OwnedFd,
    /// Whether whoever builds the same image would have waited for this launch.
    pub is_only: bool,
}

impl Turn {
    /// Wait for it. `key` says where launches with the same image wait for each other, if they are to.
    pub fn take(key: Option<u64>, policy: &Policy, rights: Rights) -> Outcome<Turn> {
        let count = policy.builders.max(1);
        let directory = rustix::process::getuid().as_raw().to_string();
        let open = |number: u64| ground::lock_file(&directory, &format!("builder-{number}"), rights);
        let first = open(key.map_or(0, ground::spread) % count)?;
        if ground::lock(&first, if key.is_some() { PATIENCE } else { 0 }) {
            return Ok(Turn { _lock: first, is_only: key.is_some() });
        }
        for round in 0..=PATIENCE / 100 {
            for number in 0..count {
                let slot = open(number)?;
                // All but the last try of a round ask without waiting.
                if ground::lock(&slot, if number + 1 == count && round > 0 { 100 } else { 0 }) {
                    return Ok(Turn { _lock: slot, is_only: false });
                }
            }
            if key.is_some() {
                break; // it has waited already
            }
        }
        let message = format!("all {count} builders that the policy allows you are at work");
        Err(refused(message).hint("wait for your other launches; a stopped one counts, too"))
    }
}
