//! Image: a squashfs file, mounted by the kernel over a loop device; and Erofs, which needs none.

use super::Child;
use super::mounts::{SAFE, new_mount};
use crate::error::{Failure, Outcome};
use crate::fsops::proc_fd;
use crate::plan::{Slot, attr};
use crate::sources::Whose;
use rustix::mount::MountAttrFlags;

impl Child<'_> {
    pub fn image(&mut self, slot: Slot, source: u32) -> Outcome<()> {
        let fd = self.prepared.sources.file(source)?;
        let devices = self.prepared.devices.ok_or_else(|| Failure::new("there are no loop devices"))?;
        // The device, and the lock that keeps others from looking for one in vain, are held until it is mounted.
        let device = match self.prepared.sources.whose(source) {
            Whose::Run => devices.own(fd)?,
            whose => devices.shared(&self.prepared.home.fd, fd, whose)?,
        };
        devices.check_path(&device)?;
        // Without `ro` before create the kernel asks for a writable device: EACCES.
        let options = [("ro", None), ("source", Some(device.path.as_str()))];
        let root = new_mount("squashfs", &options, SAFE | MountAttrFlags::MOUNT_ATTR_RDONLY, self.prepared.rights)?;
        devices.check_mount(&device, &root)?;
        self.add_mount(slot, root, attr::READ_ONLY | attr::NOSUID | attr::NODEV);
        Ok(())
    }

    /// Straight from the file (Linux 6.12): each mount is a filesystem of its own.
    pub fn erofs(&mut self, slot: Slot, source: u32) -> Outcome<()> {
        let file = proc_fd(self.prepared.sources.file(source)?);
        let options = [("ro", None), ("source", Some(file.as_str()))];
        let root = new_mount("erofs", &options, SAFE | MountAttrFlags::MOUNT_ATTR_RDONLY, self.prepared.rights)?;
        self.add_mount(slot, root, attr::READ_ONLY | attr::NOSUID | attr::NODEV);
        Ok(())
    }
}
