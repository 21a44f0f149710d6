//! One line for the user: what was being done, to which thing, why it failed, and what can be done about it.

use crate::errno::error_text;
use crate::prelude::*;
use core::fmt::Write;
use rustix::io::Errno;

/// The command's time was up.
pub const TIMED_OUT: i32 = 124;
/// The launcher itself failed.
pub const LAUNCHER_FAILED: i32 = 125;
/// The command was found and cannot be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// The command was not found.
pub const NOT_FOUND: i32 = 127;

/// A launch that cannot go on.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: i32,
    /// One printable line.
    pub message: String,
    /// What the user can do about it; empty where nobody knows.
    pub hint: String,
    /// The kernel's reason, where it was one.
    pub errno: Option<Errno>,
}

/// The result of anything that can end a launch.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure of the launcher.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { code: LAUNCHER_FAILED, message: message.into(), hint: String::new(), errno: None }
    }

    /// `doing` failed on `thing` with `error`.
    pub fn os(doing: &str, thing: &[u8], error: Errno) -> Failure {
        let thing = printable(thing);
        let separator = if thing.is_empty() { "" } else { " " };
        let message = format!("cannot {doing}{separator}{thing}: {}", error_text(error));
        Failure { errno: Some(error), ..Failure::new(message) }
    }

    /// What the user can do about it. The first hint is the best: nobody looks for another one by the kernel's reason.
    pub fn hint(mut self, hint: &str) -> Failure {
        if !hint.is_empty() {
            self.hint.push_str(if self.hint.is_empty() { "" } else { "; " });
            self.hint.push_str(hint);
            self.errno = None;
        }
        self
    }

    /// Both in one line.
    pub fn text(&self) -> String {
        Failure::text_of(&self.message, &self.hint)
    }

    /// The same of a message and a hint, which may be empty.
    pub fn text_of(message: &str, hint: &str) -> String {
        if hint.is_empty() { message.to_owned() } else { format!("{message} ({hint})") }
    }

    /// With another exit code.
    pub fn code(mut self, code: i32) -> Failure {
        self.code = code;
        self
    }
}

/// Adds to a failed system call what was being done.
pub trait Doing<T> {
    /// `doing` is a verb phrase; `thing` is what it was done to.
    fn doing(self, doing: &str, thing: &[u8]) -> Outcome<T>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: &str, thing: &[u8]) -> Outcome<T> {
        self.map_err(|error| Failure::os(doing, thing, error))
    }
}

/// One line for a terminal: bytes that are not printable text appear as backslash escapes.
pub fn printable(raw: &[u8]) -> String {
    let mut line = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                // What ends a line, turns it around or does not show.
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    line.extend(c.escape_default());
                }
                _ if c.is_control() => line.extend(c.escape_default()),
                _ => line.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
    line
}
