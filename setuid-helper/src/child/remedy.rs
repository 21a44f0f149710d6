//! What the user can do about a step that failed.

use crate::fsops::read_all;
use crate::plan::Step;
use crate::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

const CONFINED: &str =
    "an AppArmor profile is on: allow it there, or start the container with --security-opt apparmor=unconfined";

/// A hint, or nothing.
pub fn remedy(step: &Step, error: Errno) -> &'static str {
    match (step, error) {
        (Step::Unshare { .. } | Step::UserNamespace { .. }, Errno::NOSPC) => {
            "no user namespaces are left or allowed: sysctl user.max_user_namespaces=15000, run as root, \
             or sandbox setuid install"
        }
        (Step::Unshare { .. } | Step::IdMap { .. } | Step::UserNamespace { .. }, Errno::PERM | Errno::ACCESS) => {
            if setting("kernel/unprivileged_userns_clone") == b"0" {
                return "allow them: sysctl kernel.unprivileged_userns_clone=1, run as root, or sandbox setuid install";
            }
            let confined = "an AppArmor profile is on: allow it there, run as root, or sandbox setuid install; \
                            a container needs --security-opt apparmor=unconfined";
            let otherwise = "run as root, or sandbox setuid install; a container needs --cap-add SYS_ADMIN";
            Some(forbidden(confined)).filter(|why| !why.is_empty()).unwrap_or(otherwise)
        }
        (Step::Allow { .. }, Errno::NOENT) => "name what is there, in the sandbox: --allow-read, --allow-write",
        (Step::Attach { .. }, Errno::NOENT) => "create the directory, or let --mkdir do it",
        (Step::Chdir { .. }, Errno::NOENT) => "name a directory that exists, or NAME/PATH of a mounted tree",
        (Step::Image { .. }, Errno::NODEV) => "the kernel has no squashfs: modprobe squashfs, or use --mode userns",
        (Step::Erofs { .. }, Errno::NODEV | Errno::NOTBLK) => {
            "the kernel mounts erofs from a file since Linux 6.12 (modprobe erofs), and not from one in a tmpfs: \
             use a squashfs image"
        }
        (Step::Image { .. } | Step::Erofs { .. }, Errno::INVAL | Errno::IO | Errno::OPNOTSUPP | Errno::UCLEAN) => {
            "is the image damaged (sandbox image verify reads all of one, image import of a file), or compressed in a way \
             that this kernel lacks?"
        }
        (Step::Overlay { .. } | Step::Stack { .. } | Step::Tmpfs { .. }, Errno::NODEV) => {
            "the kernel has no such filesystem: modprobe overlay"
        }
        (Step::Overlay { .. } | Step::Stack { .. }, Errno::PERM | Errno::INVAL) => {
            "it may be in an overlay twice already, or have mounts in it that a sandbox or container around this one \
             locked: --workspace ro, or another directory"
        }
        (Step::Overlay { .. } | Step::Stack { .. }, Errno::LOOP) => {
            "a layer is in the stack twice, or lies in another one: name each once"
        }
        (Step::Fuse { .. }, Errno::ACCESS | Errno::NOENT | Errno::NXIO) => {
            "/dev/fuse cannot be used here: let the image be unpacked instead"
        }
        (Step::Loopback | Step::Network { .. }, Errno::PERM) => {
            "a container may withhold the right to: give it CAP_NET_ADMIN (--cap-add NET_ADMIN), or use --net host"
        }
        (Step::PivotRoot { .. }, Errno::INVAL) => {
            "/ is not a mount point here, as in a chroot: bind the directory onto itself before the chroot"
        }
        (Step::Mkdir { .. } | Step::File { .. } | Step::Symlink { .. }, Errno::ROFS) => {
            "what is there is read-only: name a place that exists, or leave out --root-ro"
        }
        (Step::Proc, Errno::PERM) => {
            "what masks a container's /proc forbids a new one: --isolation none, or start the container with \
             --security-opt unmask=ALL (Docker: systempaths=unconfined)"
        }
        (_, Errno::PERM | Errno::ACCESS) => forbidden(CONFINED),
        (_, Errno::NOSYS) => {
            let otherwise = "the kernel is too old: Linux 5.12 is the oldest that works";
            Some(forbidden(CONFINED)).filter(|why| why.contains("seccomp")).unwrap_or(otherwise)
        }
        (_, Errno::NOSPC) => "no space is left there, or a limit is reached",
        _ => "",
    }
}

/// Who stands behind an EPERM or EACCES of a namespace or a mount, from what the kernel shows; empty: it does not.
/// `confined` is what there is to say of an AppArmor profile.
fn forbidden(confined: &'static str) -> &'static str {
    if setting("kernel/apparmor_restrict_unprivileged_userns") == b"1" {
        return "AppArmor restricts user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0, run as root, \
                or sandbox setuid install";
    }
    // "NAME (enforce)", or "unconfined": proc_pid_attr(5).
    if read("/proc/self/attr/current").trim_ascii().ends_with(b"(enforce)") {
        return confined;
    }
    let status = read("/proc/self/status");
    if status.split(|byte| *byte == b'\n').any(|line| line == b"Seccomp:\t2") {
        return "a seccomp filter is on: start the container with --cap-add SYS_ADMIN or --security-opt \
                seccomp=unconfined, the sandbox around this one with --seccomp none";
    }
    ""
}

fn setting(name: &str) -> Vec<u8> {
    read(&format!("/proc/sys/{name}")).trim_ascii().to_vec()
}

fn read(path: &str) -> Vec<u8> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(|file| read_all(file, 1 << 16)).unwrap_or_default()
}
