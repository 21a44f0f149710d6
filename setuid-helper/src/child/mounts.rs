//! Detached mounts and where they are attached.

use super::Child;
use crate::attendance::{MOST_FDS, send_fds};
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::open_path;
use crate::plan::{Base, Place, Slot, SourceKind, Step, attr};
use crate::prelude::*;
use crate::setuid::{MOUNT, OVERLAY, Rights, check_target};
use crate::sources::same_directory;
use crate::supervisor::LAYERS;
use crate::{scratch, sys};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// What the kernel counts for an inode without content, in bytes, which no size of a tmpfs bounds.
const INODE: u64 = 1024;
/// How many inodes the smallest tmpfs may have.
const FEWEST_INODES: u64 = 128;

/// What every new mount gets.
pub const SAFE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A mount that the plan gave a slot.
pub struct Mount {
    /// Its root.
    pub root: OwnedFd,
    /// Whether it is part of the mount tree, if only for now.
    pub attached: bool,
    /// Attributes that it has, of those that a plan can ask for.
    pub attrs: u32,
}

/// A new mount: type, options (a flag has no value), attributes. The message holds the kernel's own explanation.
pub fn new_mount(
    kind: &str,
    options: &[(&str, Option<&str>)],
    attrs: MountAttrFlags,
    rights: Rights,
) -> Outcome<OwnedFd> {
    let wanted = if kind == "overlay" { OVERLAY } else { MOUNT };
    let raised = rights.raise(wanted).doing("raise capabilities for a filesystem of type", kind.as_bytes())?;
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing("make a filesystem of type", kind.as_bytes())?;
    let make = || -> Result<OwnedFd, Errno> {
        for (key, value) in options {
            match value {
                Some(value) => fsconfig_set_string(&context, *key, *value)?,
                None => fsconfig_set_flag(&context, *key)?,
            }
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
    };
    let made = make();
    drop(raised);
    made.map_err(|error| {
        let mut failure = Failure::os("mount a filesystem of type", kind.as_bytes(), error);
        failure.message += &explanation(context.as_fd());
        failure
    })
}

/// The kernel's error lines on a filesystem context ("e overlay: ..."), see fsopen(2).
fn explanation(context: BorrowedFd) -> String {
    let mut text = String::new();
    let mut line = [0u8; 1024];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        if let Some(message) = line[..length].strip_prefix(b"e ") {
            text += ": ";
            text += &printable(message.trim_ascii());
        }
    }
    text
}

/// A detached clone of the mount that `directory` is in, with that directory as its root, of slave propagation.
pub fn clone_mount(directory: BorrowedFd, recursive: bool, attributes: u64, rights: Rights) -> Result<OwnedFd, Errno> {
    // What mounts hide from the user must not show in a clone without them.
    let recursive = recursive || rights.are_lent();
    let _raised = rights.raise(MOUNT)?;
    let clone = open_clone(directory, recursive)?;
    // Before it is attached anywhere: a mount that still belongs to a shared peer group leaks to the host.
    sys::set_mount(clone.as_fd(), attributes)?;
    Ok(clone)
}

/// A detached clone with the propagation of what it is a clone of: of a mount that this run made, which is private, or
/// where the propagation is set next.
pub fn copy_mount(root: BorrowedFd, rights: Rights) -> Result<OwnedFd, Errno> {
    let _raised = rights.raise(MOUNT)?;
    open_clone(root, false)
}

fn open_clone(root: BorrowedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(root, "", flags)
}

/// move_mount(2), both sides by descriptor.
pub fn move_onto(mount: BorrowedFd, target: BorrowedFd, rights: Rights) -> Result<(), Errno> {
    let _raised = rights.raise(MOUNT)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

impl Child<'_> {
    pub fn add_mount(&mut self, slot: Slot, root: OwnedFd, attrs: u32) {
        self.mounts.push((slot, Mount { root, attached: false, attrs }));
    }

    /// What a slot stands for, as it is to be used.
    pub fn mount(&mut self, slot: Slot) -> Outcome<&mut Mount> {
        self.map_ids(slot)?;
        self.made(slot)
    }

    pub fn made(&mut self, slot: Slot) -> Outcome<&mut Mount> {
        let found = self.mounts.iter_mut().find(|(other, _)| *other == slot);
        found.map(|(_, mount)| mount).ok_or_else(|| Failure::new(format!("there is no slot {slot}")))
    }

    /// To whoever launched, with no other rights than his: what the command makes of a tree can be kept after its end.
    pub fn hand_out_trees(&mut self) -> Outcome<()> {
        let sources = self.prepared.sources;
        for (slot, socket) in sources.trees() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(&self.mount(*slot)?.root, ".", flags, Mode::empty()).doing("hand out a tree", b"")?;
            send_fds(socket.as_fd(), b"t", &[root.as_fd()]).doing("hand out a tree", b"")?;
        }
        Ok(())
    }

    /// Leave the last descriptor of what is attached nowhere to the supervisor: closing it takes time, and the command can
    /// start meanwhile. What does not get there ends with this process. Rights of root's make nothing that is handed on;
    /// and a command that is as short as that takes has to wait for the supervisor, where no init ends it.
    pub fn let_go_of_layers(&mut self) {
        let Some(socket) = self.prepared.exchange.filter(|_| self.has_init && !self.prepared.rights.are_lent()) else {
            return;
        };
        let loose = self.mounts.iter().filter(|(_, mount)| !mount.attached);
        let fds: Vec<BorrowedFd> = loose.map(|(_, mount)| mount.root.as_fd()).collect();
        for some in fds.chunks(MOST_FDS) {
            let _ = send_fds(socket.as_fd(), LAYERS, some);
        }
        self.mounts.clear();
    }

    /// A read-only bind of `procdirs/` onto itself.
    pub fn guard(&mut self) -> Outcome<()> {
        let path = self.prepared.plan.home.path;
        let procdirs = self.open_procdirs()?;
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        let clone =
            clone_mount(procdirs.as_fd(), false, read_only, self.prepared.rights).doing("clone procdirs of", path)?;
        move_onto(clone.as_fd(), procdirs.as_fd(), self.prepared.rights).doing("guard procdirs of", path)?;
        // What is below is now reached through the guard.
        self.procdirs = Some(clone);
        self.procdir = None;
        Ok(())
    }

    pub fn tmpfs(&mut self, slot: Slot, size: u64, inodes: u64, mode: u32) -> Outcome<()> {
        // The ids as this user namespace has them: a map may call the user by another number.
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let (uid, gid) = self.owner.unwrap_or(own);
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let source = format!("sandbox:{}", self.prepared.id);
        let (size, inodes) = self.prepared.tmpfs_bytes.map_or((size, inodes), |most| bounded(size, inodes, most));
        let (size, mode, inodes_text) = (size.to_string(), format!("{mode:o}"), inodes.to_string());
        let options = [
            ("source", Some(source.as_str())),
            ("size", Some(&size)),
            ("mode", Some(&mode)),
            ("uid", Some(&uid)),
            ("gid", Some(&gid)),
            ("nr_inodes", Some(&inodes_text)),
        ];
        let used = if inodes == 0 { &options[..5] } else { &options[..] };
        let root = new_mount("tmpfs", used, SAFE, self.prepared.rights)?;
        self.add_mount(slot, root, attr::NOSUID | attr::NODEV);
        Ok(())
    }

    /// A filesystem of its own would cost several times as much.
    pub fn part(&mut self, slot: Slot, of: Slot, mode: u32) -> Outcome<()> {
        let name = format!("part{slot}");
        let base = &self.made(of)?.root;
        let made =
            mkdirat(base, &name, Mode::from_raw_mode(mode & 0o7777)).and_then(|()| open_path(base, name.as_bytes()));
        let directory = made.doing("make a private directory", b"")?;
        let own = self.owner.map_or(Ok(()), |(uid, gid)| {
            chownat(&directory, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
        });
        own.doing("make a private directory", b"")?;
        match copy_mount(directory.as_fd(), self.prepared.rights) {
            // Before Linux 6.15 nothing is cloned that is attached nowhere.
            Err(Errno::INVAL) => {
                let size = self.prepared.plan.steps.iter().find_map(|step| match *step {
                    Step::Tmpfs { slot, size, .. } if slot == of => Some(size),
                    _ => None,
                });
                self.tmpfs(slot, size.unwrap_or_default(), 0, mode)
            }
            other => {
                self.add_mount(slot, other.doing("clone a private directory", b"")?, attr::NOSUID | attr::NODEV);
                Ok(())
            }
        }
    }

    /// The private directory was made before the fork; here its parts are opened anew and cloned.
    pub fn scratch(&mut self, source: u32, slot: Slot, overlay_slot: Slot) -> Outcome<()> {
        let own = scratch::path_in(self.directory_source(source)?.0, self.prepared.id);
        let own_fd = open_path(CWD, &own).doing("open", &own)?;
        if fstat(&own_fd).doing("look at", &own)?.st_uid != rustix::process::getuid().as_raw() {
            return Err(Failure::new(format!("{} was replaced", printable(&own))));
        }
        for (name, slot) in [(scratch::PROCDIR, slot), (scratch::OVERLAY, overlay_slot)] {
            let directory = open_path(&own_fd, name).doing("open a part of", &own)?;
            let safe = SAFE.bits().into();
            let root =
                clone_mount(directory.as_fd(), false, safe, self.prepared.rights).doing("clone a part of", &own)?;
            self.add_mount(slot, root, attr::NOSUID | attr::NODEV);
        }
        Ok(())
    }

    pub fn tree(&mut self, slot: Slot, source: u32, recursive: bool) -> Outcome<()> {
        let (path, fd) = self.directory_source(source)?;
        let root = clone_mount(fd.as_fd(), recursive, 0, self.prepared.rights).doing("clone the mount of", path)?;
        self.add_mount(slot, root, 0);
        Ok(())
    }

    /// A source directory, opened now: a descriptor from before the unshare cannot be cloned (EINVAL).
    pub fn directory_source(&self, source: u32) -> Outcome<(&[u8], OwnedFd)> {
        let sources = &self.prepared.plan.sources;
        let Some(source) = sources.get(source as usize).filter(|source| source.kind == SourceKind::Directory) else {
            return Err(Failure::new(format!("source {source} is not a directory")));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, source.path, flags, Mode::empty()).doing("open", source.path)?;
        same_directory(source.path, source.dev, source.ino, &fstat(&fd).doing("look at", source.path)?)?;
        Ok((source.path, fd))
    }

    pub fn attach(&mut self, slot: Slot, place: &Place, attrs: u32) -> Outcome<()> {
        let path = self.path_of(place);
        let root = fstat(&self.mount(slot)?.root).doing("look at the mount for", &path)?;
        let is_directory = FileType::from_raw_mode(root.st_mode) == FileType::Directory;
        let target = self.open_target(place, is_directory)?;
        let rights = self.prepared.rights;
        // A `Procdir` step may have put the procdir anywhere.
        if rights.are_lent() && (place.base == Base::Root || self.procdir_path.is_some()) {
            let procdirs = fstat(&self.prepared.home.procdirs).doing("look at", &path)?;
            check_target(target.as_fd(), &procdirs, &path)?;
        }
        self.before_covering(place.path)?;
        let mount = self.mount(slot)?;
        // New mounts are private, which is safer than slave; one that has all attributes needs nothing.
        if attrs & !mount.attrs != 0 {
            let raised = rights.raise(MOUNT);
            raised
                .and_then(|_raised| sys::set_mount(mount.root.as_fd(), kernel_attributes(attrs)))
                .doing("set attributes of the mount for", &path)?;
            mount.attrs |= attrs;
        }
        move_onto(mount.root.as_fd(), target.as_fd(), rights).doing("mount onto", &path)?;
        mount.attached = true;
        if place.base == Base::Procdir && place.path.is_empty() {
            // From now on the procdir is what is on top.
            let top = rustix::io::fcntl_dupfd_cloexec(&mount.root, 3).doing("keep", &path)?;
            self.procdir = Some(top);
        }
        Ok(())
    }
}

/// Size and inodes of a tmpfs that has `most` bytes at most, and as much again for what has no content. The kernel's own
/// default goes by the RAM, whatever the size.
fn bounded(size: u64, inodes: u64, most: u64) -> (u64, u64) {
    let size = size.min(most);
    let room = (size / INODE).max(FEWEST_INODES);
    (size, if inodes == 0 { room } else { inodes.min(room) })
}

pub fn kernel_attributes(attrs: u32) -> u64 {
    const TABLE: [(u32, MountAttrFlags); 5] = [
        (attr::READ_ONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (attr::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (attr::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (attr::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (attr::NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let bits = TABLE.iter().filter(|(bit, _)| attrs & bit != 0).map(|(_, flag)| u64::from(flag.bits()));
    bits.fold(0, |all, bit| all | bit)
}
