//! Headers that end at the gateway, and headers that it adds.

use std::net::IpAddr;

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// They speak of one connection and not of the message (RFC 9110, 7.6.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes the headers of the connection, those named by `Connection` included.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers).filter_map(|name| name.parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The protocol a message wants to go over to: `Upgrade`, when `Connection` names it.
pub(crate) fn upgrade_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_asked = connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| is_asked).cloned()
}

/// Asks for, or agrees to, going over to `protocol`.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Tells the Worker who asks: the address is the connection's, never what the client says it is. `X-Forwarded-For`
/// goes on from what the client sent, as Cloudflare's does; the last element is the one to believe.
pub(crate) fn add_forwarded(headers: &mut HeaderMap, client: IpAddr, authority: &Authority) {
    let client = client.to_canonical().to_string();
    let before = headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let chain: Vec<&str> = before.chain([client.as_str()]).collect();
    let chain = chain.join(", ");
    let texts = [
        (X_FORWARDED_FOR, chain.as_str()),
        (CF_CONNECTING_IP, client.as_str()),
        (X_FORWARDED_HOST, authority.as_str()),
        (X_FORWARDED_PROTO, "http"),
        (HOST, authority.as_str()),
    ];
    let values = texts.map(|(name, text)| (name, HeaderValue::from_str(text)));
    for (name, value) in values {
        // Addresses and authorities are header values; a chain was one.
        if let Ok(value) = value {
            headers.insert(name, value);
        }
    }
    // The gateway answers the expectation itself when the Worker begins to read the body.
    headers.remove(EXPECT);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn headers_of_the_connection_are_removed() {
        let mut map =
            headers(&[("connection", "close, X-Mine"), ("x-mine", "1"), ("keep-alive", "5"), ("accept", "*/*")]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn an_upgrade_must_be_asked_for_twice() {
        assert_eq!(upgrade_protocol(&headers(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade_protocol(&headers(&[("connection", "upgrade")])), None);
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade_protocol(&both), Some(HeaderValue::from_static("websocket")));
    }

    #[test]
    fn the_client_cannot_choose_its_address() {
        let mut map = headers(&[("cf-connecting-ip", "203.0.113.9"), ("x-forwarded-for", "203.0.113.9")]);
        let client = "::ffff:127.0.0.1".parse().expect("an address");
        add_forwarded(&mut map, client, &Authority::from_static("app.localhost:80"));
        assert_eq!(map["cf-connecting-ip"], "127.0.0.1");
        assert_eq!(map["x-forwarded-for"], "203.0.113.9, 127.0.0.1");
        assert_eq!(map["x-forwarded-host"], "app.localhost:80");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map["host"], "app.localhost:80");
    }
}
