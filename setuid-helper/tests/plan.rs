//! Properties of the plan decoder: whatever the bytes, it neither panics nor accepts what encodes to something else.

mod arbitrary;

use arbitrary::{bare, plan, plan_seed};
use proptest::prelude::*;
use sandbox_native::plan::{LAST_VERSION, decode, encode};

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn random_bytes_after_a_good_head_never_panic(tail in prop::collection::vec(any::<u8>(), 0..512)) {
        let head = encode(&bare(b"/home", 0), LAST_VERSION);
        let bytes = [&head[..head.len() - 4], &tail].concat();
        if let Ok(plan) = decode(&bytes) {
            prop_assert_eq!(encode(&plan, version(&bytes)), bytes);
        }
    }

    #[test]
    fn plans_survive_a_round_trip(seed in plan_seed()) {
        let plan = plan(&seed);
        let bytes = encode(&plan, LAST_VERSION);
        prop_assert_eq!(decode(&bytes), Ok(plan));
    }

    #[test]
    fn a_changed_byte_is_refused_or_means_something(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/good-every-step.plan");
        let mut bytes = std::fs::read(path).expect("the vector is there");
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(plan) = decode(&bytes) {
            prop_assert_eq!(encode(&plan, version(&bytes)), bytes);
        }
    }
}

fn version(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[8], bytes[9]])
}
