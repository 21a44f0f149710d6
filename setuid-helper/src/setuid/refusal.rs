//! What the policy or the rules forbid: a line for the user, and one for the system's log.

use crate::error::Failure;
use crate::prelude::*;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

/// Facility authpriv (10), severity warning (4): syslog(3).
const PRIORITY: u32 = 10 * 8 + 4;
/// The longest line that is logged, in bytes; RFC 3164 allows 1024.
const LONGEST: usize = 1000;

/// A refusal. It is logged here, without any privilege; no log to write to is no reason to do anything else.
pub fn refused(message: impl Into<String>) -> Failure {
    let failure = Failure::new(message);
    let mut line = format!("<{PRIORITY}>sandbox-helper: user {}: ", rustix::process::getuid());
    line.push_str(&failure.message);
    let line = &line.as_bytes()[..line.len().min(LONGEST)];
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    if let (Ok(socket), Ok(log)) =
        (socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None), SocketAddrUnix::new("/dev/log"))
    {
        let _ = sendto(socket, line, SendFlags::NOSIGNAL, &log);
    }
    failure
}
