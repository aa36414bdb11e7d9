//! [`Tls`]: the certificate a registry shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem;
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_rustls::rustls::{self, ServerConfig, crypto};

use crate::pair::Pair;

/// A certificate with its key, ready to be shown.
#[derive(Clone)]
pub struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    /// Where it comes from, if that is two files.
    pair: Option<Arc<Pair>>,
}

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// Certificate and key do not go together.
    #[error("the certificate cannot be shown")]
    Unusable(#[from] rustls::Error),
}

impl Tls {
    /// The certificate with its chain and its key, both in PEM files. They are looked at again, every two seconds at most
    /// when somebody connects; of a pair that cannot be shown the log is told, and the one before is shown on.
    pub fn open(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let pair = Arc::new(Pair::open(certificate, key)?);
        Ok(Tls { pair: Some(pair.clone()), ..Tls::showing(pair)? })
    }

    /// What `certificates` has for each connection.
    pub(crate) fn showing(certificates: Arc<dyn ResolvesServerCert>) -> Result<Tls, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let config = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        let config = config.with_cert_resolver(certificates);
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), pair: None })
    }

    /// Looks at the files now.
    pub(crate) fn reload(&self) {
        if let Some(pair) = &self.pair {
            pair.reload();
        }
    }
}
