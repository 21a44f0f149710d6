//! Fuse: a squashfs image served by a program, where the kernel may not mount it.

use super::Child;
use super::mounts::{SAFE, new_mount};
use super::spawn::{c_strings, open_null, spawn};
use crate::error::{Doing, Outcome};
use crate::plan::{Slot, attr};
use crate::prelude::*;
use crate::setuid::MOUNT;
use crate::sys::{self, Forked};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountAttrFlags;
use rustix::process::{WaitOptions, waitpid};

/// Numbers that the program gets its descriptors under.
const FUSE: i32 = 3;
const SOURCE: i32 = 4;

impl Child<'_> {
    pub fn fuse(&mut self, slot: Slot, source: u32, program: &[u8]) -> Outcome<()> {
        let (image, rights) = (self.prepared.sources.file(source)?, self.prepared.rights);
        // The kernel wants it opened in the user namespace that mounts.
        let path = "/dev/fuse";
        let device = openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing("open", path.as_bytes())?;
        let number = device.as_raw_fd().to_string();
        let uid = rustix::process::getuid().to_string();
        let gid = rustix::process::getgid().to_string();
        let options = [
            ("source", Some("sandbox")),
            ("fd", Some(number.as_str())),
            ("rootmode", Some("40000")),
            ("user_id", Some(&uid)),
            ("group_id", Some(&gid)),
            ("default_permissions", None),
        ];
        let root = new_mount("fuse", &options, SAFE | MountAttrFlags::MOUNT_ATTR_RDONLY, rights)?;
        let null = open_null()?;
        let (fuse, source) = (format!("/dev/fd/{FUSE}"), format!("/dev/fd/{SOURCE}"));
        let argv = c_strings([program, b"-f", b"-o", b"ro", source.as_bytes(), fuse.as_bytes()].into_iter());
        let fds = [(null.as_fd(), 0), (null.as_fd(), 1), (device.as_fd(), FUSE), (image, SOURCE)];
        // Orphaned at once, so that it becomes a child of the supervisor, which reaps it.
        match sys::fork().doing("start", program)? {
            Forked::Parent(middle) => waitpid(Some(middle), WaitOptions::empty()).doing("wait for", program)?,
            Forked::Child => {
                // In a mount namespace without the mount that it serves: that one can then end, and ends the program.
                let apart = || {
                    let _ = rights.raise(MOUNT).and_then(|_raised| sys::unshare(libc::CLONE_NEWNS as u64));
                    true
                };
                let started = spawn(&argv, &fds, rights, apart);
                sys::exit_now(started.is_err().into())
            }
        };
        self.add_mount(slot, root, attr::READ_ONLY | attr::NOSUID | attr::NODEV);
        Ok(())
    }
}
