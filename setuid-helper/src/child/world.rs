//! What an isolated command sees of the system: a locked tree, a fresh /proc, a minimal /dev, nothing where things hide.

use super::Child;
use super::mounts::{SAFE, clone_mount, copy_mount, kernel_attributes, move_onto, new_mount};
use super::place::PATH;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::{NO_LINKS, make_new_dir, open_path};
use crate::plan::{Mode as LaunchMode, Place};
use crate::prelude::*;
use crate::setuid::{MOUNT, check_target, is_proc, refused};
use crate::sources::same_directory;
use crate::sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, makedev, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

const QUIET: MountAttrFlags = SAFE.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
const READ_ONLY: u64 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64;
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `docs/plan.md`, section 10.
const PROC_READ_ONLY: [&str; 6] = ["bus", "fs", "irq", "pressure", "sys", "sysrq-trigger"];
const PROC_MASKED: [&str; 12] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// Device numbers: Documentation/admin-guide/devices.txt of Linux.
const NODES: [(u32, u32, &str); 6] =
    [(1, 3, "null"), (1, 5, "zero"), (1, 7, "full"), (1, 8, "random"), (1, 9, "urandom"), (5, 0, "tty")];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

impl Child<'_> {
    pub fn lock_tree(&self, attrs: u32) -> Outcome<()> {
        let root = open_path(CWD, b"/").doing("open", b"/")?;
        let raised = self.prepared.rights.raise(MOUNT);
        raised
            .and_then(|_raised| sys::add_attributes(root.as_fd(), kernel_attributes(attrs), true))
            .doing("set attributes of the mounts below", b"/")
    }

    /// What is at a place, over itself and with these attributes.
    pub fn protect(&self, place: &Place, attrs: u32) -> Outcome<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let target = self.open_root(place.path, flags, NO_LINKS).doing("open", place.path)?;
        same_directory(place.path, place.dev, place.ino, &fstat(&target).doing("look at", place.path)?)?;
        let rights = self.prepared.rights;
        if rights.are_lent() && self.root.is_none() {
            let procdirs = fstat(&self.prepared.home.procdirs).doing("look at", place.path)?;
            check_target(target.as_fd(), &procdirs, place.path)?;
        }
        let clone = clone_mount(target.as_fd(), true, kernel_attributes(attrs), rights).doing("clone", place.path)?;
        move_onto(clone.as_fd(), target.as_fd(), rights).doing("protect", place.path)
    }

    pub fn set_procdir(&mut self, place: &Place) -> Outcome<()> {
        self.procdir = Some(self.open_place(place)?);
        self.procdir_path = Some(self.path_of(place));
        Ok(())
    }

    /// Of this pid namespace; what is the host's in it is masked or read-only.
    pub fn proc(&mut self) -> Outcome<()> {
        let rights = self.prepared.rights;
        let target = self.open_root(b"/proc", PATH, ResolveFlags::NO_MAGICLINKS).doing("open", b"/proc")?;
        if rights.are_lent() && self.root.is_none() && !is_proc(target.as_fd())? {
            return Err(refused("setuid mode mounts a /proc over nothing but /proc"));
        }
        let root = new_mount("proc", &[], QUIET, rights)?;
        move_onto(root.as_fd(), target.as_fd(), rights).doing("mount onto", b"/proc")?;
        for name in PROC_READ_ONLY {
            let Some(fd) = below(&root, name)? else { continue };
            let clone = clone_mount(fd.as_fd(), false, READ_ONLY, rights).doing("clone /proc/", name.as_bytes())?;
            move_onto(clone.as_fd(), fd.as_fd(), rights).doing("mount onto /proc/", name.as_bytes())?;
        }
        for name in PROC_MASKED {
            if let Some(fd) = below(&root, name)? {
                self.cover(fd.as_fd(), name.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Something empty and read-only over what `target` is: each time the same, as a filesystem costs more than a clone.
    fn cover(&mut self, target: BorrowedFd, name: &[u8]) -> Outcome<()> {
        let rights = self.prepared.rights;
        let is_directory =
            FileType::from_raw_mode(fstat(target).doing("look at", name)?.st_mode) == FileType::Directory;
        let before = if is_directory { &self.empty } else { &self.null };
        let mount = match before {
            Some(before) => copy_mount(before.as_fd(), rights).doing("clone what covers", name)?,
            None if is_directory => self.small_tmpfs("4096", "2", "555", QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY)?,
            None => self.device(NODES[0], READ_ONLY)?,
        };
        move_onto(mount.as_fd(), target, rights).doing("cover", name)?;
        *(if is_directory { &mut self.empty } else { &mut self.null }) = Some(mount);
        Ok(())
    }

    fn small_tmpfs(&self, size: &str, inodes: &str, mode: &str, attrs: MountAttrFlags) -> Outcome<OwnedFd> {
        let source = format!("sandbox:{}", self.prepared.id);
        let options = [
            ("source", Some(source.as_str())),
            ("size", Some(size)),
            ("nr_inodes", Some(inodes)),
            ("mode", Some(mode)),
        ];
        new_mount("tmpfs", &options, attrs, self.prepared.rights)
    }

    /// A detached mount of one device node, which is what its number says, whoever owns the directory that it is in.
    fn device(&self, (major, minor, name): (u32, u32, &str), attributes: u64) -> Outcome<OwnedFd> {
        let path = format!("/dev/{name}");
        let fd = openat(CWD, &path, LOOK, Mode::empty()).doing("open", path.as_bytes())?;
        check_device(&fd, (major, minor), &path)?;
        let flags = (MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC).bits();
        let rights = self.prepared.rights;
        let clone = copy_mount(fd.as_fd(), rights).doing("clone", path.as_bytes())?;
        let raised = rights.raise(MOUNT);
        raised
            .and_then(|_raised| sys::make_device_mount(clone.as_fd(), u64::from(flags) | attributes))
            .doing("set attributes of", path.as_bytes())?;
        Ok(clone)
    }

    pub fn dev(&mut self) -> Outcome<()> {
        let rights = self.prepared.rights;
        let nodes = NODES.map(|node| self.device(node, 0));
        let root = self.small_tmpfs("65536", "64", "755", QUIET)?;
        let target = self.open_root(b"/dev", PATH, ResolveFlags::NO_MAGICLINKS).doing("open", b"/dev")?;
        move_onto(root.as_fd(), target.as_fd(), rights).doing("mount onto", b"/dev")?;
        for ((.., name), node) in NODES.iter().zip(nodes) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let point = openat(&root, *name, flags, Mode::RUSR).doing("make /dev/", name.as_bytes())?;
            move_onto(node?.as_fd(), point.as_fd(), rights).doing("mount onto /dev/", name.as_bytes())?;
        }
        for (to, name) in LINKS {
            symlinkat(to, &root, name).doing("make /dev/", name.as_bytes())?;
        }
        self.fill_dev(&root).doing("set up", b"/dev")?;
        self.dev = Some(root);
        Ok(())
    }

    fn fill_dev(&self, root: &OwnedFd) -> Result<(), Errno> {
        let rights = self.prepared.rights;
        let all: [(&str, Option<&str>); 3] = [("ptmxmode", Some("666")), ("mode", Some("620")), ("gid", Some("5"))];
        // A group for terminals is a second id, which a map of one has not.
        let options = if self.prepared.plan.mode == LaunchMode::Userns { &all[..2] } else { &all[..] };
        let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let pts =
            new_mount("devpts", options, attrs, rights).map_err(|failure| failure.errno.unwrap_or(Errno::INVAL))?;
        let points = ["pts", "shm"].map(|name| make_new_dir(root, name.as_bytes()));
        let [point, shm] = points;
        rustix::fs::fchmod(openat(root, "pts", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, 0o755.into())?;
        drop(shm?);
        move_onto(pts.as_fd(), point?.as_fd(), rights)?;
        let _raised = rights.raise(MOUNT)?;
        sys::add_attributes(root.as_fd(), READ_ONLY, false)
    }

    /// What is not there, or out of this user's reach, is out of the command's as well.
    pub fn hide(&mut self, path: &[u8]) -> Outcome<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = match self.open_root(path, flags, ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => return Ok(()),
            other => other.doing("open", path)?,
        };
        if self.prepared.rights.are_lent() {
            let procdirs = fstat(&self.prepared.home.procdirs).doing("look at", path)?;
            check_target(fd.as_fd(), &procdirs, path)?;
        }
        self.before_covering(path)?;
        self.cover(fd.as_fd(), &printable(path).into_bytes())
    }
}

/// What is at a path is this character device, whatever its name says.
pub fn check_device(fd: &OwnedFd, (major, minor): (u32, u32), path: &str) -> Outcome<()> {
    let status = fstat(fd).doing("look at", path.as_bytes())?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice;
    if is_device && status.st_rdev == makedev(major, minor) {
        return Ok(());
    }
    Err(Failure::new(format!("{path} is not the device {major}:{minor}")).hint("mend the host's /dev"))
}

fn below(root: &OwnedFd, name: &str) -> Outcome<Option<OwnedFd>> {
    match openat(root, name, LOOK, Mode::empty()) {
        Err(Errno::NOENT | Errno::ACCESS) => Ok(None),
        other => other.doing("open /proc/", name.as_bytes()).map(Some),
    }
}
