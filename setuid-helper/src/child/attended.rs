//! Steps for which a process of the launcher stays beside the run.

use super::Child;
use crate::attendance::{Attendance, Given};
use crate::error::{Doing, Failure, Outcome};
use crate::sys;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

const TREE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Child<'_> {
    /// The socket to the attendant.
    pub fn attendance(&self) -> Outcome<&Attendance> {
        self.prepared.attendance.ok_or_else(|| Failure::new("nobody attends this run (attend=FD)"))
    }

    /// Without the mount namespace the tree falls apart with its last process.
    pub fn expose(&self) -> Outcome<()> {
        let attendance = self.attendance()?;
        let open = || -> Result<(), Errno> {
            let root = openat(CWD, "/", TREE, Mode::empty())?;
            let directory = openat(CWD, ".", TREE, Mode::empty())?;
            let namespace = openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            attendance.hand_over(Given::Root, &[root.as_fd(), directory.as_fd(), namespace.as_fd()])
        };
        open().doing("hand over the tree", b"")
    }

    /// A terminal of the command's own devpts, which becomes its controlling one: the session is new and has none.
    pub fn terminal(&self) -> Outcome<()> {
        let attendance = self.attendance()?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let main = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()).doing("open", b"/dev/pts/ptmx")?;
        let set_up = || -> Result<(), Errno> {
            unlockpt(&main)?;
            // By descriptor: what lies at the path of its name is somebody else's word.
            let own = ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            attendance.hand_over(Given::Terminal, &[main.as_fd()])?;
            attendance.wait_for_answer()?; // it has its size then
            ioctl_tiocsctty(&own)?;
            (0..3).try_for_each(|number| sys::place_at(own.as_fd(), number))
        };
        set_up().doing("set up the terminal", b"")
    }
}
