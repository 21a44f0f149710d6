//! What this program says on descriptor 2: lines for a person, or JSON objects for a program (`--log-format json`,
//! docs/living.md). sandbox/errors.py says the same in the same shape.

use crate::error::Failure;
use crate::json::quote;
use crate::prelude::*;
use crate::report::iso;
use crate::sys;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Of a message, in characters: at most this, else so many of its start and of its end.
const LONGEST: usize = 1000;
const KEPT: usize = 500;
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The whole program speaks in one way, which is settled before it says anything.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From here on, objects.
pub fn speak_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// What cannot go on: why, what can be done about it, and the exit code that comes of it.
pub fn complain(failure: &Failure) {
    put(&line("error", &short(&failure.message), &failure.hint, Some(failure.code)));
}

/// Without the middle of what nobody reads to its end: a word of the command may have any length.
fn short(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST {
        return text.to_owned();
    }
    let (start, end): (String, String) = (text.chars().take(KEPT).collect(), text.chars().skip(count - KEPT).collect());
    format!("{start} [... {} characters ...] {end}", count - LONGEST)
}

/// How it went.
pub fn note(message: &str) {
    put(&line("info", message, "", None));
}

/// A line as `complain` and `note` say it, with its end.
pub fn line(level: &str, message: &str, hint: &str, code: Option<i32>) -> String {
    if !AS_JSON.load(Ordering::Relaxed) {
        return format!("sandbox: {}\n", Failure::text_of(message, hint));
    }
    let mut line = format!("{{\"time\": \"{}\", \"level\": \"{level}\", \"message\": ", iso(sys::wall_clock()));
    quote(&mut line, message.as_bytes());
    line.push_str(", \"hint\": ");
    if hint.is_empty() {
        line.push_str("null")
    } else {
        quote(&mut line, hint.as_bytes())
    }
    let code = code.map_or("null".to_owned(), |code| code.to_string());
    let _ = writeln!(line, ", \"exit_code\": {code}}}");
    line
}

/// In one write, so that lines of parallel launches do not mix. Who takes nothing for too long is not told: a job that
/// floods a descriptor that nobody reads must not keep its supervisor from its end.
fn put(line: &str) {
    let err = sys::standard(2);
    // Where a page is free in a pipe a line does not wait: pipe(7).
    if poll(&mut [PollFd::new(&err, PollFlags::OUT)], Some(&PATIENCE)) != Ok(0) {
        let _ = rustix::io::write(err, line.as_bytes());
    }
}
