//! What this decoder makes of plans, for tests that compare it with another (`tests/unit/test_plan_both.py`).
//!
//! `plan-echo` reads plans from standard input, each after its length (`u32`). For each it writes whether it was
//! accepted (`u8`) and two texts, each after its length: the plan encoded again, and the plan in words (`Debug`, with
//! the version in front); of a refused one nothing, and why. `plan-echo --arbitrary SEED COUNT` answers the same
//! for plans of its own, and `plan-echo --policy` for texts of policies: nothing, and a line for each key.

extern crate alloc;

#[path = "../tests/arbitrary/mod.rs"]
mod arbitrary;
#[allow(unused_imports)]
#[path = "../src/prelude.rs"]
mod prelude;
#[allow(dead_code)] // the values are read by Debug only
#[path = "../src/setuid/toml.rs"]
mod toml;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sandbox_native::plan::{LAST_VERSION, Plan, decode, encode, version_of};
use std::io::{Error, Read, Result, Write, stdin, stdout};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut out = Vec::new();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => echo(plan, &mut out)?,
        ["--policy"] => echo(policy, &mut out)?,
        ["--arbitrary", seed, count] => {
            arbitrary(seed.parse().map_err(Error::other)?, count.parse().map_err(Error::other)?, &mut out);
        }
        _ => return Err(Error::other("usage: plan-echo [--arbitrary SEED COUNT | --policy]")),
    }
    stdout().write_all(&out)
}

fn echo(one: fn(&[u8], &mut Vec<u8>), out: &mut Vec<u8>) -> Result<()> {
    let mut input = Vec::new();
    stdin().read_to_end(&mut input)?;
    let mut rest = input.as_slice();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (bytes, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        one(bytes, out);
    }
    Ok(())
}

fn plan(bytes: &[u8], out: &mut Vec<u8>) {
    match decode(bytes) {
        Ok(plan) => accepted(&plan, u16::from_le_bytes([bytes[8], bytes[9]]), out),
        Err(invalid) => answer(false, b"", &format!("{} at {}", invalid.why, invalid.at), out),
    }
}

fn policy(bytes: &[u8], out: &mut Vec<u8>) {
    let word = |(key, value, _): &toml::Entry| format!("{key} = {value:?}\n");
    match toml::parse(bytes) {
        Ok(entries) => answer(true, b"", &entries.iter().map(word).collect::<String>(), out),
        Err(line) => answer(false, b"", &format!("line {line}"), out),
    }
}

fn arbitrary(seed: u8, count: usize, out: &mut Vec<u8>) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let seeds = arbitrary::plan_seed();
    for number in 0..count {
        let seed = seeds.new_tree(&mut runner).expect("a strategy that refuses nothing").current();
        let plan = arbitrary::plan(&seed);
        accepted(&plan, if number % 2 == 0 { LAST_VERSION } else { version_of(&plan) }, out);
    }
}

fn accepted(plan: &Plan, version: u16, out: &mut Vec<u8>) {
    answer(true, &encode(plan, version), &format!("{version} {plan:?}"), out);
}

fn answer(accepted: bool, encoded: &[u8], words: &str, out: &mut Vec<u8>) {
    out.push(accepted.into());
    for text in [encoded, words.as_bytes()] {
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text);
    }
}
