//! [`worker_url`]: the address a Worker answers at.

/// The URL of `worker` behind the gateway: its name in front of the gateway's host, with `localhost` for an address of
/// this machine. Behind any other bare address the gateway itself: it has only one name.
pub fn worker_url(gateway_url: &str, worker: &str) -> String {
    let (scheme, rest) = gateway_url.split_once("://").unwrap_or(("http", gateway_url));
    let authority = rest.split('/').next().unwrap_or(rest);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if has_port => (host, format!(":{port}")),
        _ => (authority, String::new()),
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    match address {
        Ok(address) if address.is_loopback() || address.is_unspecified() => {
            format!("{scheme}://{worker}.localhost{port}")
        }
        Ok(_) => format!("{scheme}://{authority}"),
        Err(_) => format!("{scheme}://{worker}.{host}{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::worker_url;

    #[test]
    fn a_worker_is_a_subdomain_of_the_gateway() {
        let check = |gateway_url, expected| assert_eq!(worker_url(gateway_url, "app"), expected);
        check("http://127.0.0.1:8787", "http://app.localhost:8787");
        check("http://[::1]:8787/", "http://app.localhost:8787");
        check("http://0.0.0.0:80", "http://app.localhost:80");
        check("http://localhost:8787", "http://app.localhost:8787");
        check("https://cfc.example", "https://app.cfc.example");
        check("http://192.0.2.1:8787", "http://192.0.2.1:8787");
    }
}
