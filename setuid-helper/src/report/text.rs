//! The end of the JSON text that a report starts with: the phases of this program, then everything else.

use super::Kind;
use super::account::{Account, Ending};
use crate::json::quote;
use crate::prelude::*;
use crate::sys;
use core::fmt::Write;
use core::time::Duration;

/// What follows the last phase that the caller has written.
pub fn rest(account: &Account, origin_ns: u64, kind: Kind) -> String {
    let mut out = String::new();
    if kind == Kind::Status {
        out.push_str("{\"event\": \"ended\"");
        ending(&mut out, account);
        out.push_str("}\n");
        return out;
    }
    let origin = Duration::from_nanos(origin_ns);
    let is_trace = kind == Kind::Trace;
    for phase in &account.phases {
        let start = phase.start.saturating_sub(origin).as_micros();
        let length = phase.end.saturating_sub(phase.start).as_micros();
        let name = phase.name;
        let _ = if is_trace {
            write!(
                out,
                ", {{\"name\": \"{name}\", \"ph\": \"X\", \"pid\": 1, \"tid\": 2, \"ts\": {start}, \"dur\": {length}}}"
            )
        } else {
            write!(out, ", {{\"name\": \"{name}\", \"start_us\": {start}, \"us\": {length}}}")
        };
    }
    out.push(']');
    if !is_trace {
        ending(&mut out, account);
        used(&mut out, account);
        out.push_str(", ");
        match core::str::from_utf8(&account.attended) {
            Ok(text) if !text.is_empty() => out.push_str(text),
            _ => out.push_str("\"kept\": null, \"refused_calls\": null"),
        }
    }
    out.push_str("}\n");
    out
}

fn ending(out: &mut String, account: &Account) {
    let (cause, limit) = account.cause();
    let _ = write!(out, ", \"ended\": \"{}\", \"cause\": \"{cause}\", \"limit\": ", iso(sys::wall_clock()));
    text_or_null(out, limit.map(str::as_bytes));
    out.push_str(", \"error\": ");
    text_or_null(out, account.failure.as_ref().map(|(_, message)| message.as_bytes()));
    let (code, signal) = match (&account.failure, account.ending) {
        (Some((code, _)), _) => (Some(*code), None),
        (None, Some(Ending::Exited(code))) => (Some(code), None),
        (None, Some(Ending::Killed(signal))) => (None, Some(signal)),
        (None, None) => (None, None),
    };
    out.push_str(", \"exit_code\": ");
    number_or_null(out, code);
    out.push_str(", \"signal\": ");
    number_or_null(out, signal);
}

fn used(out: &mut String, account: &Account) {
    let usage = account.ending.filter(|_| account.failure.is_none()).map(|_| account.usage);
    let peaks = account.peaks;
    let of = if peaks.memory.is_some() { "\"cgroup\"" } else { "\"largest process\"" };
    let seconds = |time: Duration| format!("{}.{:06}", time.as_secs(), time.subsec_micros());
    for (name, value) in [
        ("wall_seconds", usage.and(account.wall).map(seconds)),
        ("user_seconds", usage.map(|usage| seconds(usage.user))),
        ("system_seconds", usage.map(|usage| seconds(usage.system))),
        ("peak_memory_bytes", usage.map(|usage| peaks.memory.unwrap_or(usage.largest).to_string())),
        ("peak_memory_of", usage.map(|_| of.to_owned())),
        ("processes", usage.and(peaks.processes).map(|count| count.to_string())),
        ("oom_kills", usage.and(peaks.oom_kills).map(|count| count.to_string())),
        ("forks_refused", usage.and(peaks.forks_refused).map(|count| count.to_string())),
        ("read_bytes", usage.map(|usage| usage.read.to_string())),
        ("written_bytes", usage.map(|usage| usage.written.to_string())),
        ("discarded", usage.and(account.discarded).map(|count| count.to_string())),
    ] {
        let _ = write!(out, ", \"{name}\": ");
        number_or_null(out, value);
    }
}

fn number_or_null(out: &mut String, value: Option<impl core::fmt::Display>) {
    match value {
        Some(value) => drop(write!(out, "{value}")),
        None => out.push_str("null"),
    }
}

fn text_or_null(out: &mut String, value: Option<&[u8]>) {
    match value {
        Some(value) => quote(out, value),
        None => out.push_str("null"),
    }
}

/// ISO 8601 in UTC, of a time since 1970.
pub fn iso(time: Duration) -> String {
    let (days, second) = (time.as_secs() / 86400, time.as_secs() % 86400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}+00:00", time.subsec_micros())
}

/// The Gregorian date of a day since 1970. Years start in March here, so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000+00:00"),
            (951_782_400, "2000-02-29T00:00:00.000000+00:00"),
            (1_709_251_199, "2024-02-29T23:59:59.000000+00:00"),
            (4_102_444_800, "2100-01-01T00:00:00.000000+00:00"),
            (4_107_542_400, "2100-03-01T00:00:00.000000+00:00"),
        ] {
            assert_eq!(iso(Duration::from_secs(seconds)), text);
        }
    }
}
