//! Connections to a daemon: its socket, its port with or without TLS, or an upgrade on the socket of Docker's engine.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::Address;
use crate::failure::{Failure, Result};

/// A daemon that does not answer within this time is not there.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a port that says nothing is asked whether it is still there, and how often before it is given up.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const N_PROBES: u32 = 4;
/// A daemon sends no longer messages, in bytes: BuildKit's own clients take 16 MiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Where Docker's engine has BuildKit's control API.
const GRPC: &str = "/grpc";

/// How a daemon's port is spoken to with TLS: three PEM files, as `buildctl --tlsdir` and Docker have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`, of which the last two belong together and may be missing.
    pub directory: PathBuf,
}

/// A way to a daemon.
#[derive(Clone)]
pub(crate) struct Connector {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    patience: Duration,
}

/// A connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) type BoxedStream = Box<dyn Stream>;

impl Connector {
    /// The way to `address`, its port with TLS where there are files for it.
    pub(crate) fn new(address: &Address, tls: Option<&TlsFiles>) -> Result<Connector> {
        let tls = match (tls, address.host()) {
            (Some(files), Some(_)) => Some(Arc::new(client_config(files)?)),
            (Some(_), None) => {
                let failure = Failure::new(format!("`{address}` is a socket of this machine, which has no TLS"));
                return Err(failure.hint("leave out --buildkit-tls-dir"));
            }
            (None, _) => None,
        };
        Ok(Connector { address: address.clone(), tls, patience: PATIENCE })
    }

    /// The same way for whoever gives up sooner.
    #[cfg(test)]
    pub(crate) fn with_patience(self, patience: Duration) -> Connector {
        Connector { patience, ..self }
    }

    /// How long an answer is waited for that needs no work.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Whom it leads to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A channel for gRPC.
    pub(crate) async fn channel(&self) -> Result<Channel> {
        let this = self.clone();
        // The name is for logs only: who is asked depends on the connection.
        let endpoint = Endpoint::from_static("http://buildkit").connect_timeout(self.patience);
        // A daemon that is gone without a word is noticed. One that lives asks the session for its health every few seconds,
        // so that it is never asked back: gRPC's servers hang up on clients that ask often. For the same reason an idle
        // connection, of which nobody waits for anything, is left alone.
        let endpoint = endpoint.http2_keep_alive_interval(self.patience).keep_alive_timeout(self.patience);
        let connect = service_fn(move |_: Uri| {
            let this = this.clone();
            async move { this.connect().await.map(TokioIo::new) }
        });
        let connected = endpoint.connect_with_connector(connect).await;
        connected.map_err(|error| self.unreachable(&root_cause(&error)))
    }

    /// A connection that speaks HTTP/2 for BuildKit's control API.
    async fn connect(&self) -> io::Result<BoxedStream> {
        let stream = self.open().await?;
        match self.address.is_engine() {
            true => upgrade(stream, GRPC).await,
            false => Ok(stream),
        }
    }

    /// A connection to whoever listens at the address.
    pub(crate) fn open(&self) -> Pin<Box<dyn Future<Output = io::Result<BoxedStream>> + Send + '_>> {
        Box::pin(async move {
            let tcp = |place: String| async move {
                let stream = TcpStream::connect(place).await?;
                stream.set_nodelay(true)?;
                notice_silence(&stream)?;
                Ok::<_, io::Error>(stream)
            };
            let stream = match &self.address {
                Address::Unix(path) | Address::DockerUnix(path) => {
                    return Ok(Box::new(UnixStream::connect(path).await?) as BoxedStream);
                }
                Address::Tcp(place) | Address::DockerTcp(place) => tcp(place.clone()).await?,
            };
            let (Some(tls), Some(host)) = (&self.tls, self.address.host()) else { return Ok(Box::new(stream) as _) };
            let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
            // Docker's engine speaks HTTP/1.1 until it is asked for more, a daemon HTTP/2 at once.
            let mut config = ClientConfig::clone(tls);
            config.alpn_protocols = vec![if self.address.is_engine() { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
            Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?) as _)
        })
    }

    pub(crate) fn unreachable(&self, cause: &str) -> Failure {
        let address = &self.address;
        let hint = match address {
            Address::Unix(path) if !path.exists() => {
                "start `buildkitd`, or say where one listens: --buildkit-addr, BUILDKIT_HOST; `docker://` is the one in Docker's engine"
            }
            Address::Unix(_) | Address::Tcp(_) => {
                "is a BuildKit daemon there, may you use it, and does it want TLS (--buildkit-tls-dir)?"
            }
            Address::DockerUnix(_) | Address::DockerTcp(_) => {
                "is Docker's engine there, may you use it, and is it 18.09 or newer?"
            }
        };
        Failure::new(format!("cannot reach a BuildKit daemon at `{address}`: {cause}")).hint(hint)
    }
}

/// A machine that is gone without a word is noticed, although its engine may take its time for an answer.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PATIENCE)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, N_PROBES)?;
    let unanswered = PATIENCE + PROBE_EVERY * N_PROBES;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unanswered.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Asks Docker's engine to speak HTTP/2 on this connection from now on.
async fn upgrade(stream: BoxedStream, path: &str) -> io::Result<BoxedStream> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(path)
        .header(header::HOST, "docker")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "h2c")
        .body(Empty::<&[u8]>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(io::Error::other(format!("it answered {} to an upgrade of `{path}`", response.status())));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig> {
    let failed = |path: &std::path::Path, cause: String| {
        Failure::new(format!("cannot use the certificates of `{}`: {cause}", path.display()))
            .hint("the directory holds PEM files: ca.pem, and cert.pem with key.pem where the daemon wants to know who you are")
    };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let path = files.directory.join(name);
        let found = CertificateDer::pem_file_iter(&path).and_then(|found| found.collect());
        found.map_err(|error| failed(&path, error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        roots.add(certificate).map_err(|error| failed(&files.directory.join("ca.pem"), error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::because("cannot set up TLS", error))?.with_root_certificates(roots);
    let key = files.directory.join("key.pem");
    if !files.directory.join("cert.pem").exists() && !key.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| failed(&key, error.to_string()))?;
    let config = builder.with_client_auth_cert(certificates("cert.pem")?, private);
    config.map_err(|error| failed(&key, error.to_string()))
}

/// What lies below the layers of a transport's error.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::DiskUsageRequest;
    use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
    use tokio::net::TcpListener;

    use super::*;

    /// Long enough that only a hang is longer.
    const HANG: Duration = Duration::from_secs(120);

    #[tokio::test]
    async fn a_daemon_that_falls_silent_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = Address::Tcp(listener.local_addr().expect("bound").to_string());
        let connector = Connector::new(&address, None).expect("a way").with_patience(Duration::from_millis(200));
        let channel = connector.channel().await.expect("somebody listens");
        let (_silent, _) = listener.accept().await.expect("we connected");
        let mut client = ControlClient::new(channel);
        let asked = tokio::time::timeout(HANG, client.disk_usage(DiskUsageRequest::default())).await;
        let status = asked.expect("it does not hang").expect_err("nobody answers");
        let told = crate::failure::refused(&address.to_string(), "build", &status).message;
        assert!(
            told.starts_with(&format!("the connection to the BuildKit daemon at `{address}` was lost: ")),
            "{told}"
        );
    }

    #[tokio::test]
    async fn the_kernel_asks_ports_whether_they_are_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("somebody listens");
        notice_silence(&stream).expect("the kernel knows how");
        assert!(sockopt::socket_keepalive(&stream).expect("known"));
        assert_eq!(sockopt::tcp_keepidle(&stream).expect("known"), PATIENCE);
        assert_eq!(sockopt::tcp_user_timeout(&stream).expect("known"), 40_000);
    }
}
