//! The part of TOML that the policy is written in: `key = value` lines, comments, and table headers. A value is a
//! string in double quotes without escapes, a decimal integer, `true`, `false`, or a list of strings or of integers on
//! one line. Anything else is refused, so every TOML parser reads an accepted file the same way.

use crate::prelude::*;

/// A value.
#[derive(Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `"text"`
    Text(&'a [u8]),
    /// `123`
    Number(u64),
    /// `true` or `false`
    Truth(bool),
    /// `["a", "b"]`
    Texts(Vec<&'a [u8]>),
    /// `[1, 2]`; an empty list is one of these
    Numbers(Vec<u64>),
}

/// `table.key` or `key`, its value, and the line.
pub type Entry<'a> = (String, Value<'a>, usize);

/// All entries in their order, or the number of the line that is not understood. No key is set twice.
pub fn parse(text: &[u8]) -> Result<Vec<Entry<'_>>, usize> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut tables: Vec<String> = Vec::new();
    // A carriage return belongs to the newline behind it.
    if text.ends_with(b"\r") {
        return Err(text.split(|byte| *byte == b'\n').count());
    }
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| (index + 1, line)) {
        let line = trim(line.strip_suffix(b"\r").unwrap_or(line));
        if line.iter().any(|byte| *byte != b'\t' && byte.is_ascii_control()) || core::str::from_utf8(line).is_err() {
            return Err(number);
        }
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(rest) = line.strip_prefix(b"[") {
            let (name, rest) = word(rest).ok_or(number)?;
            let rest = rest.strip_prefix(b"]").ok_or(number)?;
            // A key that has a value is no table.
            if !is_end(rest) || tables.contains(&name) || entries.iter().any(|(key, ..)| *key == name) {
                return Err(number);
            }
            tables.push(name);
            continue;
        }
        let (key, rest) = word(line).ok_or(number)?;
        let rest = trim(rest).strip_prefix(b"=").ok_or(number)?;
        let (value, rest) = value(trim(rest)).ok_or(number)?;
        let key = tables.last().map_or(key.clone(), |table| format!("{table}.{key}"));
        if !is_end(rest) || entries.iter().any(|(other, ..)| *other == key) {
            return Err(number);
        }
        entries.push((key, value, number));
    }
    Ok(entries)
}

fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !b" \t".contains(byte)).map_or(start, |last| last + 1);
    &text[start..end.max(start)]
}

fn is_end(rest: &[u8]) -> bool {
    matches!(trim(rest).first(), None | Some(b'#'))
}

/// Lower-case letters and underscores.
fn word(text: &[u8]) -> Option<(String, &[u8])> {
    let end = text.iter().position(|byte| !matches!(byte, b'a'..=b'z' | b'_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    (end > 0).then(|| (String::from_utf8_lossy(name).into_owned(), rest))
}

fn value(text: &[u8]) -> Option<(Value<'_>, &[u8])> {
    match text.first()? {
        b'"' => string(text).map(|(text, rest)| (Value::Text(text), rest)),
        b'0'..=b'9' => integer(text).map(|(number, rest)| (Value::Number(number), rest)),
        b'[' => list(trim(&text[1..])),
        _ if text.starts_with(b"true") => Some((Value::Truth(true), &text[4..])),
        _ if text.starts_with(b"false") => Some((Value::Truth(false), &text[5..])),
        _ => None,
    }
}

fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = text.strip_prefix(b"\"")?;
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    (rest[end] == b'"').then(|| (&rest[..end], &rest[end + 1..]))
}

fn integer(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    // TOML's integers are signed, and have no leading zeros.
    let number = core::str::from_utf8(digits).ok()?.parse().ok().filter(|number| *number <= i64::MAX as u64)?;
    (digits.len() == 1 || digits[0] != b'0').then_some((number, rest))
}

fn list(mut rest: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (mut texts, mut numbers) = (Vec::new(), Vec::new());
    while !rest.starts_with(b"]") {
        match value(rest)? {
            (Value::Text(text), after) => (texts.push(text), rest = trim(after)).1,
            (Value::Number(number), after) => (numbers.push(number), rest = trim(after)).1,
            _ => return None,
        }
        match rest.strip_prefix(b",") {
            Some(after) => rest = trim(after),
            None if rest.starts_with(b"]") => {}
            None => return None,
        }
    }
    let value = match (texts.is_empty(), numbers.is_empty()) {
        (false, false) => return None,
        (false, true) => Value::Texts(texts),
        _ => Value::Numbers(numbers),
    };
    Some((value, &rest[1..]))
}

#[cfg(test)]
#[path = "tests/toml.rs"]
mod tests;
