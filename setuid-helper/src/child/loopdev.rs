//! Loop devices: one per image file, however many sandboxes.

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::make_dir;
use crate::prelude::*;
use crate::sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;

const ATTEMPTS: u32 = 64;
const NO_LOOP: &str =
    "load the loop module (modprobe loop), give the container /dev/loop-control and /dev/loop*, or use --mode userns";

/// A loop device that shows an image. While it is open nothing can clear it.
pub struct Device {
    /// `/dev/loopN`.
    pub path: String,
    _fd: OwnedFd,
    _lock: Option<OwnedFd>,
}

impl Device {
    /// The device that all runs share for this file.
    pub fn shared(home: &OwnedFd, image: BorrowedFd) -> Outcome<Device> {
        let status = fstat(image).doing("look at the image", b"")?;
        let name = format!("loop-{}-{}", status.st_dev, status.st_ino);
        let lock = lock(home, &name).doing("lock", name.as_bytes())?;
        let mut remembered = [0u8; 16];
        let length = rustix::io::pread(&lock, &mut remembered, 0).unwrap_or(0);
        let remembered = core::str::from_utf8(&remembered[..length]).ok().and_then(|text| text.trim().parse().ok());
        let wanted = (status.st_dev, status.st_ino);
        if let Some((number, fd)) = find(remembered, wanted) {
            if Some(number) != remembered {
                remember(&lock, number);
            }
            return Ok(device(number, fd, Some(lock)));
        }
        let (number, fd) = attach(image)?;
        remember(&lock, number);
        Ok(device(number, fd, Some(lock)))
    }

    /// One for this run alone.
    pub fn own(image: BorrowedFd) -> Outcome<Device> {
        let (number, fd) = attach(image)?;
        Ok(device(number, fd, None))
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

fn find(remembered: Option<usize>, wanted: (u64, u64)) -> Option<(usize, OwnedFd)> {
    if let Some(found) = remembered.and_then(|number| open_if_it_backs(number, wanted)) {
        return Some(found);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut entries = Dir::new(openat(CWD, "/sys/block", flags, Mode::empty()).ok()?).ok()?;
    while let Some(Ok(entry)) = entries.read() {
        let name = entry.file_name().to_str().ok();
        let number = name.and_then(|name| name.strip_prefix("loop")).and_then(|number| number.parse().ok());
        if let Some(found) = number.and_then(|number| open_if_it_backs(number, wanted)) {
            return Some(found);
        }
    }
    None
}

/// It is asked after it was opened: what is open cannot be cleared and attached to another file.
fn open_if_it_backs(number: usize, wanted: (u64, u64)) -> Option<(usize, OwnedFd)> {
    let fd = open_device(number).ok()?;
    let backs = sys::loop_status(fd.as_fd()).ok()?.backs(wanted.0, wanted.1);
    backs.then_some((number, fd))
}

fn open_device(number: usize) -> Result<OwnedFd, Errno> {
    openat(CWD, path_of(number), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn attach(image: BorrowedFd) -> Outcome<(usize, OwnedFd)> {
    let path = "/dev/loop-control";
    let control = openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let control = control.map_err(|error| Failure::os("open", path.as_bytes(), error).hint(NO_LOOP))?;
    for _ in 0..ATTEMPTS {
        let number = sys::get_free(control.as_fd()).doing("get a free loop device", b"")?;
        let path = path_of(number);
        let fd = open_device(number).map_err(|error| Failure::os("open", path.as_bytes(), error).hint(NO_LOOP))?;
        match sys::loop_configure(fd.as_fd(), image) {
            Ok(()) => return Ok((number, fd)),
            Err(Errno::BUSY) => {} // somebody was faster
            Err(error) => return Err(Failure::os("attach the image to", path.as_bytes(), error)),
        }
    }
    Err(Failure::new("no loop device stays free long enough to be attached").hint("try again"))
}
