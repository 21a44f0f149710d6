//! What the init of a pid namespace tells the supervisor, through a pipe that announces itself with SIGIO.

use crate::sys;
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, getpid};

const SIZE: usize = 8;

/// One message.
#[derive(Clone, Copy)]
pub enum Report {
    /// The init, which from now on stands for the command.
    Started(Pid),
    /// The command stopped.
    Stopped,
    /// It ended with an exit code.
    Exited(i32),
    /// It was killed by a signal.
    Killed(i32),
}

impl Report {
    /// Nobody to tell is nothing to worry about: the death signal is on its way.
    pub fn send(self, status: &OwnedFd) {
        let (kind, value) = match self {
            Report::Started(pid) => (1, pid.as_raw_nonzero().get()),
            Report::Stopped => (2, 0),
            Report::Exited(code) => (3, code),
            Report::Killed(signal) => (4, signal),
        };
        let mut message = [0; SIZE];
        message[..4].copy_from_slice(&i32::to_ne_bytes(kind));
        message[4..].copy_from_slice(&value.to_ne_bytes());
        let _ = rustix::io::write(status, &message);
    }
}

/// A pipe whose data, and end, SIGIO tells this process of. Reading never waits.
pub fn announced_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    announce(&reader)?;
    Ok((reader, writer))
}

/// Have SIGIO tell this process of what arrives here. Reading never waits.
pub fn announce(reader: &OwnedFd) -> Result<(), Errno> {
    sys::set_owner(reader, getpid())?;
    let flags = fcntl_getfl(reader)?;
    fcntl_setfl(reader, flags | OFlags::NONBLOCK | OFlags::from_bits_retain(libc::O_ASYNC.unsigned_abs()))
}

/// The supervisor's end of the pipe.
pub struct Reports(OwnedFd);

impl Reports {
    /// Both ends.
    pub fn open() -> Result<(Reports, OwnedFd), Errno> {
        announced_pipe().map(|(reader, writer)| (Reports(reader), writer))
    }

    /// The next message, if there is one.
    pub fn next(&self) -> Option<Report> {
        let mut message = [0u8; SIZE];
        if rustix::io::read(&self.0, &mut message) != Ok(SIZE) {
            return None;
        }
        let number = |at: usize| i32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
        match number(0) {
            1 => Pid::from_raw(number(4)).map(Report::Started),
            2 => Some(Report::Stopped),
            3 => Some(Report::Exited(number(4))),
            4 => Some(Report::Killed(number(4))),
            _ => None,
        }
    }
}
