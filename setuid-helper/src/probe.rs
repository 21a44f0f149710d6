//! What must hold of every parser of hostile bytes, whatever the bytes. The fuzzers of `fuzz/` look for input that
//! breaks it; the tests below replay what they found worth keeping. No part of the programs.

use crate::environment::Environment;
use crate::json;
use crate::plan::{decode, encode};
use crate::prelude::*;
use crate::setuid::{Policy, judge};

/// An accepted plan means one thing: written again it is the same bytes. The rules of setuid mode can judge it.
pub fn plan(data: &[u8]) {
    let Ok(plan) = decode(data) else { return };
    let version = u16::from_le_bytes([data[8], data[9]]);
    let again = encode(&plan, version);
    assert!(again == data, "decoded and encoded to other bytes");
    assert_eq!(decode(&again).as_ref(), Ok(&plan));
    for policy in ["", "images = \"any\"", "images = \"trusted\"\ntmpfs_bytes = 0"] {
        let policy = Policy::parse(policy.as_bytes()).expect("a policy");
        if let Ok(tmpfs_bytes) = judge(&plan, &policy) {
            assert!(plan.steps.len() >= 2 && tmpfs_bytes > 0);
        }
    }
}

/// A policy is accepted whole or by the number of one of its lines.
pub fn policy(data: &[u8]) {
    match Policy::parse(data) {
        Ok(policy) => assert_eq!(Policy::parse(data), Ok(policy)),
        Err(line) => assert!(line > 0 && line <= data.split(|byte| *byte == b'\n').count()),
    }
}

/// What a record says is as long as its text at most, and can be said again.
pub fn record(data: &[u8]) {
    for (name, value) in json::parse(data).unwrap_or_default() {
        let json::Value::List(words) = value else { continue };
        assert!(words.iter().map(Vec::len).sum::<usize>() + name.len() <= data.len());
        let mut text = String::from("{\"a\": ");
        json::quote_list(&mut text, words.iter().map(Vec::as_slice));
        text.push('}');
        assert_eq!(json::parse(text.as_bytes()), Some(vec![(b"a".to_vec(), json::Value::List(words))]));
    }
}

/// A variable has the value that stands first for it; one that is set is there once.
pub fn environment(data: &[u8]) {
    let Ok(mut environment) = Environment::parse(data) else {
        assert!(data.last() != Some(&0));
        return;
    };
    let first = data.split(|byte| *byte == 0).next().unwrap_or_default();
    let Some(equals) = first.iter().position(|byte| *byte == b'=') else { return };
    let (name, value) = (&first[..equals], &first[equals + 1..]);
    assert_eq!(environment.get(name), Some(value));
    environment.set(name, b"1");
    assert_eq!(environment.get(name), Some(b"1".as_slice()));
    environment.unset(name);
    assert_eq!(environment.get(name), None);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, probe: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&directory).expect("a corpus") {
            probe(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
            count += 1;
        }
        assert!(count > 10, "{target}: {count} files");
    }

    #[test]
    fn plans() {
        replay("plan", super::plan);
    }

    #[test]
    fn policies() {
        replay("policy", super::policy);
    }

    #[test]
    fn records() {
        replay("record", super::record);
    }

    #[test]
    fn environments() {
        replay("environment", super::environment);
    }
}
