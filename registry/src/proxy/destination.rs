//! Where an upstream may send us. Its own server is the operator's word, and so are those that he has named beside it;
//! any other must be one that everybody could reach, whatever name it has, since this machine reaches more than a client
//! of the registry should learn of.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How a server may be gone to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Road {
    /// It is the upstream itself.
    Own,
    /// The operator has named it, so it may be anywhere.
    Named,
    /// Only if everybody could reach it. Names are checked where they are resolved.
    Outside,
}

/// How `target` may be gone to, to which the upstream sends us; `None` for not at all: not without encryption if the
/// upstream has that, and not by an inner address that is not among `names`.
pub(super) fn road(upstream: &Url, names: &[String], target: &Url) -> Option<Road> {
    if is_same_server(upstream, target) {
        return Some(Road::Own);
    }
    let is_scheme = target.scheme() == "https" || (target.scheme() == "http" && upstream.scheme() == "http");
    let is_plain = target.username().is_empty() && target.password().is_none();
    let host = target.host_str().filter(|host| !host.is_empty() && is_scheme && is_plain)?;
    if is_named(names, target) {
        return Some(Road::Named);
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    (!address.is_ok_and(is_inner)).then_some(Road::Outside)
}

/// Whether two URLs are of one server.
fn is_same_server(left: &Url, right: &Url) -> bool {
    left.scheme() == right.scheme()
        && left.host_str() == right.host_str()
        && left.port_or_known_default() == right.port_or_known_default()
}

/// Whether a URL's server is among `names`: `host`, at the port that its scheme has by itself, or `host:port`.
pub(super) fn is_named(names: &[String], url: &Url) -> bool {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
    let whole = format!("{host}:{port}");
    let is_one =
        |name: &String| name.eq_ignore_ascii_case(&whole) || (url.port().is_none() && name.eq_ignore_ascii_case(host));
    names.iter().any(is_one)
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
            // Teredo has IPv4 in it, inverted; a site's own NAT64 has it anywhere.
            let is_translated = segments[..2] == [0x2001, 0] || segments[..3] == [0x64, 0xff9b, 1];
            let is_site_local = segments[0] & 0xffc0 == 0xfec0;
            is_low
                || is_translated
                || is_site_local
                || is_unique_local
                || is_link_local
                || address.is_multicast()
                || embedded.is_some_and(is_inner_v4)
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

/// Says what is wrong with a name that no server could ever have.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    let url = Url::parse(&format!("https://{name}/")).ok();
    match url.is_some_and(|url| is_plain && is_named(&[name.to_string()], &url)) {
        true => Ok(()),
        false => Err(format!("`{name}` is no server: expected `host` or `host:port`, an IPv6 address as `[fd00::1]`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_are_told_from_what_would_match_none() {
        for good in ["cdn.internal", "CDN.internal:8443", "10.0.0.9:9000", "[fd00::1]", "[fd00::1]:443", "r.test:443"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "https://cdn.internal", "*.cdn.internal", "10.0.0.0/8", "fd00::1", "a@b", "a b", "a:", "0x7f.1"]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    fn allowed(upstream: &str, target: &str) -> bool {
        road(&Url::parse(upstream).expect(upstream), &[], &Url::parse(target).expect(target)).is_some()
    }

    #[test]
    fn servers_that_the_operator_has_named_may_be_anywhere() {
        let names = ["auth.internal", "10.0.0.6:9000", "[fd00::1]", "Named.Internal:443"].map(str::to_string);
        let check = |target: &str| road(&url("https://r.internal"), &names, &url(target));
        for (target, expected) in [
            ("https://auth.internal/token", Some(Road::Named)),
            ("https://auth.internal:443/token", Some(Road::Named)),
            ("https://10.0.0.6:9000/x", Some(Road::Named)),
            ("https://[fd00::1]/x", Some(Road::Named)),
            ("https://named.internal/x", Some(Road::Named)),
            // Its own server, with the port or without.
            ("https://r.internal:443/x", Some(Road::Own)),
            ("https://r.internal/x", Some(Road::Own)),
            // Others, or in the clear.
            ("https://auth.internal:8443/token", Some(Road::Outside)),
            ("https://sub.auth.internal/token", Some(Road::Outside)),
            ("http://auth.internal/token", None),
            ("https://10.0.0.6/x", None),
            ("https://10.0.0.6:9001/x", None),
            ("https://ann:secret@auth.internal/token", None),
        ] {
            assert_eq!(check(target), expected, "{target}");
        }
    }

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
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
            "fec0::1",
            "feff::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "64:ff9b:1::1",
            "64:ff9b:1:a00:1::",
        ] {
            assert!(is_inner(inner.parse().expect(inner)), "{inner}");
        }
        for outer in ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "100.128.0.1", "2001:4860:4860::8888"] {
            assert!(!is_inner(outer.parse().expect(outer)), "{outer}");
        }
    }
}
