//! [`Target`]: what a host name means.

use http::HeaderMap;
use http::header::HOST;
use http::uri::{Authority, Uri};

/// What a request's host names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The Worker of this name.
    Worker(String),
    /// Whichever Worker there is, when there is one.
    Only,
    /// Neither.
    Unknown,
}

/// The request's host: of the URL where it has one (a client that takes us for a proxy), else the header's. `None`
/// when there is none, or more than one, or it is malformed.
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut values = headers.get_all(HOST).iter();
    let header = values.next().and_then(|value| Authority::try_from(value.as_bytes()).ok());
    if values.next().is_some() {
        return None;
    }
    uri.authority().cloned().or(header).filter(|authority| !authority.as_str().contains('@'))
}

/// What `authority` names, given the domains below which Workers are.
pub(crate) fn target(authority: &Authority, domains: &[String]) -> Target {
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    if is_address || domains.contains(&host) {
        return Target::Only;
    }
    let worker = |domain: &String| host.strip_suffix(domain.as_str())?.strip_suffix('.').map(str::to_string);
    match domains.iter().find_map(worker) {
        Some(worker) if !worker.contains('.') => Target::Worker(worker),
        _ => Target::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_worker_or_the_only_one() {
        let domains = ["localhost".to_string(), "cfc.example".to_string()];
        let check = |host: &'static str, expected| {
            assert_eq!(target(&Authority::from_static(host), &domains), expected, "{host}");
        };
        let worker = |name: &str| Target::Worker(name.to_string());
        check("app.localhost", worker("app"));
        check("app.localhost:8787", worker("app"));
        check("APP.LocalHost.:8787", worker("app"));
        check("app.cfc.example", worker("app"));
        check("localhost:8787", Target::Only);
        check("cfc.example", Target::Only);
        check("127.0.0.1:8787", Target::Only);
        check("[::1]:8787", Target::Only);
        check("a.b.localhost", Target::Unknown);
        check("notlocalhost", Target::Unknown);
        check("evil.example", Target::Unknown);
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        let mut headers = HeaderMap::new();
        assert_eq!(authority(&Uri::from_static("/"), &headers), None);
        headers.append(HOST, "a.localhost".parse().expect("a value"));
        assert_eq!(authority(&Uri::from_static("/"), &headers), Some(Authority::from_static("a.localhost")));
        let absolute = Uri::from_static("http://b.localhost/");
        assert_eq!(authority(&absolute, &headers), Some(Authority::from_static("b.localhost")));
        headers.append(HOST, "c.localhost".parse().expect("a value"));
        assert_eq!(authority(&Uri::from_static("/"), &headers), None);
    }
}
