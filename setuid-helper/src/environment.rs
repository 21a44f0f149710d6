//! The environment of the command. Entries borrow from where they were read; only what steps add is owned.

use crate::error::{Failure, Outcome};
use crate::prelude::*;
use crate::sys::CStrings;
use alloc::borrow::Cow;
use alloc::ffi::CString;
use core::ffi::CStr;

/// `NAME=value` strings, in order.
pub struct Environment<'a>(Vec<Cow<'a, CStr>>);

impl<'a> Environment<'a> {
    /// The one that this program was started with, without variables that have no name (Cygwin and Wine hand down one
    /// for each drive): Python can pass on none, and a launch is the same with and without it.
    pub fn own(entries: Vec<&'a CStr>) -> Self {
        let is_named = |entry: &&CStr| !entry.to_bytes().starts_with(b"=");
        Environment(entries.into_iter().filter(is_named).map(Cow::Borrowed).collect())
    }

    /// NUL-terminated `NAME=value` strings.
    pub fn parse(text: &'a [u8]) -> Outcome<Self> {
        let mut entries = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let entry = CStr::from_bytes_until_nul(rest)
                .map_err(|_| Failure::new("the environment does not end with a NUL byte"))?;
            rest = &rest[entry.count_bytes() + 1..];
            entries.push(Cow::Borrowed(entry));
        }
        Ok(Environment(entries))
    }

    /// The value of a variable.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find_map(|entry| value(entry.to_bytes(), name))
    }

    /// Set a variable, in place of what it was.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.unset(name);
        if let Ok(entry) = CString::new([name, b"=", value].concat()) {
            self.0.push(Cow::Owned(entry));
        }
    }

    /// Remove a variable, every one of that name.
    pub fn unset(&mut self, name: &[u8]) {
        self.0.retain(|entry| value(entry.to_bytes(), name).is_none());
    }

    /// As `parse` takes it.
    pub fn text(&self) -> Vec<u8> {
        self.0.iter().flat_map(|entry| entry.to_bytes_with_nul()).copied().collect()
    }

    /// As execve wants it.
    pub fn pointers(&self) -> CStrings<'_> {
        self.0.iter().map(AsRef::as_ref).collect()
    }
}

fn value<'e>(entry: &'e [u8], name: &[u8]) -> Option<&'e [u8]> {
    entry.strip_prefix(name)?.strip_prefix(b"=")
}
