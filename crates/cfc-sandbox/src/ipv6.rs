//! [`has_ipv6_route`]: whether a sandbox that is redirected has any use for IPv6.

use std::fs;

/// Whether this machine reaches other IPv6 addresses than its own.
pub fn has_ipv6_route() -> bool {
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    routes.lines().any(is_ipv6_default_route)
}

/// Destination, prefix length, source, its length, next hop, metric, two counts, flags, device.
fn is_ipv6_default_route(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let is_default = fields.first().is_some_and(|address| address.bytes().all(|byte| byte == b'0'));
    is_default && fields.get(1) == Some(&"00") && fields.last().is_some_and(|device| *device != "lo")
}

#[cfg(test)]
mod tests {
    use super::is_ipv6_default_route;

    #[test]
    fn the_kernels_own_route_to_nowhere_does_not_count() {
        let zeros = "0".repeat(32);
        let line = |prefix: &str, device: &str| {
            format!("{zeros} {prefix} {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 {device}")
        };
        assert!(is_ipv6_default_route(&line("00", "eth0")));
        assert!(!is_ipv6_default_route(&line("00", "lo")));
        assert!(!is_ipv6_default_route(&line("40", "eth0")));
    }
}
