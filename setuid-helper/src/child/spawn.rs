//! Programs that steps start: a clean environment, and chosen descriptors under chosen numbers.

use crate::errno::error_text;
use crate::error::{Doing, Outcome, printable};
use crate::prelude::*;
use crate::setuid::Rights;
use crate::sys::{self, CStrings, Forked};
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::Pid;

const ENVIRONMENT: [&CStr; 2] = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin", c"LC_ALL=C.UTF-8"];
/// Above every number that a program gets, so that no `dup2` overwrites what is still to be placed.
const ABOVE: i32 = 10;

/// Fork and execute `argv` with the descriptors under their numbers. `prepare` runs in the new process, which then has
/// no rights but its caller's; nothing is executed where that fails.
pub fn spawn(argv: &[CString], fds: &[(BorrowedFd, i32)], rights: Rights, prepare: impl Fn() -> bool) -> Outcome<Pid> {
    let name = argv.first().map_or(&b""[..], |name| name.as_bytes());
    match sys::fork().doing("start", name)? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => {
            let is_prepared = prepare();
            let harmless = rights.lift(false).and_then(|rights| rights.drop_for_good().and(rights.restore_limits()));
            if is_prepared && harmless.is_ok() && place(fds).is_ok() {
                let pointers: CStrings = argv.iter().map(CString::as_c_str).collect();
                if let Some(path) = argv.first() {
                    let error = sys::execute(path, &pointers, &ENVIRONMENT.into_iter().collect());
                    let message = format!("cannot execute it: {}", error_text(error));
                    let _ = rustix::io::write(sys::standard(1), message.as_bytes());
                }
            }
            sys::exit_now(127)
        }
    }
}

fn place(fds: &[(BorrowedFd, i32)]) -> Result<(), rustix::io::Errno> {
    let moved: Vec<(OwnedFd, i32)> =
        fds.iter().map(|(fd, number)| Ok((fcntl_dupfd_cloexec(fd, ABOVE)?, *number))).collect::<Result<_, _>>()?;
    moved.iter().try_for_each(|(fd, number)| sys::place_at(fd.as_fd(), *number))
}

/// The start of what programs wrote into a file, on one line.
pub fn last_words(said: impl AsFd, most: usize) -> String {
    let mut text = vec![0; most];
    let length = rustix::io::pread(said, text.as_mut_slice(), 0).unwrap_or(0);
    printable(text[..length].trim_ascii())
}

/// `/dev/null`, to be written to.
pub fn open_null() -> Outcome<OwnedFd> {
    openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing("open", b"/dev/null")
}

/// Strings of a plan, which hold no NUL, as C strings.
pub fn c_strings<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Vec<CString> {
    strings.map(|string| CString::new(string).unwrap_or_default()).collect()
}
