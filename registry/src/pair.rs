//! [`Pair`]: a certificate and its key in files that somebody may replace, as those do who have it renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::crypto;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::TlsError;
use crate::error::Chain;
use crate::files::Version;
use crate::pem::{read_chain, read_key};

/// How often the files are looked at, at most.
const LOOKED_AT: Duration = Duration::from_secs(2);

/// A certificate and its key, read again when their files have changed.
pub(crate) struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    shown: Arc<CertifiedKey>,
    /// Of both files when they were read last, whatever came of it.
    versions: [Option<Version>; 2],
    looked: Instant,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pair({}, {})", self.certificate.display(), self.key.display())
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOKED_AT {
            self.look(&mut current);
        }
        Some(current.shown.clone())
    }
}

impl Pair {
    /// Fails when they cannot be read, or do not go together.
    pub(crate) fn open(certificate: &Path, key: &Path) -> Result<Pair, TlsError> {
        let versions = versions(certificate, key);
        let shown = Arc::new(read(certificate, key)?);
        let current = Mutex::new(Current { shown, versions, looked: Instant::now() });
        Ok(Pair { certificate: certificate.to_path_buf(), key: key.to_path_buf(), current })
    }

    /// Has whoever connects next shown what the files have now.
    pub(crate) fn reload(&self) {
        self.look(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Files that have changed are read once; what cannot be shown leaves the certificate as it was. Whoever replaces one
    /// after the other may be seen halfway, and is read again when he has finished.
    fn look(&self, current: &mut Current) {
        current.looked = Instant::now();
        let versions = versions(&self.certificate, &self.key);
        if versions == current.versions {
            return;
        }
        current.versions = versions;
        match read(&self.certificate, &self.key) {
            Ok(read) => {
                current.shown = Arc::new(read);
                tracing::info!(file = %self.certificate.display(), "showing another certificate");
            }
            Err(error) => {
                let file = self.certificate.display();
                tracing::warn!(%file, error = %Chain(&error), "going on with the certificate as it was");
            }
        }
    }
}

fn versions(certificate: &Path, key: &Path) -> [Option<Version>; 2] {
    [certificate, key].map(|path| Version::of(path).ok())
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let of = |path: &Path, part| {
        let path = path.to_path_buf();
        move |source| TlsError::File { path, part, source }
    };
    let chain = read_chain(certificate).map_err(of(certificate, "certificate"))?;
    let private = read_key(key).map_err(of(key, "key"))?;
    let shown = CertifiedKey::from_der(chain, private, &crypto::ring::default_provider());
    shown.map_err(|source| TlsError::of(certificate, key, source))
}
