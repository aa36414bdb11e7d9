//! [`Tls`]: the certificate a registry shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig, crypto};

use crate::pair::Pair;
use crate::pem::UnfitPem;

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
    #[error("cannot use `{}` as the registry's {part}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is expected in it: `certificate` or `key`.
        part: &'static str,
        /// Why.
        source: UnfitPem,
    },
    /// Certificate and key do not go together.
    #[error("the certificate in `{}` is of another key than the one in `{}`", certificate.display(), key.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// There is something that TLS cannot be spoken with.
    #[error("cannot show the certificate in `{}` with the key in `{}`", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl TlsError {
    /// What TLS itself has against the pair of files.
    pub(crate) fn of(certificate: &Path, key: &Path, source: rustls::Error) -> TlsError {
        let (certificate, key) = (certificate.to_path_buf(), key.to_path_buf());
        match source {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch { certificate, key },
            source => TlsError::Unusable { certificate, key, source },
        }
    }
}

impl Tls {
    /// The certificate with its chain and its key, both in PEM files. They are looked at again, every two seconds at most
    /// when somebody connects; of a pair that cannot be shown the log is told, and the one before is shown on.
    ///
    /// # Errors
    /// When a file cannot be read or holds something else, when the key is encrypted, and when the two do not go together.
    pub fn open(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let pair = Arc::new(Pair::open(certificate, key)?);
        let shown = Tls::showing(pair.clone()).map_err(|source| TlsError::of(certificate, key, source))?;
        Ok(Tls { pair: Some(pair), ..shown })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_which_file_is_said_in_words() {
        let directory = tempfile::TempDir::new().expect("directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path
        };
        let made = || rcgen::generate_simple_self_signed(["r.test".to_string()]).expect("a certificate");
        let (one, other) = (made(), made());
        let certificate = write("certificate", &one.cert.pem());
        let key = write("key", &one.signing_key.serialize_pem());
        let both = write("both", &(one.signing_key.serialize_pem() + &one.cert.pem()));
        let foreign = write("foreign", &other.signing_key.serialize_pem());
        let empty = write("empty", "\n");
        let der = write("der", "0\u{3}abc");
        let cut = write("cut", "-----BEGIN PRIVATE KEY-----\nAAAA\n");
        let encrypted =
            ["ENCRYPTED PRIVATE KEY-----\nAAAA\n", "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n"].map(
                |text| {
                    write(&text[..3], &format!("-----BEGIN {text}-----END {}", &text[..text.find('\n').unwrap_or(0)]))
                },
            );
        assert!(Tls::open(&certificate, &key).is_ok() && Tls::open(&both, &both).is_ok());
        let mismatch = "/certificate` is of another key than the one in `";
        for (certificate, key, expected) in [
            (&certificate, &foreign, &[mismatch, "/foreign`"][..]),
            (&certificate, &encrypted[0], &["/ENC` as the registry's key: the key is encrypted", "openssl pkey"]),
            (&certificate, &encrypted[1], &["/RSA` as the registry's key: the key is encrypted"]),
            (
                &key,
                &certificate,
                &["/key` as the registry's certificate: expected a certificate", "found `BEGIN PRIVATE KEY`"],
            ),
            (
                &certificate,
                &certificate,
                &["/certificate` as the registry's key: expected a key", "found `BEGIN CERTIFICATE`"],
            ),
            (&empty, &key, &["/empty` as the registry's certificate: the file is empty"]),
            (&certificate, &empty, &["/empty` as the registry's key: the file is empty"]),
            (&der, &key, &["/der` as the registry's certificate", "found no PEM"]),
            (&certificate, &cut, &["/cut` as the registry's key: its PEM is damaged"]),
            (&directory.path().join("none"), &key, &["/none` as the registry's certificate: No such file"]),
        ] {
            let error = Tls::open(certificate, key).err().expect("refused");
            let said = crate::error::Chain(&error).to_string();
            expected.iter().for_each(|part| assert!(said.contains(part), "{part}\n{said}"));
        }
    }
}
