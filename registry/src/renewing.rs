//! [`Renewing`]: certificates of the registry's own authority, each shown until it gets old.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::{LocalCa, StorageError};

/// After how long a certificate is replaced.
const RENEWAL: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// A certificate that is replaced when it gets old.
pub(crate) struct Renewing {
    ca: LocalCa,
    names: Vec<String>,
    current: Mutex<(SystemTime, Arc<CertifiedKey>)>,
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Renewing({})", self.names.join(", "))
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was put back makes the certificate one of the future.
        let is_fresh = SystemTime::now().duration_since(current.0).is_ok_and(|age| age < RENEWAL);
        if !is_fresh {
            match self.ca.issue(&self.names) {
                Ok(issued) => *current = (SystemTime::now(), issued),
                Err(error) => tracing::error!(%error, "cannot renew the registry's certificate"),
            }
        }
        Some(current.1.clone())
    }
}

impl Renewing {
    /// For these names and addresses.
    pub(crate) fn new(ca: LocalCa, names: Vec<String>) -> Result<Renewing, StorageError> {
        let issued = ca.issue(&names)?;
        Ok(Renewing { ca, names, current: Mutex::new((SystemTime::now(), issued)) })
    }
}
