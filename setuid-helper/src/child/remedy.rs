//! What the user can do about a step that failed.

use crate::plan::Step;
use rustix::io::Errno;

/// A hint, or nothing.
pub fn remedy(step: &Step, error: Errno) -> &'static str {
    match (step, error) {
        (Step::Unshare { .. }, Errno::NOSPC) => {
            "no user namespaces are left or allowed: sysctl user.max_user_namespaces=15000, run as root, \
             or sandbox setuid install"
        }
        (Step::Unshare { .. } | Step::IdMap { .. }, Errno::PERM | Errno::ACCESS) => {
            "user namespaces are restricted here: sysctl kernel.unprivileged_userns_clone=1 or \
             kernel.apparmor_restrict_unprivileged_userns=0 (whichever is there), run as root, or sandbox setuid install"
        }
        (Step::Allow { .. }, Errno::NOENT) => "name what is there, in the sandbox: --allow-read, --allow-write",
        (Step::Attach { .. }, Errno::NOENT) => "create the directory, or let --mkdir do it",
        (Step::Chdir { .. }, Errno::NOENT) => "name a directory that exists, or NAME/PATH of a mounted tree",
        (Step::Image { .. }, Errno::NODEV) => "the kernel has no squashfs: modprobe squashfs, or use --mode userns",
        (Step::Image { .. }, Errno::PERM) => {
            "only root may mount images: use --mode userns, or install the setuid helper"
        }
        (Step::Image { .. }, Errno::INVAL | Errno::IO) => {
            "is the image damaged (sandbox image verify --all), or compressed in a way that this kernel lacks?"
        }
        (Step::Overlay { .. } | Step::Stack { .. } | Step::Tmpfs { .. }, Errno::NODEV) => {
            "the kernel has no such filesystem: modprobe overlay"
        }
        (Step::Overlay { .. } | Step::Stack { .. }, Errno::PERM | Errno::INVAL) => {
            "overlays in a user namespace need Linux 5.11, with a tmpfs 6.6"
        }
        (Step::Fuse { .. }, Errno::ACCESS | Errno::NOENT | Errno::NXIO) => {
            "/dev/fuse cannot be used here: let the image be unpacked instead"
        }
        (Step::Loopback, Errno::PERM) => {
            "a container may withhold the right to: give it CAP_NET_ADMIN, or use --net host"
        }
        (Step::PivotRoot { .. }, Errno::INVAL) => {
            "/ is not a mount point here, as in a chroot: bind the directory onto itself before the chroot"
        }
        (Step::Mkdir { .. } | Step::File { .. } | Step::Symlink { .. }, Errno::ROFS) => {
            "what is there is read-only: name a place that exists, or leave out --root-ro"
        }
        (_, Errno::NOSYS) => "the kernel is too old: Linux 5.12 is the oldest that works",
        (_, Errno::NOSPC) => "no space is left there, or a limit is reached",
        _ => "",
    }
}
