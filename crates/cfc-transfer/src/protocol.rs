//! [`Protocol`]: how a registry is spoken to, and what a server on this machine speaks of which nobody has said it.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a server may say nothing to the beginning of TLS until it is also given what ends a line, for which one waits
/// that reads HTTP.
const PATIENCE: Duration = Duration::from_millis(100);

/// For how long it is waited for a server that says nothing at all.
const SILENCE: Duration = Duration::from_secs(10);

/// What the first byte of a record of TLS is by which a server answers a greeting: an alert, or its own part of the
/// handshake (RFC 8446, section 5.1).
const TLS_RECORDS: [u8; 2] = [21, 22];

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Https,
    Http,
    /// HTTPS, unless the server does not speak TLS: a registry of this machine of which nobody has said it.
    Either,
}

impl Protocol {
    /// What is to be spoken to `host`, with an optional port. Whoever does not answer is said to speak HTTP: the request that
    /// follows tells what is wrong with him. A server that speaks TLS is never spoken to without it, whatever its
    /// certificate.
    pub async fn settle(self, host: &str) -> Protocol {
        match self {
            Protocol::Either if speaks_tls(host).await => Protocol::Https,
            Protocol::Either => Protocol::Http,
            settled => settled,
        }
    }
}

/// Whether a server answers the beginning of TLS with a record of TLS. It is sent nothing else.
async fn speaks_tls(host: &str) -> bool {
    let (name, port) = split(host);
    let Ok(name) = ServerName::try_from(name.to_string()) else { return false };
    let answered = async {
        let mut stream = TcpStream::connect((name.to_str().as_ref(), port)).await?;
        stream.write_all(&greeting(name.clone())?).await?;
        let mut first = [0];
        let read = match tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await {
            Ok(read) => read,
            Err(_) => {
                stream.write_all(b"\r\n\r\n").await?;
                stream.read_exact(&mut first).await
            }
        };
        read.map(|_| first[0])
    };
    match tokio::time::timeout(SILENCE, answered).await {
        Ok(Ok(first)) => TLS_RECORDS.contains(&first),
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "no answer to the beginning of TLS");
            false
        }
        Err(_) => false,
    }
}

/// What a client says first.
fn greeting(name: ServerName<'static>) -> std::io::Result<Vec<u8>> {
    // Whoever installs one first wins, and any is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Nobody is believed, since nothing but the kind of the answer is looked at.
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

/// The name and the port, 443 where there is none.
fn split(host: &str) -> (&str, u16) {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    (name, port.and_then(|port| port.parse().ok()).unwrap_or(443))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_host_is_a_name_and_a_port() {
        for (host, expected) in [
            ("localhost", ("localhost", 443)),
            ("localhost:5000", ("localhost", 5000)),
            ("127.0.0.1:80", ("127.0.0.1", 80)),
            ("[::1]:5000", ("::1", 5000)),
            ("[::1]", ("::1", 443)),
        ] {
            assert_eq!(split(host), expected, "{host}");
        }
    }

    /// What is spoken to a server that answers the beginning of TLS with `answer`, or once a line has ended.
    async fn settled(answer: &'static [u8], waits_for_line: bool) -> Protocol {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("bound").to_string();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut got = Vec::new();
            while got.is_empty() || waits_for_line && !got.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut got).await.expect("reads") > 0, "it gave up");
            }
            stream.write_all(answer).await.expect("answers");
        };
        tokio::join!(Protocol::Either.settle(&host), serve).0
    }

    #[tokio::test]
    async fn who_does_not_answer_in_tls_does_not_speak_it() {
        assert_eq!(settled(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await, Protocol::Http);
        assert_eq!(settled(b"HTTP/1.1 400 Bad Request\r\n\r\n", true).await, Protocol::Http);
        assert_eq!(settled(b"", false).await, Protocol::Http);
        // An alert, and the beginning of a handshake; also of a server that is slow.
        assert_eq!(settled(&[21, 3, 3, 0, 2, 2, 40], false).await, Protocol::Https);
        assert_eq!(settled(&[22, 3, 3], false).await, Protocol::Https);
        assert_eq!(settled(&[22, 3, 3], true).await, Protocol::Https);
    }

    #[tokio::test]
    async fn what_was_said_is_not_asked() {
        for said in [Protocol::Http, Protocol::Https] {
            assert_eq!(said.settle("no host at all").await, said);
        }
        assert_eq!(Protocol::Either.settle("127.0.0.1:1").await, Protocol::Http);
    }
}
