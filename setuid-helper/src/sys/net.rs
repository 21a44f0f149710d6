//! Devices of a new network namespace.

use super::raw::{number, output, syscall};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// struct ifreq (netdevice(7)) with the flags of its union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Of linux/sockios.h: the network namespace that a socket is in, as a descriptor. Linux 4.10.
const SIOCGSKNS: usize = 0x894c;

/// Of linux/if_tun.h: make a device of this name and kind in the network namespace that the file was opened in.
const TUNSETIFF: usize = 0x4004_54ca;
/// It carries Ethernet frames (IFF_TAP), with nothing before them (IFF_NO_PI).
const FRAMES: u16 = 0x1002;

/// Bring up `lo`. A socket of this network namespace.
pub fn loopback_up() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    ask(socket.as_fd(), libc::SIOCSIFFLAGS as usize, "lo", libc::IFF_UP as u16 | libc::IFF_RUNNING as u16)?;
    Ok(socket)
}

/// A device from and to which an open `/dev/net/tun` carries frames. It goes with the file.
pub fn make_tap(tun: BorrowedFd, name: &str) -> Result<(), Errno> {
    ask(tun, TUNSETIFF, name, FRAMES)
}

fn ask(fd: BorrowedFd, what: usize, name: &str, flags: u16) -> Result<(), Errno> {
    let mut request = Request { name: [0; 16], flags, rest: [0; 22] };
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: these ioctls read and write a struct ifreq, which is as large as this one and lives for the call.
    unsafe { syscall(libc::SYS_ioctl, [number(fd), what, output(&mut request)]) }.map(drop)
}

/// The network namespace of a socket, or of an open `/dev/net/tun`.
pub fn network_of(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; this ioctl takes no argument.
    let fd = unsafe { syscall(libc::SYS_ioctl, [number(socket.as_fd()), SIOCGSKNS, 0]) }?;
    // SAFETY: it was just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
