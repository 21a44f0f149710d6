//! Limits of the caller's that are too low for the helper itself: raised by root at the door, and the caller's own again
//! for whatever he starts.

use crate::error::{Doing, Outcome};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the helper needs at least; None: no limit. It opens few files and writes records, images and pipes.
const NEEDED: [(Resource, Option<u64>); 6] = [
    (Resource::Nofile, Some(1024)),
    (Resource::Fsize, None),
    (Resource::Stack, Some(8 << 20)),
    (Resource::As, None),
    (Resource::Data, None),
    (Resource::Core, Some(0)),
];

/// The limits that the helper was started with.
#[derive(Clone, Copy)]
pub struct Limits([Rlimit; NEEDED.len()]);

impl Limits {
    /// Note them, and raise what is too low. Where root may not (a container), they stay.
    pub fn raise() -> Limits {
        Limits(NEEDED.map(|(resource, needed)| {
            let own = getrlimit(resource);
            let enough = |limit: Option<u64>| Some(limit?.max(needed?));
            let mut raised = Rlimit { current: enough(own.current), maximum: enough(own.maximum) };
            if needed == Some(0) {
                raised = Rlimit { current: needed, ..own }; // no core files
            }
            if setrlimit(resource, raised).is_err() {
                let _ = setrlimit(resource, Rlimit { current: own.maximum, ..own });
            }
            own
        }))
    }

    /// The caller's again. Needs no right: none of them was lower.
    pub fn restore(&self) -> Outcome<()> {
        let restore = |((resource, _), own): (_, &Rlimit)| setrlimit(resource, *own);
        NEEDED.into_iter().zip(&self.0).try_for_each(restore).doing("restore the limits of the caller", b"")
    }
}
