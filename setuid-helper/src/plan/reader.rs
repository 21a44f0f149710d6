//! A cursor over hostile bytes. It copies nothing and allocates nothing.

use super::{MAX_ITEMS, MAX_PATH, MAX_STRING};
use crate::prelude::*;
use core::fmt;

/// Why bytes are not a plan, and where that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub why: &'static str,
    /// The offset, in bytes.
    pub at: usize,
}

/// The result of reading something out of hostile bytes.
pub type Read<T> = Result<T, Invalid>;

/// A list of slots, still encoded; its length was checked when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Slots<'a>(&'a [u8]);

impl<'a> Slots<'a> {
    /// The slots, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = u32> + 'a {
        self.0.as_chunks::<4>().0.iter().map(|raw| u32::from_le_bytes(*raw))
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn raw(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Slots<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A list of 64-bit numbers, still encoded; its length was checked when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// The numbers, in order.
    pub fn iter(self) -> impl Iterator<Item = u64> + 'a {
        self.0.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw))
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn raw(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A list of strings, still encoded; every one was checked when the list was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Strings<'a> {
    count: u32,
    raw: &'a [u8],
}

impl<'a> Strings<'a> {
    /// The strings, in order.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut reader = Reader::new(self.raw);
        (0..self.count).map_while(move |_| reader.string().ok())
    }

    pub(super) fn count(self) -> u32 {
        self.count
    }

    pub(super) fn raw(self) -> &'a [u8] {
        self.raw
    }
}

impl fmt::Debug for Strings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Reader { data, at: 0 }
    }

    pub fn fail(&self, why: &'static str) -> Invalid {
        Invalid { why, at: self.at }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    pub fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(self.fail("truncated"))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let fault = self.fail("truncated");
        self.take(N)?.try_into().map_err(|_| fault)
    }

    pub fn u8(&mut self) -> Read<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, limit: u32, too_long: &'static str) -> Read<&'a [u8]> {
        let length = self.u32()?;
        if length > limit {
            return Err(self.fail(too_long));
        }
        let text = self.take(length as usize)?;
        if text.contains(&0) {
            return Err(self.fail("a NUL byte inside a string"));
        }
        Ok(text)
    }

    pub fn string(&mut self) -> Read<&'a [u8]> {
        self.text(MAX_STRING, "a string that is too long")
    }

    pub fn path(&mut self) -> Read<&'a [u8]> {
        self.text(MAX_PATH, "a path that is too long")
    }

    pub fn count(&mut self) -> Read<u32> {
        let count = self.u32()?;
        if count > MAX_ITEMS {
            return Err(self.fail("a list that is too long"));
        }
        Ok(count)
    }

    /// A list; room is reserved for no more items than the remaining bytes can hold.
    pub fn list<T>(&mut self, smallest: usize, mut read: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let count = self.count()? as usize;
        if count > self.remaining() / smallest {
            return Err(self.fail("truncated"));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    pub fn slots(&mut self) -> Read<Slots<'a>> {
        let count = self.count()? as usize;
        self.take(count * 4).map(Slots)
    }

    pub fn words(&mut self) -> Read<Words<'a>> {
        let count = self.count()? as usize;
        self.take(count * 8).map(Words)
    }

    pub fn strings(&mut self) -> Read<Strings<'a>> {
        let count = self.count()?;
        let data = self.data;
        let start = self.at;
        for _ in 0..count {
            self.string()?;
        }
        Ok(Strings { count, raw: data.get(start..self.at).unwrap_or_default() })
    }
}
