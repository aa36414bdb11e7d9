//! [`Tls`]: the certificate a registry shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig, crypto};

/// A certificate with its key, ready to be shown.
#[derive(Clone)]
pub struct Tls {
    pub(crate) acceptor: TlsAcceptor,
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
    /// The certificate with its chain and its key, both in PEM files.
    pub fn open(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let cannot = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TlsError::Read { path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate).and_then(|chain| chain.collect::<Result<Vec<_>, _>>());
        let chain = chain.map_err(cannot(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(cannot(key))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let config =
            builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, key)?;
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}
