//! The private network. A process of the caller's, at the other end of a socket, attaches this network namespace to one.
//! Where it may not enter the namespace, since that is root's, this process sets up what is in it and hands out the rest.

use super::Child;
use super::rtnetlink::{LOOPBACK, Netlink, Network};
use super::world::check_device;
use crate::attendance::send_fds;
use crate::error::{Doing, Failure, Outcome, printable};
use crate::fsops::NO_LINKS;
use crate::plan::{Step, Words};
use crate::prelude::*;
use crate::setuid::{NETWORK, OVERLAY, PORT, refused};
use crate::sys;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat2};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, listen, recv, socket_with};
use rustix::process::getpid;

const WHO: &str = "the process that attaches the private network";
/// What it says when that is done. Anything else says why not.
const DONE: &[u8] = b"ok\n";
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const TUN: &str = "/dev/net/tun";
/// Its number: Documentation/admin-guide/devices.txt of Linux.
const TUN_NUMBER: (u32, u32) = (10, 200);
/// The device of every private network, whoever makes it (`sandbox/network.py`), and the MTU of one that is not on a wire.
const TAP: &str = "tap0";
const MTU: u32 = 65_520;
const NAME_SERVICE: u16 = 53;

/// What a `Network` step says.
#[derive(Clone, Copy)]
struct Layout<'p> {
    address: Network,
    gateway: u32,
    resolver: u32,
    closed: Words<'p>,
}

impl Child<'_> {
    /// Says who is to be attached, and waits.
    pub fn attach_network(&mut self, step: &Step) -> Outcome<()> {
        let Step::Network { source, address, gateway, resolver, closed } = *step else { return Ok(()) };
        let layout = Layout { address: address.into(), gateway, resolver, closed };
        let set_up = if self.prepared.rights.are_lent() { Some(self.set_up_network(layout)?) } else { None };
        let socket = self.prepared.sources.file(source)?;
        for side in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(socket, side, Some(PATIENCE)).doing("use the socket of the private network", b"")?;
        }
        let request = format!("{}\n", getpid().as_raw_nonzero());
        let fds: Vec<BorrowedFd> = set_up.iter().flatten().map(AsFd::as_fd).collect();
        send_fds(socket, request.as_bytes(), &fds).doing("ask for a private network", b"")?;
        drop(set_up);
        let mut answer = vec![0; 2048];
        let length = match recv(socket, answer.as_mut_slice(), RecvFlags::empty()) {
            Err(Errno::AGAIN) => return Err(Failure::new(format!("{WHO} does not answer"))),
            other => other.doing("wait for a private network", b"")?.0,
        };
        match &answer[..length] {
            DONE => Ok(()),
            b"" => Err(Failure::new(format!("{WHO} has died"))),
            why => Err(Failure::new(printable(why.trim_ascii()))),
        }
    }

    /// Set up all that is in the namespace. What belongs outside: the tap device, and the sockets of the name server.
    /// Whoever has these can send and receive, in this namespace; all else takes a capability over it.
    fn set_up_network(&mut self, layout: Layout) -> Outcome<[OwnedFd; 3]> {
        let [names, streams] = [SocketType::DGRAM, SocketType::STREAM]
            .map(|kind| socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None).doing("make a socket", b""));
        let (names, streams, tap) = (names?, streams?, open_tun()?);
        for fd in [&names, &streams, &tap] {
            self.is_in_own_network(fd)?;
        }
        self.configure(layout, &tap, &names).doing("set up the private network", b"")?;
        let address = SocketAddrV4::new(Ipv4Addr::from_bits(layout.resolver), NAME_SERVICE);
        self.serve_names(&names, &streams, &address).doing("bind the private network's name server", b"")?;
        // Nothing of this is needed again, and what comes is up to somebody else.
        self.prepared.rights = self.prepared.rights.narrow(OVERLAY)?;
        Ok([tap, names, streams])
    }

    /// Whatever the steps before were: nothing is done to a network that this launch did not make.
    fn is_in_own_network(&self, fd: &OwnedFd) -> Outcome<()> {
        let raised = self.prepared.rights.raise(NETWORK);
        let found = raised.and_then(|_raised| sys::network_of(fd)).and_then(fstat);
        let found = found.doing("look at the network namespace", b"")?;
        let is_left = |left: &Stat| (left.st_dev, left.st_ino) == (found.st_dev, found.st_ino);
        match &self.left_network {
            Some(left) if !is_left(left) => Ok(()),
            _ => Err(refused("setuid mode attaches no network namespace but the run's own")),
        }
    }

    fn configure(&self, layout: Layout, tap: &OwnedFd, socket: &OwnedFd) -> Result<(), Errno> {
        let _raised = self.prepared.rights.raise(NETWORK)?;
        sys::make_tap(tap.as_fd(), TAP)?;
        let device = name_to_index(socket, TAP)?;
        let netlink = Netlink::new()?;
        netlink.set_up(LOOPBACK, None)?;
        netlink.add_address(LOOPBACK, Network::of_one(layout.resolver))?;
        netlink.set_up(device, Some(MTU))?;
        netlink.add_address(device, layout.address)?;
        netlink.add_default_route(device, layout.gateway)?;
        layout.closed.iter().try_for_each(|network| netlink.prohibit(network.into()))
    }

    fn serve_names(&self, names: &OwnedFd, streams: &OwnedFd, address: &SocketAddrV4) -> Result<(), Errno> {
        for socket in [names, streams] {
            set_socket_reuseaddr(socket, true)?;
            let _raised = self.prepared.rights.raise(PORT)?;
            bind(socket, address)?;
        }
        listen(streams, 128)
    }
}

/// With the caller's rights. It belongs to the network namespace of who opens it.
fn open_tun() -> Outcome<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let tun = openat2(CWD, TUN, flags, Mode::empty(), NO_LINKS).doing("open", TUN.as_bytes())?;
    check_device(&tun, TUN_NUMBER, TUN)?;
    Ok(tun)
}
