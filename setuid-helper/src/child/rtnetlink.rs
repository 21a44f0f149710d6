//! Links, addresses and routes of this network namespace, as far as a private network needs them: rtnetlink(7).

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Of linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h; libc has most of them, each with a type of its own.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const LINK_MTU: u16 = 4;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const DESTINATION: u16 = 1;
const DEVICE: u16 = 4;
const GATEWAY: u16 = 5;
const MAIN_TABLE: u8 = 254;
const STATIC: u8 = 4;
const UNICAST: u8 = 1;
const PROHIBIT: u8 = 8;
const IPV4: u8 = libc::AF_INET as u8;
/// Of linux/netlink.h: what is asked is wanted, and an answer; and it is made, or takes the place of what is there.
const REQUEST: u16 = 1 | 4;
const MAKE: u16 = 0x100 | 0x400;
const ERROR: u16 = 2;
/// The first device of every network namespace.
pub const LOOPBACK: u32 = 1;

/// An IPv4 network, or an address with that of its own: as a plan has it, the address above the length of its prefix.
#[derive(Clone, Copy)]
pub struct Network {
    address: u32,
    prefix: u8,
}

impl Network {
    /// One address.
    pub fn of_one(address: u32) -> Network {
        Network { address, prefix: 32 }
    }

    fn octets(self) -> [u8; 4] {
        self.address.to_be_bytes()
    }
}

impl From<u64> for Network {
    fn from(word: u64) -> Network {
        Network { address: (word >> 8) as u32, prefix: word as u8 }
    }
}

/// A socket that changes the network namespace which it was made in.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// The kernel looks at the capabilities of who made the socket as well as of who uses it.
    pub fn new() -> Result<Netlink, Errno> {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).map(Netlink)
    }

    /// A device is up, with this MTU if one is given.
    pub fn set_up(&self, device: u32, mtu: Option<u32>) -> Result<(), Errno> {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        let head = [[0; 4], device.to_ne_bytes(), up, up].concat();
        let mtu = mtu.map(|mtu| (LINK_MTU, mtu.to_ne_bytes()));
        self.ask(NEW_LINK, REQUEST, &head, mtu.as_slice())
    }

    /// A device has an address.
    pub fn add_address(&self, device: u32, address: Network) -> Result<(), Errno> {
        let head = [[IPV4, address.prefix, 0, 0], device.to_ne_bytes()].concat();
        let octets = address.octets();
        self.ask(NEW_ADDRESS, REQUEST | MAKE, &head, &[(LOCAL, octets), (ADDRESS, octets)])
    }

    /// The way to everything that there is no other way to.
    pub fn add_default_route(&self, device: u32, gateway: u32) -> Result<(), Errno> {
        let way = [(GATEWAY, gateway.to_be_bytes()), (DEVICE, device.to_ne_bytes())];
        self.add_route(0, UNICAST, &way)
    }

    /// There is no way there.
    pub fn prohibit(&self, network: Network) -> Result<(), Errno> {
        self.add_route(network.prefix, PROHIBIT, &[(DESTINATION, network.octets())])
    }

    fn add_route(&self, prefix: u8, kind: u8, attributes: &[(u16, [u8; 4])]) -> Result<(), Errno> {
        let head = [[IPV4, prefix, 0, 0], [MAIN_TABLE, STATIC, 0, kind], [0; 4]].concat();
        self.ask(NEW_ROUTE, REQUEST | MAKE, &head, attributes)
    }

    /// One message, and the kernel's answer to it: netlink(7). All numbers are aligned as they come.
    fn ask(&self, kind: u16, flags: u16, head: &[u8], attributes: &[(u16, [u8; 4])]) -> Result<(), Errno> {
        let length = 16 + head.len() + 8 * attributes.len();
        let mut message = (length as u32).to_ne_bytes().to_vec();
        message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].as_flattened());
        message.extend([0; 8]);
        message.extend(head);
        for (name, value) in attributes {
            message.extend([8u16.to_ne_bytes(), name.to_ne_bytes()].as_flattened());
            message.extend(value);
        }
        send(&self.0, &message, SendFlags::empty())?;
        let mut answer = [0; 512];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        match answer[..length].as_chunks::<4>().0 {
            [_, [low, high, ..], _, _, error, ..] if u16::from_ne_bytes([*low, *high]) == ERROR => {
                match i32::from_ne_bytes(*error) {
                    0 => Ok(()),
                    failed => Err(Errno::from_raw_os_error(failed.saturating_neg())),
                }
            }
            _ => Err(Errno::BADMSG),
        }
    }
}
