//! The vectors in `tests/vectors`, which the Python codec wrote: both sides must agree on every one.

use sandbox_native::plan::{MAX_BYTES, decode, encode};
use std::path::{Path, PathBuf};

fn vectors(prefix: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let entries = std::fs::read_dir(&directory).expect("the vectors are there");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".plan")
    };
    paths.filter(is_wanted).map(|path| (path.clone(), std::fs::read(path).expect("a vector"))).collect()
}

#[test]
fn good_vectors_decode_and_encode_to_the_same_bytes() {
    let good = vectors("good-");
    assert!(good.len() >= 9);
    for (path, bytes) in good {
        let plan = decode(&bytes).unwrap_or_else(|why| panic!("{}: {why:?}", path.display()));
        assert_eq!(encode(&plan, u16::from_le_bytes([bytes[8], bytes[9]])), bytes, "{}", path.display());
    }
}

#[test]
fn bad_vectors_are_refused() {
    let bad = vectors("bad-");
    assert!(bad.len() >= 60);
    for (path, bytes) in bad {
        assert!(decode(&bytes).is_err(), "{}", path.display());
    }
}

#[test]
fn every_truncation_is_refused() {
    for (path, bytes) in vectors("good-") {
        let step = 1 + bytes.len() / 2000;
        for length in (0..bytes.len()).step_by(step) {
            assert!(decode(&bytes[..length]).is_err(), "{} at {length}", path.display());
        }
    }
}

#[test]
fn what_is_too_long_is_refused_unread() {
    assert!(decode(&vec![0; MAX_BYTES + 1]).is_err());
}
