//! Where an upstream may send us. Its own host is the operator's word; any other must be one that everybody could reach,
//! whatever name it has, since this machine reaches more than a client of the registry should learn of.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Whether two URLs are of one server.
pub(super) fn is_same_server(left: &Url, right: &Url) -> bool {
    left.scheme() == right.scheme()
        && left.host_str() == right.host_str()
        && left.port_or_known_default() == right.port_or_known_default()
}

/// Whether a URL on another server may be asked: with encryption if the upstream has it, and not by an inner address.
/// Names are checked where they are resolved.
pub(super) fn is_allowed(upstream: &Url, target: &Url) -> bool {
    if is_same_server(upstream, target) {
        return true;
    }
    let is_scheme = target.scheme() == "https" || (target.scheme() == "http" && upstream.scheme() == "http");
    let is_plain = target.username().is_empty() && target.password().is_none();
    let host = target.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_scheme && is_plain && !host.is_empty() && !address.is_ok_and(is_inner)
}

/// Whether an address means this machine, its network, or nothing that is one machine for everybody.
pub(super) fn is_inner(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_inner_v4(address),
        IpAddr::V6(address) => {
            let segments = address.segments();
            // IPv4 in other clothes: NAT64 and 6to4.
            let embedded = match segments {
                [0x64, 0xff9b, .., high, low] => Some((high, low)),
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            let embedded = embedded.map(|(high, low)| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
            let is_unique_local = segments[0] & 0xfe00 == 0xfc00;
            let is_link_local = segments[0] & 0xffc0 == 0xfe80;
            // Also what looks like `::10.0.0.1`.
            let is_low = segments[..6] == [0; 6];
            is_low || is_unique_local || is_link_local || address.is_multicast() || embedded.is_some_and(is_inner_v4)
        }
    }
}

fn is_inner_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0)
}

/// Resolves names to addresses that everybody could reach, and no others.
pub(super) struct Outside;

impl Resolve for Outside {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let all: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if all.iter().any(|address| is_inner(address.ip())) {
                let what = format!("`{}` is an inner address", name.as_str());
                return Err(what.into());
            }
            Ok(Box::new(all.into_iter()) as Addrs)
        })
    }
}

/// What checks names of other servers.
pub(super) fn outside() -> Arc<Outside> {
    Arc::new(Outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(upstream: &str, target: &str) -> bool {
        is_allowed(&Url::parse(upstream).expect(upstream), &Url::parse(target).expect(target))
    }

    #[test]
    fn an_upstream_sends_us_outside_or_to_itself() {
        assert!(allowed("https://r.example", "https://cdn.example/x"));
        assert!(allowed("http://127.0.0.1:5000", "http://127.0.0.1:5000/other"));
        assert!(allowed("http://r.example", "http://cdn.example/x"));
        for target in [
            "http://cdn.example/x",
            "https://127.0.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://10.1.2.3/x",
            "https://2130706433/x",
            "https://0x7f.1/x",
            "https://user:word@cdn.example/x",
            "file:///etc/passwd",
            "ftp://cdn.example/x",
        ] {
            assert!(!allowed("https://r.example", target), "{target}");
        }
        // Another port of this machine is another server.
        assert!(!allowed("http://127.0.0.1:5000", "http://127.0.0.1:22/x"));
    }

    #[test]
    fn inner_addresses_are_known_in_every_form() {
        for inner in [
            "0.0.0.0",
            "100.64.0.1",
            "192.168.0.1",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::ffff:127.0.0.1",
            "::10.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_inner(inner.parse().expect(inner)), "{inner}");
        }
        for outer in ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "100.128.0.1"] {
            assert!(!is_inner(outer.parse().expect(outer)), "{outer}");
        }
    }
}
