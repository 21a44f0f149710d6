//! Loop devices: one per image file, however many sandboxes.

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{make_dir, open_path, same_inode};
use crate::prelude::*;
use crate::setuid::{NODE, Rights, refused};
use crate::sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, major, openat};
use rustix::io::Errno;
use rustix::thread::{Timespec, nanosleep};

const ATTEMPTS: u32 = 64;
/// How often the lock that users share is tried, 1 ms apart.
const LOCK_ATTEMPTS: u32 = 50;
const LOOP_MAJOR: u32 = 7;
const NO_LOOP: &str =
    "load the loop module (modprobe loop), give the container /dev/loop-control and /dev/loop*, or use --mode userns";

/// A loop device that shows an image. While it is open nothing can clear it.
pub struct Device {
    /// `/dev/loopN`.
    pub path: String,
    _fd: OwnedFd,
    _lock: Option<OwnedFd>,
}

/// Where loop devices are opened: by descriptor of the host's `/dev`, as the run may mount something else there.
pub struct Devices {
    dev: OwnedFd,
    rights: Rights,
}

impl Devices {
    /// In the host's mount namespace.
    pub fn open(rights: Rights) -> Outcome<Devices> {
        let dev = open_path(CWD, b"/dev").doing("open", b"/dev")?;
        let status = fstat(&dev).doing("look at", b"/dev")?;
        if rights.are_lent() && (status.st_uid != 0 || status.st_mode & 0o022 != 0) {
            return Err(refused("/dev could be changed by somebody else than root"));
        }
        Ok(Devices { dev, rights })
    }

    /// The device that all runs share for this file.
    pub fn shared(&self, home: &OwnedFd, image: BorrowedFd) -> Outcome<Device> {
        let status = fstat(image).doing("look at the image", b"")?;
        let wanted = (status.st_dev, status.st_ino);
        if self.rights.are_lent() {
            return self.shared_by_users(image, wanted);
        }
        let name = format!("loop-{}-{}", status.st_dev, status.st_ino);
        let lock = lock(home, &name).doing("lock", name.as_bytes())?;
        let mut remembered = [0u8; 16];
        let length = rustix::io::pread(&lock, &mut remembered, 0).unwrap_or(0);
        let remembered = core::str::from_utf8(&remembered[..length]).ok().and_then(|text| text.trim().parse().ok());
        if let Some((number, fd)) = self.find(remembered, wanted) {
            if Some(number) != remembered {
                remember(&lock, number);
            }
            return Ok(device(number, fd, Some(lock)));
        }
        let (number, fd) = self.attach(image)?;
        remember(&lock, number);
        Ok(device(number, fd, Some(lock)))
    }

    /// Without anything that a user could hold for long: `/dev/loop-control`, which only root opens, is locked, but a
    /// user can stop the process that holds it. Whoever has waited enough goes on; the price is a second device.
    fn shared_by_users(&self, image: BorrowedFd, wanted: (u64, u64)) -> Outcome<Device> {
        if let Some((number, fd)) = self.find(None, wanted) {
            return Ok(device(number, fd, None));
        }
        let control = self.control()?;
        for _ in 0..LOCK_ATTEMPTS {
            match flock(&control, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::AGAIN) => _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }),
                _ => break,
            }
        }
        if let Some((number, fd)) = self.find(None, wanted) {
            return Ok(device(number, fd, None));
        }
        let (number, fd) = self.attach(image)?;
        Ok(device(number, fd, None))
    }

    /// One for this run alone.
    pub fn own(&self, image: BorrowedFd) -> Outcome<Device> {
        let (number, fd) = self.attach(image)?;
        Ok(device(number, fd, None))
    }

    /// The kernel opens a device by its path once more: it must be the host's `/dev` that is seen there.
    pub fn check_path(&self) -> Outcome<()> {
        if !self.rights.are_lent() {
            return Ok(());
        }
        let seen = open_path(CWD, b"/dev").doing("open", b"/dev")?;
        let (seen, held) = (fstat(&seen), fstat(&self.dev));
        if same_inode(&seen.doing("look at", b"/dev")?, &held.doing("look at", b"/dev")?) {
            return Ok(());
        }
        Err(refused("setuid mode mounts images before anything is mounted over /dev"))
    }

    fn find(&self, remembered: Option<usize>, wanted: (u64, u64)) -> Option<(usize, OwnedFd)> {
        if let Some(found) = remembered.and_then(|number| self.open_if_it_backs(number, wanted)) {
            return Some(found);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut entries = Dir::new(openat(CWD, "/sys/block", flags, Mode::empty()).ok()?).ok()?;
        while let Some(Ok(entry)) = entries.read() {
            let name = entry.file_name().to_str().ok();
            let number = name.and_then(|name| name.strip_prefix("loop")).and_then(|number| number.parse().ok());
            if let Some(found) = number.and_then(|number| self.open_if_it_backs(number, wanted)) {
                return Some(found);
            }
        }
        None
    }

    /// It is asked after it was opened: what is open cannot be cleared and attached to another file.
    fn open_if_it_backs(&self, number: usize, wanted: (u64, u64)) -> Option<(usize, OwnedFd)> {
        let fd = self.open_device(number).ok()?;
        let backs = sys::loop_status(fd.as_fd()).ok()?.backs(wanted.0, wanted.1);
        backs.then_some((number, fd))
    }

    fn open_device(&self, number: usize) -> Result<OwnedFd, Errno> {
        let fd = self.open_node(&format!("loop{number}"), OFlags::RDONLY)?;
        let status = fstat(&fd)?;
        let is_loop =
            FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice && major(status.st_rdev) == LOOP_MAJOR;
        if is_loop { Ok(fd) } else { Err(Errno::NODEV) }
    }

    fn control(&self) -> Outcome<OwnedFd> {
        let control = self.open_node("loop-control", OFlags::RDWR);
        control.map_err(|error| Failure::os("open", b"/dev/loop-control", error).hint(NO_LOOP))
    }

    /// A fixed name in the host's `/dev`.
    fn open_node(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let _raised = self.rights.raise(NODE)?;
        openat(&self.dev, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    fn attach(&self, image: BorrowedFd) -> Outcome<(usize, OwnedFd)> {
        let control = self.control()?;
        for _ in 0..ATTEMPTS {
            let number = sys::get_free(control.as_fd()).doing("get a free loop device", b"")?;
            let path = path_of(number);
            let fd =
                self.open_device(number).map_err(|error| Failure::os("open", path.as_bytes(), error).hint(NO_LOOP))?;
            match sys::loop_configure(fd.as_fd(), image) {
                Ok(()) => return Ok((number, fd)),
                Err(Errno::BUSY) => {} // somebody was faster
                Err(error) => return Err(Failure::os("attach the image to", path.as_bytes(), error)),
            }
        }
        Err(Failure::new("no loop device stays free long enough to be attached").hint("try again"))
    }
}

fn device(number: usize, fd: OwnedFd, lock: Option<OwnedFd>) -> Device {
    Device { path: path_of(number), _fd: fd, _lock: lock }
}

fn path_of(number: usize) -> String {
    format!("/dev/loop{number}")
}

fn lock(home: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let locks = make_dir(home, b"locks")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(locks, name, flags, Mode::RUSR | Mode::WUSR)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// A hint for the next run; without it that one searches.
fn remember(lock: &OwnedFd, number: usize) {
    let text = format!("{number}\n");
    if rustix::io::pwrite(lock, text.as_bytes(), 0).is_ok() {
        let _ = rustix::fs::ftruncate(lock, text.len() as u64);
    }
}
