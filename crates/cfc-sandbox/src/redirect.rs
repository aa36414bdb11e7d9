//! [`OutboundSockets`]: where everything ends up that a sandbox sends out, and the redirection that takes it there.
//!
//! A sandbox's network namespace has no device but the loopback. The new process itself, before it becomes the
//! application, makes this of it:
//!
//! - a route says that every address is one of this machine: `ip route add local default dev lo`;
//! - the firewall of the namespace sends whatever is not for the real loopback to a few sockets, as this would do it:
//!
//! ```text
//! table inet cfc {
//!   chain output {
//!     type nat hook output priority -100;
//!     ip daddr 127.0.0.0/8 return
//!     ip6 daddr ::1 return
//!     meta l4proto tcp redirect to :61853
//!     udp dport 53 redirect to :61853
//!   }
//!   chain prerouting {
//!     type filter hook prerouting priority -150;
//!     meta mark 0xcfc return
//!     ip daddr 127.0.0.0/8 return
//!     ip6 daddr ::1 return
//!     meta l4proto udp tproxy to :61854
//!   }
//! }
//! ```
//!
//! - the sockets go to the launcher, which gives them to whoever asks. A connection waits in them until it is accepted,
//!   and then [`original_destination`] tells where it was meant to go.
//!
//! Nothing outside the namespace is touched, no program is run, and the application finds it all in place.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::datagrams::{self, OutboundDatagrams};
use crate::error::ErrorKind;
use crate::launcher::shell::RedirectPlan;
use crate::netlink::{ACK, APPEND, Attributes, CREATE, Messages};
use crate::step::Step;

/// The port of the sockets for connections and questions of names, inside the sandbox: outside the range from which the kernel takes the ports of clients, so that none of
/// the application's can have it already.
pub const OUTBOUND_PORT: u16 = 61_853;
const BACKLOG: i32 = 1024;

/// Where everything ends up that a sandbox sends out. All of them are non-blocking.
#[derive(Debug)]
pub struct OutboundSockets {
    /// A listening socket: every TCP connection to an address that is not of the sandbox's own loopback.
    pub tcp: OwnedFd,
    /// Datagram sockets: every datagram to port 53 of such an address. One for IPv4; a second for IPv6 where there is that.
    pub udp: Vec<OwnedFd>,
    /// Every other datagram to such an address, by family as above. None where the kernel cannot redirect them.
    pub datagrams: Vec<OutboundDatagrams>,
}

impl OutboundSockets {
    pub(crate) fn new(descriptors: Vec<OwnedFd>) -> Option<OutboundSockets> {
        // One socket for each family, and two for its datagrams.
        let (n_families, has_datagrams) = match descriptors.len() {
            2 => (1, false),
            3 => (2, false),
            4 => (1, true),
            7 => (2, true),
            _ => return None,
        };
        let mut descriptors = descriptors.into_iter();
        let tcp = descriptors.next()?;
        let udp = descriptors.by_ref().take(n_families).collect();
        let mut datagrams = Vec::new();
        while has_datagrams && let (Some(receiving), Some(sending)) = (descriptors.next(), descriptors.next()) {
            datagrams.push(OutboundDatagrams::new(receiving, sending));
        }
        Some(OutboundSockets { tcp, udp, datagrams })
    }
}

/// Where a connection that [`OutboundSockets::tcp`] accepted was meant to go.
pub fn original_destination(connection: impl AsFd) -> io::Result<SocketAddr> {
    // An IPv4 connection on a socket for both families is asked as one of IPv4; one of IPv6 has no such record.
    match sockopt::ip_original_dst(&connection) {
        Ok(address) => Ok(address.into()),
        Err(_) => Ok(sockopt::ipv6_original_dst(&connection)?.into()),
    }
}

/// Redirects what goes out of this process's network namespace. The sockets are as in [`OutboundSockets::new`].
pub(crate) fn set_up(plan: RedirectPlan) -> Result<Vec<OwnedFd>, ErrorKind> {
    let has_ipv6 = plan.ipv6 && route_to_loopback(AddressFamily::INET6).is_ok();
    let sockets = sockets(has_ipv6).step(|| "listen for what it sends out".into())?;
    let has_ipv6 = sockets.len() == 3;
    let datagrams = datagrams::sockets(has_ipv6)
        .and_then(|datagrams| redirect(has_ipv6, true).map(|()| datagrams))
        // A kernel without nft_tproxy: connections and names are redirected all the same.
        .or_else(|_| redirect(has_ipv6, false).map(|()| Vec::new()))
        .step(|| "redirect what it sends out (needs a kernel with nf_tables, nft_nat and nft_redir)".into())?;
    // Last: as long as there is no route nothing can get past the redirection.
    route_to_loopback(AddressFamily::INET).step(|| "route what it sends out".into())?;
    Ok(sockets.into_iter().chain(datagrams).collect())
}

/// TCP, UDP for IPv4, and UDP for IPv6 where that is possible.
fn sockets(has_ipv6: bool) -> io::Result<Vec<OwnedFd>> {
    // A redirected datagram's answer must come from the address that it was redirected to, so these have one.
    let udp = socket(SocketType::DGRAM, SocketAddrV4::new(Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into())?;
    let udp6 = has_ipv6
        .then(|| socket(SocketType::DGRAM, SocketAddrV6::new(Ipv6Addr::LOCALHOST, OUTBOUND_PORT, 0, 0).into()).ok())
        .flatten();
    let any: SocketAddr = match udp6 {
        Some(_) => SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, OUTBOUND_PORT, 0, 0).into(),
        None => SocketAddrV4::new(Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into(),
    };
    let tcp = socket(SocketType::STREAM, any)?;
    rustix::net::listen(&tcp, BACKLOG)?;
    Ok([tcp, udp].into_iter().chain(udp6).collect())
}

fn socket(kind: SocketType, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // Whatever the machine's default is, `::` shall mean both families here.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// `ip route add local default dev lo`.
fn route_to_loopback(family: AddressFamily) -> io::Result<()> {
    const RTM_NEWROUTE: u16 = 24;
    const RT_TABLE_LOCAL: u8 = 255;
    const RTPROT_STATIC: u8 = 4;
    const RT_SCOPE_HOST: u8 = 254;
    const RTN_LOCAL: u8 = 2;
    const RTA_OIF: u16 = 4;
    /// The loopback is the first device of every namespace.
    const LOOPBACK_INDEX: u32 = 1;
    // struct rtmsg: family, lengths of the two prefixes, type of service; table, origin, scope, type; flags.
    let family = family.as_raw() as u8;
    let header = [family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    let mut messages = Messages::default();
    messages.add(RTM_NEWROUTE, CREATE | ACK, &header, |attributes| {
        attributes.add(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes());
    });
    messages.send(None)
}

// The rest is nftables. Its numbers are from linux/netfilter/nf_tables.h, and in network byte order, unless they are
// constants that a packet is compared with as it is in memory. A rule is a list of expressions that work on registers: load
// something of the packet into register 1, go on only if it compares equal, in the end do something. `nft --debug=netlink`
// shows the expressions of a rule.

const TABLE: &str = "cfc";
const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// The table at the top of this file.
fn redirect(has_ipv6: bool, with_datagrams: bool) -> io::Result<()> {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const NEWTABLE: u16 = 0xa00;
    const NF_INET_LOCAL_OUT: u32 = 3;
    const NF_IP_PRI_NAT_DST: i32 = -100;
    /// What the batch is for: the nftables subsystem.
    const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
    let mut messages = Messages::default();
    messages.add(BATCH_BEGIN, 0, &BATCH_HEADER, |_| {});
    messages.add(NEWTABLE, CREATE, &NF_HEADER, |table| {
        table.text(1, TABLE);
    });
    chain(&mut messages, OUTPUT, "nat", NF_INET_LOCAL_OUT, NF_IP_PRI_NAT_DST);
    spare_loopback(&mut messages, OUTPUT);
    for family in [NFPROTO_IPV4, NFPROTO_IPV6].into_iter().filter(|family| has_ipv6 || *family == NFPROTO_IPV4) {
        // meta l4proto tcp redirect to :OUTBOUND_PORT
        rule(&mut messages, OUTPUT, |rule| {
            family_is(rule, family);
            transport_is(rule, libc::IPPROTO_TCP as u8);
            redirect_to(rule, OUTBOUND_PORT);
        });
        // udp dport 53 redirect to :OUTBOUND_PORT
        rule(&mut messages, OUTPUT, |rule| {
            family_is(rule, family);
            transport_is(rule, libc::IPPROTO_UDP as u8);
            payload_is(rule, Header::Transport, 2, &53_u16.to_be_bytes());
            redirect_to(rule, OUTBOUND_PORT);
        });
    }
    if with_datagrams {
        redirect_datagrams(&mut messages, has_ipv6);
    }
    messages.add(BATCH_END, 0, &BATCH_HEADER, |_| {});
    messages.send(Some(NETFILTER))
}

/// The header of every nftables message: family, version, resource.
const NF_HEADER: [u8; 4] = [NFPROTO_INET, 0, 0, 0];

/// The chain for datagrams. They come back in from the loopback, where their addresses are still what they were.
fn redirect_datagrams(messages: &mut Messages, has_ipv6: bool) {
    const NF_INET_PRE_ROUTING: u32 = 0;
    const NF_IP_PRI_MANGLE: i32 = -150;
    chain(messages, PREROUTING, "filter", NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE);
    // meta mark 0xcfc return: what we send in answer.
    rule(messages, PREROUTING, |rule| {
        const META_MARK: u32 = 3;
        meta(rule, META_MARK);
        equals(rule, &datagrams::MARK.to_ne_bytes());
        leave(rule);
    });
    spare_loopback(messages, PREROUTING);
    for family in [NFPROTO_IPV4, NFPROTO_IPV6].into_iter().filter(|family| has_ipv6 || *family == NFPROTO_IPV4) {
        // meta l4proto udp tproxy to :PORT
        rule(messages, PREROUTING, |rule| {
            family_is(rule, family);
            transport_is(rule, libc::IPPROTO_UDP as u8);
            load(rule, &datagrams::PORT.to_be_bytes());
            expression(rule, "tproxy", |tproxy| {
                tproxy.add(1, &u32::from(family).to_be_bytes()).add(3, &REGISTER.to_be_bytes());
            });
        });
    }
}

fn chain(messages: &mut Messages, name: &str, kind: &str, hook_number: u32, priority: i32) {
    const NEWCHAIN: u16 = 0xa03;
    messages.add(NEWCHAIN, CREATE, &NF_HEADER, |chain| {
        chain.text(1, TABLE).text(3, name).text(7, kind);
        chain.nested(4, |hook| {
            hook.add(1, &hook_number.to_be_bytes()).add(2, &priority.to_be_bytes());
        });
    });
}

/// Leaves the real loopback alone.
fn spare_loopback(messages: &mut Messages, chain: &str) {
    // ip daddr 127.0.0.0/8 return
    rule(messages, chain, |rule| {
        family_is(rule, NFPROTO_IPV4);
        payload_is(rule, Header::Network, 16, &[127]);
        leave(rule);
    });
    // ip6 daddr ::1 return
    rule(messages, chain, |rule| {
        family_is(rule, NFPROTO_IPV6);
        payload_is(rule, Header::Network, 24, &Ipv6Addr::LOCALHOST.octets());
        leave(rule);
    });
}

fn rule(messages: &mut Messages, chain: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    const NEWRULE: u16 = 0xa06;
    messages.add(NEWRULE, CREATE | APPEND | ACK, &NF_HEADER, |rule| {
        rule.text(1, TABLE).text(2, chain).nested(4, fill);
    });
}

fn expression(rule: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    const LIST_ELEMENT: u16 = 1;
    rule.nested(LIST_ELEMENT, |element| {
        element.text(1, name).nested(2, fill);
    });
}

fn family_is(rule: &mut Attributes<'_>, family: u8) {
    const META_NFPROTO: u32 = 15;
    meta(rule, META_NFPROTO);
    equals(rule, &[family]);
}

fn transport_is(rule: &mut Attributes<'_>, protocol: u8) {
    const META_L4PROTO: u32 = 16;
    meta(rule, META_L4PROTO);
    equals(rule, &[protocol]);
}

/// Loads what is known about the packet.
fn meta(rule: &mut Attributes<'_>, key: u32) {
    expression(rule, "meta", |meta| {
        meta.add(2, &key.to_be_bytes()).add(1, &REGISTER.to_be_bytes());
    });
}

#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

fn payload_is(rule: &mut Attributes<'_>, header: Header, offset: u32, value: &[u8]) {
    expression(rule, "payload", |payload| {
        payload.add(1, &REGISTER.to_be_bytes()).add(2, &(header as u32).to_be_bytes());
        payload.add(3, &offset.to_be_bytes()).add(4, &(value.len() as u32).to_be_bytes());
    });
    equals(rule, value);
}

fn equals(rule: &mut Attributes<'_>, value: &[u8]) {
    const EQUAL: u32 = 0;
    expression(rule, "cmp", |cmp| {
        cmp.add(1, &REGISTER.to_be_bytes()).add(2, &EQUAL.to_be_bytes()).nested(3, |data| {
            data.add(1, value);
        });
    });
}

/// Ends the chain for this packet, which goes where it was meant to.
fn leave(rule: &mut Attributes<'_>) {
    const NFT_RETURN: i32 = -5;
    expression(rule, "immediate", |immediate| {
        immediate.add(1, &REGISTER_VERDICT.to_be_bytes()).nested(2, |data| {
            data.nested(2, |verdict| {
                verdict.add(1, &NFT_RETURN.to_be_bytes());
            });
        });
    });
}

fn redirect_to(rule: &mut Attributes<'_>, port: u16) {
    load(rule, &port.to_be_bytes());
    expression(rule, "redir", |redirect| {
        redirect.add(1, &REGISTER.to_be_bytes());
    });
}

/// Puts `value` into the register.
fn load(rule: &mut Attributes<'_>, value: &[u8]) {
    expression(rule, "immediate", |immediate| {
        immediate.add(1, &REGISTER.to_be_bytes()).nested(2, |data| {
            data.add(1, value);
        });
    });
}
