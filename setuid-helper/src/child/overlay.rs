//! Overlay, and the momentary attaching of layers that the kernel refuses while they are detached.

use super::Child;
use super::mounts::{SAFE, move_onto, new_mount};
use crate::error::{Doing, Outcome};
use crate::fsops::{make_new_dir, proc_fd, remove_dir};
use crate::plan::{Slot, Slots, attr, overlay};
use crate::prelude::*;
use crate::setuid::{MOUNT, NODE, Rights};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Gid, Mode, Uid, chmodat, chownat, fstat, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{UnmountFlags, unmount};

const NAME: &[u8] = b".sandbox-layers";
/// fsconfig(2) takes strings of at most 255 bytes.
const LONGEST_OPTION: usize = 255;

/// A tmpfs that only its owner gets into. Layers are attached below it, so that one unmount ends them all.
pub struct Layers {
    /// The procdir's mount that the directory is in.
    parent: OwnedFd,
    root: OwnedFd,
}

impl Child<'_> {
    pub fn overlay(&mut self, slot: Slot, lowers: Slots, upper: Slot, options: u32) -> Outcome<()> {
        let upper_fd = fcntl_dupfd_cloexec(&self.mount(upper)?.root, 3).doing("keep the upper mount", b"")?;
        let top = lowers.iter().next_back().unwrap_or_default();
        let mode =
            Mode::from_raw_mode(fstat(&self.mount(top)?.root).doing("look at the top layer", b"")?.st_mode & 0o777);
        let parts =
            make_parts(upper_fd.as_fd(), slot, mode, self.owner).doing("make upper and work directories", b"")?;
        self.mount_layers(slot, lowers, Some((upper, &parts)), options)
    }

    pub fn stack(&mut self, slot: Slot, lowers: Slots, options: u32) -> Outcome<()> {
        self.mount_layers(slot, lowers, None, options)
    }

    fn mount_layers(
        &mut self,
        slot: Slot,
        lowers: Slots,
        upper: Option<(Slot, &[OwnedFd; 2])>,
        options: u32,
    ) -> Outcome<()> {
        let mut layers = Vec::with_capacity(lowers.len());
        for lower in lowers.iter() {
            layers.insert(0, proc_fd(&self.mount(lower)?.root));
        }
        let (rights, parts) = (self.prepared.rights, upper.map(|(_, parts)| parts));
        let detached = match &self.layers {
            Some(_) => None,
            None => match mount_overlay(&layers, parts, options, rights) {
                // Kernels before 6.15 refuse detached layers in this way. Whatever else is wrong a user of the helper may
                // have brought about (prlimit(2) of this process, say), and is no reason to attach anything.
                Err(failure) if failure.errno == Some(Errno::INVAL) || !rights.are_lent() => None,
                made => Some(made?),
            },
        };
        let root = match detached {
            Some(root) => root,
            None => {
                for layer in lowers.iter().chain(upper.map(|(slot, _)| slot)) {
                    self.attach_for_now(layer)?;
                }
                mount_overlay(&layers, parts, options, rights)?
            }
        };
        self.add_mount(slot, root, attr::NOSUID | attr::NODEV);
        Ok(())
    }

    /// Layers have to be attached while the overlay is made, which keeps clones of its own. They stay until all is set up:
    /// another overlay may have the same ones, what was unmounted is attached nowhere again, and to detach them costs
    /// more than to make the overlay, as the kernel waits for everybody who may still look at them.
    fn attach_for_now(&mut self, slot: Slot) -> Outcome<()> {
        if self.mount(slot)?.attached {
            return Ok(());
        }
        let layers = match self.layers.take() {
            Some(layers) => layers,
            None => self.make_layers()?,
        };
        let rights = self.prepared.rights;
        // The directory is root's where the rights are: the user, whose the ids are, does not get into it.
        let raised = rights.raise(NODE);
        let point = raised.and_then(|_raised| make_new_dir(&layers.root, slot.to_string().as_bytes()));
        self.layers = Some(layers);
        let mount = self.mount(slot)?;
        move_onto(mount.root.as_fd(), point.doing("make a mount point for a layer", b"")?.as_fd(), rights)
            .doing("attach a layer", b"")?;
        mount.attached = true;
        Ok(())
    }

    /// Programs of earlier steps may still run, and later steps go where the user says: with lent rights neither is to
    /// reach a layer, least of all the work directory, in which an overlay acts with more rights than its user has.
    fn make_layers(&mut self) -> Outcome<Layers> {
        let parent = fcntl_dupfd_cloexec(self.procdir()?, 3).doing("keep the procdir", b"")?;
        let rights = self.prepared.rights;
        let mut options = vec![("source", Some("sandbox")), ("size", Some("4096")), ("mode", Some("700"))];
        if rights.are_lent() {
            options.extend([("uid", Some("0")), ("gid", Some("0"))]);
        }
        let root = new_mount("tmpfs", &options, SAFE, rights)?;
        make_new_dir(&parent, NAME)
            .and_then(|directory| move_onto(root.as_fd(), directory.as_fd(), rights))
            .doing("attach layers in the procdir", b"")?;
        Ok(Layers { parent, root })
    }

    /// What was attached for a moment goes by way of /proc: umount(2) takes no descriptor.
    pub fn before_covering(&mut self, path: &[u8]) -> Outcome<()> {
        if path == b"/proc" { self.remove_layers() } else { Ok(()) }
    }

    /// Detach what was attached for a moment; nothing of it is left for the command.
    pub fn remove_layers(&mut self) -> Outcome<()> {
        for (directory, name) in core::mem::take(&mut self.texts) {
            unlinkat(&directory, &name, AtFlags::empty()).doing("remove a file", b"")?;
        }
        let Some(layers) = self.layers.take() else { return Ok(()) };
        let remove = || -> Result<(), Errno> {
            {
                let _raised = self.prepared.rights.raise(MOUNT)?;
                unmount(proc_fd(&layers.root), UnmountFlags::DETACH)?;
            }
            remove_dir(&layers.parent, NAME)
        };
        remove().doing("detach the layers of overlays", b"")
    }
}

/// `<slot>/upper` and `<slot>/work` in the upper mount.
fn make_parts(upper: BorrowedFd, slot: Slot, mode: Mode, owner: Option<(u32, u32)>) -> Result<[OwnedFd; 2], Errno> {
    let own = make_new_dir(upper, slot.to_string().as_bytes())?;
    let parts = [make_new_dir(&own, b"upper")?, make_new_dir(&own, b"work")?];
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(&own, "upper", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    chmodat(&own, "upper", mode, AtFlags::empty())?;
    Ok(parts)
}

/// Without upper and work directories it is read-only.
fn mount_overlay(layers: &[String], parts: Option<&[OwnedFd; 2]>, options: u32, rights: Rights) -> Outcome<OwnedFd> {
    let joined = layers.join(":");
    let writable = parts.map(|parts| parts.each_ref().map(proc_fd));
    let mut settings = vec![("source", Some("sandbox"))];
    if joined.len() <= LONGEST_OPTION {
        settings.push(("lowerdir", Some(&joined)));
    } else {
        settings.extend(layers.iter().map(|layer| ("lowerdir+", Some(layer.as_str())))); // Linux 6.7
    }
    if let Some([upper, work]) = &writable {
        settings.extend([("upperdir", Some(upper.as_str())), ("workdir", Some(work))]);
    }
    if options & overlay::USERXATTR != 0 {
        settings.push(("userxattr", None));
    } else if options & overlay::REDIRECT_DIR != 0 {
        settings.push(("redirect_dir", Some("on")));
    } else {
        // The module's own default may be to follow what an image says.
        settings.extend([("redirect_dir", Some("nofollow")), ("metacopy", Some("off"))]);
    }
    new_mount("overlay", &settings, SAFE, rights)
}
