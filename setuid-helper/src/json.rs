//! The JSON of run records: one object on one line, of strings, numbers and lists of strings.

use crate::prelude::*;
use crate::procfs;
use core::fmt::Write;

/// `value` as a JSON string: valid UTF-8 as it is, any other byte as a `\udcXX` surrogate (as Python's fsdecode).
pub fn quote(out: &mut String, value: &[u8]) {
    out.push('"');
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\0'..='\u{1f}' | '\u{7f}' => drop(write!(out, "\\u{:04x}", c as u32)),
                _ => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\udc{byte:02x}");
        }
    }
    out.push('"');
}

/// Quoted strings, as a list.
pub fn quote_list<'a>(out: &mut String, values: impl Iterator<Item = &'a [u8]>) {
    out.push('[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        quote(out, value);
    }
    out.push(']');
}

/// A value of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    /// A string, as bytes.
    Text(Vec<u8>),
    /// A list of strings.
    List(Vec<Vec<u8>>),
    /// A number from 0 on.
    Number(u64),
    /// Anything else that records hold; nobody here asks for its value.
    Other,
}

/// The members of a record's object, or None if it is not one.
pub fn parse(text: &[u8]) -> Option<Vec<(Vec<u8>, Value)>> {
    let mut p = Parser { rest: text };
    p.expect(b'{')?;
    let mut members = Vec::new();
    if !p.accept(b'}') {
        loop {
            let name = p.string()?;
            p.expect(b':')?;
            members.push((name, p.value()?));
            if !p.accept(b',') {
                break;
            }
        }
        p.expect(b'}')?;
    }
    p.skip_space();
    p.rest.is_empty().then_some(members)
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn accept(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.rest.first() == Some(&byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.accept(byte).then_some(())
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn value(&mut self) -> Option<Value> {
        self.skip_space();
        match self.rest.first()? {
            b'"' => self.string().map(Value::Text),
            b'[' => self.list().map(Value::List),
            b'0'..=b'9' | b'-' | b'a'..=b'z' => {
                let end = self.rest.iter().position(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)));
                let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                self.rest = rest;
                Some(procfs::parse(word).map_or(Value::Other, Value::Number))
            }
            _ => None,
        }
    }

    fn list(&mut self) -> Option<Vec<Vec<u8>>> {
        self.expect(b'[')?;
        let mut items = Vec::new();
        if self.accept(b']') {
            return Some(items);
        }
        loop {
            items.push(self.string()?);
            if !self.accept(b',') {
                self.expect(b']')?;
                return Some(items);
            }
        }
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => self.escape(&mut text)?,
                byte => text.push(byte),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Option<()> {
        let c = match self.next()? {
            b'u' => match self.unit()? {
                byte @ 0xdc80..=0xdcff => {
                    text.push((byte & 0xff) as u8);
                    return Some(());
                }
                high @ 0xd800..=0xdbff => {
                    self.rest = self.rest.strip_prefix(b"\\u")?;
                    let low = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)?
                }
                unit => char::from_u32(unit)?,
            },
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            c @ (b'"' | b'\\' | b'/') => c as char,
            _ => return None,
        };
        text.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        Some(())
    }

    fn unit(&mut self) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        let digits = core::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        u32::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_a_round_trip() {
        let values: [&[u8]; 5] = [b"plain", b"\xff\x80\n\"\\", "h\u{e9}\u{1f600}".as_bytes(), b"", b"\x7f\x01"];
        let mut text = String::from("{\"command\": ");
        quote_list(&mut text, values.into_iter());
        text.push_str(", \"pid\": 12, \"none\": -1}\n");
        let members = parse(text.as_bytes()).expect("it is a record");
        assert_eq!(members[0].1, Value::List(values.map(<[u8]>::to_vec).to_vec()));
        assert_eq!(members[1], (b"pid".to_vec(), Value::Number(12)));
        assert_eq!(members[2].1, Value::Other);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in ["", "{", "{\"a\"}", "[]", "{\"a\": \"\\ud800\"}", "{\"a\": {}}", "{} x", "{\"a\": \"\\q\"}"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn python_writes_surrogate_pairs() {
        let members = parse(br#"{"a": "\ud83d\ude00\u00e9"}"#).expect("it is a record");
        assert_eq!(members[0].1, Value::Text("\u{1f600}\u{e9}".as_bytes().to_vec()));
    }
}
