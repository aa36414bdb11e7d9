//! [`EgressPolicy`]: which addresses a container may reach, whatever its Worker says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

/// What the operator of this machine lets containers reach. By default that is the internet: not this machine, not the
/// networks around it.
#[derive(Clone, Debug, Default)]
pub struct EgressPolicy {
    /// Addresses of private networks, and of this machine, that containers may reach all the same. Loopback and
    /// link-local addresses stay out of reach.
    pub allowed: Vec<AddressRange>,
    /// Who is asked for names; `None` means those of this machine's `/etc/resolv.conf`.
    pub resolvers: Option<Vec<SocketAddr>>,
}

/// Addresses that begin alike: `10.1.0.0/16`, `fd12::/16`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange(IpNet);

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRange, String> {
        let one = || text.parse::<IpAddr>().map(IpNet::from);
        let net = text.parse::<IpNet>().or_else(|_| one());
        net.map(AddressRange).map_err(|_| format!("expected an address or a range like `10.1.0.0/16`, found `{text}`"))
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<AddressRange, String> {
        text.parse()
    }
}

impl From<AddressRange> for IpNet {
    fn from(range: AddressRange) -> IpNet {
        range.0
    }
}

/// What names are given that only the Worker's handlers know. Nobody is connected to these addresses.
pub const STAND_IN: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
pub(crate) const STAND_IN_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Whether it is one of them.
pub fn is_stand_in(address: IpAddr) -> bool {
    address == STAND_IN || address == STAND_IN_IPV6
}

impl EgressPolicy {
    /// What builds may reach: everything but this machine's loopback, link-local addresses (those of a cloud's metadata
    /// among them), and addresses of nobody. Private networks too: a build often needs its company's own servers.
    pub fn of_builds() -> EgressPolicy {
        let allowed = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].map(AddressRange).to_vec();
        EgressPolicy { allowed, resolvers: None }
    }

    /// Why a container may not reach `address`; `None` when it may.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let address = inner(address);
        if let Some(reason) = never(address) {
            return Some(reason);
        }
        if self.allowed.iter().any(|range| range.0.contains(&address)) {
            return None;
        }
        if is_private(address) {
            return Some("an address of a private network");
        }
        is_own(address).then_some("an address of this machine")
    }
}

/// The IPv4 address that an IPv6 address stands for, where it stands for one.
fn inner(address: IpAddr) -> IpAddr {
    let IpAddr::V6(ipv6) = address.to_canonical() else { return address.to_canonical() };
    let [a, b, c, d, e, f, g, h] = ipv6.segments();
    let ipv4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match (a, b) {
        // NAT64 and 6to4; the deprecated ::/96 is refused below.
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => ipv4(g, h),
        (0x2002, _) => ipv4(b, c),
        _ => address,
    }
}

fn never(address: IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    // Most of these, `::1` and `::` included, are in `::/96`.
    let is_odd = match address {
        IpAddr::V4(address) => address.octets()[0] == 0 || address.octets()[0] >= 240,
        IpAddr::V6(address) => address.segments()[..6] == [0; 6],
    };
    match address {
        _ if address.is_loopback() => Some("the loopback of this machine"),
        _ if is_link_local => Some("a link-local address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if address.is_unspecified() || is_odd => Some("no address of anybody"),
        _ => None,
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            // Carriers' networks, protocol assignments, and networks of benchmarks.
            let is_shared = a == 100 && b & 0xc0 == 64;
            address.is_private() || is_shared || (a, b, c) == (192, 0, 0) || (a == 198 && b & 0xfe == 18)
        }
        // Site-local addresses are deprecated and still routed by some; 64:ff9b:1::/48 is NAT64 of one network.
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            address.is_unique_local() || a & 0xffc0 == 0xfec0 || (a, b, c) == (0x64, 0xff9b, 1)
        }
    }
}

/// Whether it is an address of this machine: one reaches those from themselves. Sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 53))?;
        socket.local_addr()
    };
    source().is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: &EgressPolicy, address: &str) -> bool {
        policy.refusal(address.parse().expect("an address")).is_some()
    }

    #[test]
    fn only_the_internet_can_be_reached() {
        let policy = EgressPolicy::default();
        for address in
            ["127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "10.0.0.1", "172.16.0.1", "172.31.255.1"]
                .into_iter()
                .chain([
                    "192.168.1.1",
                    "100.64.0.1",
                    "100.127.1.1",
                    "192.0.0.8",
                    "198.18.0.1",
                    "224.0.0.1",
                    "255.255.255.255",
                ])
                .chain([
                    "::",
                    "::1",
                    "::ffff:127.0.0.1",
                    "::ffff:10.0.0.1",
                    "::127.0.0.1",
                    "fe80::1",
                    "fd00::2",
                    "fec0::1",
                ])
                .chain([
                    "ff02::1",
                    "64:ff9b::7f00:1",
                    "64:ff9b::a9fe:a9fe",
                    "64:ff9b:1::1",
                    "2002:7f00:1::",
                    "2002:a00:1::1",
                ])
        {
            assert!(refused(&policy, address), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "11.0.0.1", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(!refused(&policy, address), "{address}");
        }
    }

    #[test]
    fn an_operator_may_allow_networks_but_not_the_loopback() {
        let allowed = ["10.1.0.0/16", "fd12::/16", "192.168.7.7", "127.0.0.0/8", "169.254.0.0/16", "::/0"];
        let allowed = allowed.map(|text| text.parse().expect("a range")).to_vec();
        let policy = EgressPolicy { allowed, ..EgressPolicy::default() };
        for address in ["10.1.2.3", "fd12::9", "192.168.7.7"] {
            assert!(!refused(&policy, address), "{address}");
        }
        for address in ["10.2.0.1", "192.168.7.8", "127.0.0.1", "169.254.169.254", "::1", "fe80::1"] {
            assert!(refused(&policy, address), "{address}");
        }
    }

    #[test]
    fn builds_reach_private_networks_but_not_the_loopback() {
        let policy = EgressPolicy::of_builds();
        for address in ["10.0.0.1", "192.168.1.1", "fd00::2", "1.1.1.1", "2606:4700::1111"] {
            assert!(!refused(&policy, address), "{address}");
        }
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0"] {
            assert!(refused(&policy, address), "{address}");
        }
    }

    #[test]
    fn a_range_is_checked_when_it_is_read() {
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "x/8", "10.0.0.0/"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
        }
    }
}
