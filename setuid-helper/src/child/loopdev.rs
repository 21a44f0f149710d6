//! Loop devices: one per image file, however many sandboxes.

use crate::error::{Doing, Failure, Outcome};
use crate::fsops::{make_dir, open_path, read_all, same_inode};
use crate::plan::{Plan, Step};
use crate::prelude::*;
use crate::procfs;
use crate::setuid::{NODE, Rights, image_lock, lock, lock_file, refused};
use crate::sources::{Sources, Whose};
use crate::sys::{self, LoopStatus};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, major, makedev, mknodat, openat, statat,
};
use rustix::io::Errno;
use rustix::process::getuid;

const ATTEMPTS: u32 = 64;
/// How long launches with the same image are waited for, in milliseconds: another user may have stopped one.
const IMAGE_PATIENCE: u32 = 50;
/// The same for other launches of this user.
const COUNT_PATIENCE: u32 = 2000;
const LOOP_MAJOR: u32 = 7;
/// On whose account the devices are that all share.
const ROOT: u32 = 0;
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_LOOP: &str = "load the loop module (modprobe loop), give the container --device /dev/loop-control \
                       --device-cgroup-rule 'b 7:* rmw' --cap-add MKNOD, or use --mode userns";
const NO_NODE: &str = "give the container --device /dev/loop-control --device-cgroup-rule 'b 7:* rmw' \
                       --cap-add MKNOD, or use --mode userns";

/// A loop device that shows an image. While it is open nothing can clear it.
pub struct Device {
    /// `/dev/loopN`.
    pub path: String,
    fd: OwnedFd,
    lock: Option<OwnedFd>,
}

impl Device {
    /// What `st_rdev` of its node says, and `st_dev` of all that is on it.
    fn number(&self) -> Outcome<u64> {
        Ok(fstat(&self.fd).doing("look at", self.path.as_bytes())?.st_rdev)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The supervisor has the same file open.
        let _ = self.lock.as_ref().map(|lock| flock(lock, FlockOperation::Unlock));
    }
}

/// Where loop devices are opened: by descriptor of the host's `/dev`, as the run may mount something else there.
pub struct Devices {
    dev: OwnedFd,
    /// The host's `/sys/block`, for the same reason; None: nobody can say which devices there are.
    blocks: Option<OwnedFd>,
    rights: Rights,
    /// Of who has no loop devices but through the helper.
    bounds: Option<Bounds>,
}

/// What users share the loop devices by; only root can open these.
pub struct Bounds {
    /// By device and inode of an image.
    locks: Vec<((u64, u64), OwnedFd)>,
    /// Held while the devices of this user are counted.
    own: OwnedFd,
    most: u64,
}

impl Bounds {
    /// For the images of a plan, of a user who has at most so many devices.
    pub fn open(plan: &Plan, sources: &Sources, most: u64, rights: Rights) -> Outcome<Bounds> {
        let own = lock_file(&getuid().as_raw().to_string(), "loops", rights)?;
        let mut locks: Vec<((u64, u64), OwnedFd)> = Vec::new();
        for step in &plan.steps {
            let Step::Image { source, .. } = *step else { continue };
            let image = identity(sources.file(source)?)?;
            if sources.whose(source) != Whose::Run && locks.iter().all(|(other, _)| *other != image) {
                locks.push((image, image_lock(image, rights)?));
            }
        }
        Ok(Bounds { locks, own, most })
    }
}

impl Devices {
    /// In the host's mount namespace.
    pub fn open(bounds: Option<Bounds>, rights: Rights) -> Outcome<Devices> {
        let dev = open_path(CWD, b"/dev").doing("open", b"/dev")?;
        let status = fstat(&dev).doing("look at", b"/dev")?;
        if rights.are_lent() && (status.st_uid != 0 || status.st_mode & 0o022 != 0) {
            return Err(refused("/dev could be changed by somebody else than root"));
        }
        let blocks = openat(CWD, "/sys/block", LIST, Mode::empty()).ok();
        Ok(Devices { dev, blocks, rights, bounds })
    }

    /// The device that all runs share for this file.
    pub fn shared(&self, home: &OwnedFd, image: BorrowedFd, whose: Whose) -> Outcome<Device> {
        let wanted = identity(image)?;
        let held;
        let (file, is_locked) = match &self.bounds {
            Some(bounds) => {
                let found = bounds.locks.iter().find(|(other, _)| *other == wanted);
                let file = &found.ok_or_else(|| Failure::new("an image has no lock"))?.1;
                // Whoever has waited enough goes on: the price is a second device.
                (file, lock(file, IMAGE_PATIENCE))
            }
            None => {
                let name = format!("loop-{}-{}", wanted.0, wanted.1);
                held = own_lock(home, &name).doing("lock", name.as_bytes())?;
                (&held, true)
            }
        };
        let mut remembered = [0u8; 16];
        let length = rustix::io::pread(file, &mut remembered, 0).unwrap_or(0);
        let remembered = core::str::from_utf8(&remembered[..length]).ok().and_then(|text| text.trim().parse().ok());
        let (number, fd) = match self.find(remembered, wanted) {
            Ok(Some(found)) => found,
            // Whoever comes first has it attached for all, and pays for none: there are as many of these as images of
            // root's. Else he could be kept out by who goes on using what he paid for.
            Ok(None) if is_locked && whose == Whose::Everybody => self.attach_for(ROOT, image)?,
            // What cannot be looked for is attached once more, and counted.
            Ok(None) | Err(_) => self.attach(image)?,
        };
        if Some(number) != remembered {
            remember(file, number);
        }
        let lock = rustix::io::fcntl_dupfd_cloexec(file, 3).doing("keep the lock of", path_of(number).as_bytes())?;
        Ok(device(number, fd, Some(lock)))
    }

    /// One for this run alone.
    pub fn own(&self, image: BorrowedFd) -> Outcome<Device> {
        let (number, fd) = self.attach(image)?;
        Ok(device(number, fd, None))
    }

    /// The kernel looks a device up by its path once more: it must be the host's `/dev` that is seen there, and in it
    /// this very device, as a plan may cover either. Only the plan's own steps mount in this namespace, and nobody but
    /// root renames in `/` or `/dev`.
    pub fn check_path(&self, device: &Device) -> Outcome<()> {
        if !self.rights.are_lent() {
            return Ok(());
        }
        let seen = open_path(CWD, b"/dev").doing("open", b"/dev")?;
        let (seen, held) = (fstat(&seen).doing("look at", b"/dev")?, fstat(&self.dev).doing("look at", b"/dev")?);
        if !same_inode(&seen, &held) {
            return Err(covered());
        }
        let (path, flags) = (device.path.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let node = openat(CWD, path, flags, Mode::empty()).and_then(fstat).doing("look at", path)?;
        let is_block = FileType::from_raw_mode(node.st_mode) == FileType::BlockDevice;
        if is_block && node.st_rdev == device.number()? { Ok(()) } else { Err(covered()) }
    }

    /// The same, asked of what came of it: nothing that is on another device is ever attached.
    pub fn check_mount(&self, device: &Device, root: &OwnedFd) -> Outcome<()> {
        let is_on = !self.rights.are_lent() || fstat(root).doing("look at", b"the image")?.st_dev == device.number()?;
        if is_on { Ok(()) } else { Err(covered()) }
    }

    fn find(&self, remembered: Option<usize>, wanted: (u64, u64)) -> Result<Option<(usize, OwnedFd)>, Errno> {
        if let Some(found) = remembered.and_then(|number| self.open_if_it_backs(number, wanted).ok().flatten()) {
            return Ok(Some(found));
        }
        let mut unseen = None;
        for number in self.numbers()? {
            match self.open_if_it_backs(number, wanted) {
                Ok(None) => {}
                Err(error) => unseen = Some(error),
                found => return found,
            }
        }
        unseen.map_or(Ok(None), Err)
    }

    fn open_if_it_backs(&self, number: usize, wanted: (u64, u64)) -> Result<Option<(usize, OwnedFd)>, Errno> {
        let is_it = |status: &LoopStatus| status.backs(wanted.0, wanted.1) && !status.is_of_another(getuid().as_raw());
        Ok(self.look(number)?.and_then(|(status, fd)| is_it(&status).then_some((number, fd))))
    }

    /// What a device shows, or None: nothing, or a container has no node of it. It is asked after it was opened: what is
    /// open cannot be cleared and attached to another file.
    fn look(&self, number: usize) -> Result<Option<(LoopStatus, OwnedFd)>, Errno> {
        match self.open_device(number).and_then(|fd| Ok((sys::loop_status(fd.as_fd())?, fd))) {
            Err(Errno::NOENT | Errno::NXIO) => Ok(None),
            looked => looked.map(Some),
        }
    }

    fn open_device(&self, number: usize) -> Result<OwnedFd, Errno> {
        let fd = self.open_node(&format!("loop{number}"), OFlags::RDONLY)?;
        let status = fstat(&fd)?;
        let is_loop =
            FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice && major(status.st_rdev) == LOOP_MAJOR;
        if is_loop { Ok(fd) } else { Err(Errno::NODEV) }
    }

    /// A container's `/dev` does not get the nodes of new devices from the kernel. Nobody is lent the right to make one.
    fn open_or_make(&self, number: usize) -> Result<OwnedFd, Errno> {
        let opened = self.open_device(number);
        if self.rights.are_lent() || !matches!(opened, Err(Errno::NOENT)) {
            return opened;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        match mknodat(&self.dev, &*format!("loop{number}"), FileType::BlockDevice, mode, self.node_of(number)) {
            Ok(()) | Err(Errno::EXIST) => self.open_device(number),
            Err(error) => Err(error),
        }
    }

    /// In a container without `/sys` they are numbered as the module does without partitions.
    fn node_of(&self, number: usize) -> u64 {
        let path = format!("loop{number}/dev");
        let file = self.blocks.as_ref().and_then(|blocks| openat(blocks, &*path, OFlags::RDONLY, Mode::empty()).ok());
        let text = file.and_then(|file| read_all(file, 64).ok()).unwrap_or_default();
        let mut parts =
            text.trim_ascii().split(|byte| *byte == b':').map(|part| core::str::from_utf8(part).ok()?.parse().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => makedev(major, minor),
            _ => makedev(LOOP_MAJOR, number as u32),
        }
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

    /// Of every loop device that there is.
    fn numbers(&self) -> Result<Vec<usize>, Errno> {
        let mut numbers = Vec::new();
        for entry in Dir::read_from(self.blocks.as_ref().ok_or(Errno::NOENT)?)? {
            let entry = entry?;
            let number = entry.file_name().to_bytes().strip_prefix(b"loop").and_then(procfs::parse);
            numbers.extend(number.and_then(|number| usize::try_from(number).ok()));
        }
        Ok(numbers)
    }

    /// How many are on this user's account, at most. He can have calls of this process fail, by its limits (prlimit(2)):
    /// what cannot be looked at is not somebody else's, but counts. Nor is it a reason to refuse: of a device whose file
    /// is in somebody's FUSE mount the kernel tells nobody else anything.
    fn count(&self, uid: u32) -> Result<u64, Errno> {
        let counts = |looked: Result<Option<(LoopStatus, _)>, _>| {
            looked.map_or(true, |found| found.is_some_and(|(status, _)| status.is_of(uid)))
        };
        Ok(self.numbers()?.into_iter().filter(|number| counts(self.look(*number))).count() as u64)
    }

    fn attach(&self, image: BorrowedFd) -> Outcome<(usize, OwnedFd)> {
        let uid = getuid().as_raw();
        let Some(bounds) = &self.bounds else { return self.attach_for(uid, image) };
        let locked = lock(&bounds.own, COUNT_PATIENCE);
        if !locked || self.count(uid).doing("count", b"your loop devices")? >= bounds.most {
            let message = format!("you have all {} loop devices that the policy allows", bounds.most);
            return Err(refused(message).hint("end other sandboxes; a stopped launch is in the way, too"));
        }
        let attached = self.attach_for(uid, image);
        let _ = flock(&bounds.own, FlockOperation::Unlock);
        attached
    }

    /// On this user's account.
    fn attach_for(&self, uid: u32, image: BorrowedFd) -> Outcome<(usize, OwnedFd)> {
        let control = self.control()?;
        for _ in 0..ATTEMPTS {
            let number = sys::get_free(control.as_fd()).doing("get a free loop device", b"")?;
            let path = path_of(number);
            let fd =
                self.open_or_make(number).map_err(|error| Failure::os("open", path.as_bytes(), error).hint(NO_NODE))?;
            match sys::loop_configure(fd.as_fd(), image, uid) {
                Ok(()) => return Ok((number, fd)),
                Err(Errno::BUSY) => {} // somebody was faster
                Err(error) => return Err(Failure::os("attach the image to", path.as_bytes(), error)),
            }
        }
        Err(Failure::new("no loop device stays free long enough to be attached").hint("try again"))
    }
}

fn identity(image: BorrowedFd) -> Outcome<(u64, u64)> {
    let status = fstat(image).doing("look at the image", b"")?;
    Ok((status.st_dev, status.st_ino))
}

fn device(number: usize, fd: OwnedFd, lock: Option<OwnedFd>) -> Device {
    Device { path: path_of(number), fd, lock }
}

fn covered() -> Failure {
    refused("setuid mode mounts images before anything is mounted over /dev")
}

fn path_of(number: usize) -> String {
    format!("/dev/loop{number}")
}

fn own_lock(home: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let locks = make_dir(home, b"locks")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let lock = openat(&locks, name, flags, Mode::RUSR | Mode::WUSR)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        // The reaper may have removed what was waited for; then it locks nobody out.
        match statat(&locks, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if same_inode(&there, &fstat(&lock)?) => return Ok(lock),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A hint for the next run; without it that one searches.
fn remember(lock: &OwnedFd, number: usize) {
    let text = format!("{number}\n");
    if rustix::io::pwrite(lock, text.as_bytes(), 0).is_ok() {
        let _ = rustix::fs::ftruncate(lock, text.len() as u64);
    }
}
