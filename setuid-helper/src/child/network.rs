//! The private network: a process of the caller's, at the other end of a socket, attaches this network namespace to one.

use super::Child;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::prelude::*;
use rustix::process::getpid;

/// What it says when that is done. Anything else says why not.
const DONE: &[u8] = b"ok\n";

impl Child<'_> {
    /// Says who is to be attached, and waits.
    pub fn attach_network(&self, source: u32) -> Outcome<()> {
        let socket = self.prepared.sources.file(source)?;
        let request = format!("{}\n", getpid().as_raw_nonzero());
        rustix::io::write(socket, request.as_bytes()).doing("ask for a private network", b"")?;
        let mut answer = vec![0; 2048];
        let length = rustix::io::read(socket, answer.as_mut_slice()).doing("wait for a private network", b"")?;
        match &answer[..length] {
            DONE => Ok(()),
            b"" => Err(Failure::new("the process that attaches the private network has died")),
            why => Err(Failure::new(printable(why.trim_ascii()))),
        }
    }
}
