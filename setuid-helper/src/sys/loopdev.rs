//! The ioctls of loop(4).

use super::raw::{input, number, output, syscall};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

const LOOP_GET_STATUS64: usize = 0x4C05;
const LOOP_CONFIGURE: usize = 0x4C0A;
const LOOP_CTL_GET_FREE: usize = 0x4C82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const EMPTY: LoopInfo64 = LoopInfo64 {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// What a loop device shows.
pub struct LoopStatus(LoopInfo64);

impl LoopStatus {
    /// Whether it is this whole file, read-only, and goes away by itself.
    pub fn backs(&self, dev: u64, ino: u64) -> bool {
        let wanted = READ_ONLY | AUTOCLEAR;
        let info = &self.0;
        let whole = info.offset == 0 && info.sizelimit == 0;
        (info.device, info.inode) == (dev, ino) && whole && info.flags & wanted == wanted
    }

    /// Whether it is on this user's account.
    pub fn is_of(&self, uid: u32) -> bool {
        self.0.name == tag(uid)
    }

    /// Whether it is on another user's account, root's excepted: who shared it would use up what is that user's.
    pub fn is_of_another(&self, uid: u32) -> bool {
        self.0.name.starts_with(TAG) && !self.is_of(uid) && !self.is_of(0)
    }
}

/// With it the name of a device begins that is on a user's account.
const TAG: &[u8; 8] = b"sandbox:";

/// What stands in a device's name for the file (only root can set it): on whose account it is.
fn tag(uid: u32) -> [u8; 64] {
    let mut name = [0; 64];
    name[..8].copy_from_slice(TAG);
    for digit in 0..8 {
        name[8 + digit] = b"0123456789abcdef"[(uid >> (28 - 4 * digit) & 15) as usize];
    }
    name
}

/// ENXIO: nothing is attached.
pub fn loop_status(device: BorrowedFd) -> Result<LoopStatus, Errno> {
    let mut info = EMPTY;
    // SAFETY: the kernel writes one loop_info64 through the pointer, which is to one that outlives the call.
    unsafe { syscall(libc::SYS_ioctl, [number(device), LOOP_GET_STATUS64, output(&mut info)]) }?;
    Ok(LoopStatus(info))
}

/// The number of a loop device that was free a moment ago.
pub fn get_free(control: BorrowedFd) -> Result<usize, Errno> {
    // SAFETY: this ioctl takes no argument.
    unsafe { syscall(libc::SYS_ioctl, [number(control), LOOP_CTL_GET_FREE]) }
}

/// Attach `backing`, whole, read-only, autoclear (Linux 5.8), on a user's account. EBUSY: somebody was faster.
pub fn loop_configure(device: BorrowedFd, backing: BorrowedFd, uid: u32) -> Result<(), Errno> {
    let info = LoopInfo64 { flags: READ_ONLY | AUTOCLEAR, name: tag(uid), ..EMPTY };
    let config = LoopConfig { fd: number(backing) as u32, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the kernel reads one loop_config through the pointer, which is to one that outlives the call.
    unsafe { syscall(libc::SYS_ioctl, [number(device), LOOP_CONFIGURE, input(&config)]) }.map(drop)
}
