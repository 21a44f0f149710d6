//! The loopback device of a new network namespace.

use super::raw::{number, output, syscall};
use rustix::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
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

/// Bring up `lo`. A socket of this network namespace.
pub fn loopback_up() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = Request { name: [0; 16], flags: libc::IFF_UP as u16 | libc::IFF_RUNNING as u16, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let arguments = [number(socket.as_fd()), libc::SIOCSIFFLAGS as usize, output(&mut request)];
    // SAFETY: the ioctl reads a struct ifreq, which is as large as this one and lives for the call.
    unsafe { syscall(libc::SYS_ioctl, arguments) }?;
    Ok(socket)
}

/// The network namespace of a socket.
pub fn network_of(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; this ioctl takes no argument.
    let fd = unsafe { syscall(libc::SYS_ioctl, [number(socket.as_fd()), SIOCGSKNS, 0]) }?;
    // SAFETY: it was just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
