//! Properties of the plan decoder: whatever the bytes, it neither panics nor accepts what encodes to something else.

use proptest::prelude::*;
use sandbox_native::plan::{
    Base, LAST_VERSION, Mode, Place, Plan, Propagation, Source, SourceKind, Step, decode, encode,
};

/// Bytes without NUL, of at most `limit`.
fn text(limit: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1..=255u8, 0..limit)
}

/// What a step is made from; strings are owned here, and borrowed by the step.
#[derive(Clone, Debug)]
struct Seed {
    kind: u8,
    numbers: [u64; 3],
    text: Vec<u8>,
    components: Vec<Vec<u8>>,
}

fn seed() -> impl Strategy<Value = Seed> {
    let component = prop::collection::vec(b'a'..=b'z', 1..8);
    (0..12u8, any::<[u64; 3]>(), text(64), prop::collection::vec(component, 0..4))
        .prop_map(|(kind, numbers, text, components)| Seed { kind, numbers, text, components })
}

fn step<'a>(seed: &'a Seed, path: &'a [u8]) -> Step<'a> {
    let [a, b, c] = seed.numbers;
    let place = Place { base: Base::Procdir, path, dev: a, ino: b };
    match seed.kind {
        0 => Step::Unshare { flags: a },
        1 => Step::IdMap { uid_inside: a as u32, uid_outside: b as u32, gid_inside: c as u32, gid_outside: 0 },
        2 => Step::SetPropagation { kind: if a & 1 == 0 { Propagation::Slave } else { Propagation::Private } },
        3 => Step::Guard,
        4 => Step::Mkdir { place, mode: c as u32 },
        5 => Step::PlaceEnv { name: b"NAME", place },
        6 => Step::UnsetEnv { name: b"\xff \n" },
        7 => Step::Chdir { place },
        8 => Step::Run { place, path: &seed.text },
        9 => Step::NoNewPrivs,
        10 => Step::DeathSignal { signal: a as u32 },
        _ => Step::Chdir { place: Place { base: Base::Root, path: b"/", ..place } },
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn random_bytes_after_a_good_head_never_panic(tail in prop::collection::vec(any::<u8>(), 0..512)) {
        let head = encode(&plan(Vec::new(), b"/home"), LAST_VERSION);
        let bytes = [&head[..head.len() - 4], &tail].concat();
        if let Ok(plan) = decode(&bytes) {
            prop_assert_eq!(encode(&plan, version(&bytes)), bytes);
        }
    }

    #[test]
    fn plans_survive_a_round_trip(seeds in prop::collection::vec(seed(), 0..20), home in text(100)) {
        let paths: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.components.join(&b'/')).collect();
        let steps = seeds.iter().zip(&paths).map(|(seed, path)| step(seed, path)).collect();
        let home = [b"/".as_slice(), &home].concat();
        let plan = plan(steps, &home);
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

fn plan<'a>(steps: Vec<Step<'a>>, home: &'a [u8]) -> Plan<'a> {
    let home = Source { kind: SourceKind::Directory, path: home, dev: 1, ino: 2, size: 0, mtime_ns: 0, ctime_ns: 0 };
    Plan { mode: Mode::Userns, flags: 0, uid: 1, gid: 2, home, sources: Vec::new(), steps }
}

fn version(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[8], bytes[9]])
}
