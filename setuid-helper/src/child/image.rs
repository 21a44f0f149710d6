//! Image: a squashfs file, mounted by the kernel over a loop device.

use super::Child;
use super::loopdev::Device;
use super::mounts::{SAFE, new_mount};
use crate::error::Outcome;
use crate::plan::{Slot, SourceKind, attr};
use rustix::mount::MountAttrFlags;

impl Child<'_> {
    pub fn image(&mut self, slot: Slot, source: u32) -> Outcome<()> {
        let fd = self.prepared.sources.file(source)?;
        let is_file = self.prepared.plan.sources[source as usize].kind == SourceKind::File;
        // The device, and the lock that keeps others from looking for one in vain, are held until it is mounted.
        let device = if is_file { Device::shared(&self.prepared.home.fd, fd)? } else { Device::own(fd)? };
        // Without `ro` before create the kernel asks for a writable device: EACCES.
        let options = [("ro", None), ("source", Some(device.path.as_str()))];
        let root = new_mount("squashfs", &options, SAFE | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        self.add_mount(slot, root, attr::READ_ONLY | attr::NOSUID | attr::NODEV);
        Ok(())
    }
}
