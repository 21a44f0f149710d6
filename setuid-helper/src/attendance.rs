//! What is told to the attendant, the process of the launcher that stays beside a run (`docs/plan.md`, section 15), and
//! how descriptors travel between two processes.

use crate::prelude::*;
use core::mem::MaybeUninit;
use rustix::cmsg_space;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

const LONGEST_ANSWER: usize = 1 << 16;
/// As many descriptors as a message has at most.
pub const MOST_FDS: usize = 3;

/// What is handed over.
#[derive(Clone, Copy)]
pub enum Given {
    /// The root directory, the working directory, the mount namespace.
    Root,
    /// What an audited filter asks.
    Listener,
    /// The end of a terminal that is not the command's.
    Terminal,
}

/// The engine's end of the socket.
pub struct Attendance(OwnedFd);

impl Attendance {
    /// A socket that was handed over, or whatever else the caller named.
    pub fn new(fd: OwnedFd) -> Attendance {
        Attendance(fd)
    }

    /// Hand over descriptors.
    pub fn hand_over(&self, what: Given, fds: &[BorrowedFd]) -> Result<(), Errno> {
        let kind = match what {
            Given::Root => b"R",
            Given::Listener => b"L",
            Given::Terminal => b"T",
        };
        send_fds(self.0.as_fd(), kind, fds)
    }

    /// Wait for one message, which says nothing.
    pub fn wait_for_answer(&self) -> Result<(), Errno> {
        let mut byte = [0u8];
        recv(&self.0, &mut byte, RecvFlags::empty()).map(drop)
    }

    /// All has ended: wait until the attendant is done. What it has for the report.
    pub fn conclude(&self, started: bool) -> Vec<u8> {
        let mut answer = vec![0; LONGEST_ANSWER];
        let length = send(&self.0, &[b'E', u8::from(started)], SendFlags::NOSIGNAL)
            .and_then(|_| recv(&self.0, answer.as_mut_slice(), RecvFlags::empty()));
        answer.truncate(length.map_or(0, |(_, length)| length));
        answer
    }
}

/// Two connected ends that keep messages apart.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// A message with at most `MOST_FDS` descriptors.
pub fn send_fds(socket: BorrowedFd, message: &[u8], fds: &[BorrowedFd]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// The descriptor that came with a message of this length, if one is there.
pub fn receive_fd(socket: BorrowedFd, message: &mut [u8]) -> Option<OwnedFd> {
    let wanted = message.len();
    let (length, fds) = receive_fds(socket, message)?;
    fds.into_iter().next().filter(|_| length == wanted)
}

/// The length of a message that is there, and the descriptors that came with it.
pub fn receive_fds(socket: BorrowedFd, message: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(message)], &mut control, flags).ok()?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // Nobody sends an empty message: that is the end.
    (received.bytes > 0).then(|| (received.bytes, fds.flatten().collect()))
}
