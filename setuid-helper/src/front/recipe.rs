//! The command's environment, made of the caller's and of the words. No value is stored, but the home of a level.

use crate::environment::Environment;
use crate::plan::Strings;
use crate::plan::reader::{Read, Reader};
use crate::prelude::*;
use core::ffi::CStr;

/// How to make it.
pub struct Recipe<'a> {
    /// The names that the caller's keep; those that end in `*` are prefixes. None: all.
    kept: Option<Strings<'a>>,
    changes: Vec<Change<'a>>,
}

enum Change<'a> {
    /// `NAME=VALUE` is in this word, from this byte on.
    Word(usize, usize),
    /// The variable goes.
    Unset(&'a [u8]),
    /// `NAME`, `VALUE`.
    Set(&'a [u8], &'a [u8]),
}

/// Read one.
pub fn read<'a>(reader: &mut Reader<'a>) -> Read<Recipe<'a>> {
    let is_filtered = reader.u8()? != 0;
    let names = reader.strings()?;
    let changes = reader.list(1, |reader| {
        Ok(match reader.u8()? {
            1 => Change::Word(reader.u32()? as usize, reader.u32()? as usize),
            2 => Change::Unset(reader.string()?),
            3 => Change::Set(reader.string()?, reader.string()?),
            _ => return Err(reader.fail("an unknown change")),
        })
    })?;
    Ok(Recipe { kept: is_filtered.then_some(names), changes })
}

/// The environment; None when the words are not what they were.
pub fn apply(recipe: &Recipe, callers: Vec<&'static CStr>, words: &[&'static CStr]) -> Option<Environment<'static>> {
    let is_kept = |entry: &&CStr| recipe.kept.is_none_or(|names| names.iter().any(|name| matches(entry, name)));
    let mut environment = Environment::own(callers.into_iter().filter(is_kept).collect());
    for change in &recipe.changes {
        match change {
            Change::Word(index, offset) => {
                let item = words.get(*index)?.to_bytes().get(*offset..)?;
                let equals = item.iter().position(|byte| *byte == b'=')?;
                environment.set(&item[..equals], &item[equals + 1..]);
            }
            Change::Unset(name) => environment.unset(name),
            Change::Set(name, value) => environment.set(name, value),
        }
    }
    Some(environment)
}

fn matches(entry: &CStr, pattern: &[u8]) -> bool {
    let entry = entry.to_bytes();
    match pattern.strip_suffix(b"*") {
        Some(prefix) => entry.starts_with(prefix),
        None => entry.strip_prefix(pattern).is_some_and(|rest| rest.starts_with(b"=")),
    }
}
