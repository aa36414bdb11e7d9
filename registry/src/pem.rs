//! Certificates and keys from files in PEM (RFC 7468), and what is wrong with a file in words.

use std::path::Path;

use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What is wrong with a file that should hold a certificate or a key in PEM (RFC 7468).
#[derive(Debug, thiserror::Error)]
pub enum UnfitPem {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// The key is good for nothing without a passphrase.
    #[error(
        "the key is encrypted, and there is nobody to ask for its passphrase: `openssl pkey -in OLD -out NEW` takes that off"
    )]
    Encrypted,
    /// It holds other things.
    #[error("expected {expected}, found {found}")]
    Other {
        /// What is expected.
        expected: &'static str,
        /// What sections there are.
        found: String,
    },
    /// A section cannot be read.
    #[error("its PEM is damaged: {0}")]
    Damaged(pem::Error),
}

/// What begins sections of certificates.
const CERTIFICATES: [&str; 1] = ["CERTIFICATE"];
/// What begins sections of keys.
const KEYS: [&str; 3] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

/// The certificates of a file, of which there is one at least.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, UnfitPem> {
    let bytes = read(path, "a certificate (`BEGIN CERTIFICATE`)", &CERTIFICATES)?;
    CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(UnfitPem::Damaged)
}

/// The first key of a file.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, UnfitPem> {
    let bytes = read(path, "a key (`BEGIN PRIVATE KEY`)", &KEYS)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(UnfitPem::Damaged)
}

/// The contents of a file that has a section of one of these labels.
fn read(path: &Path, expected: &'static str, labels: &[&str]) -> Result<Vec<u8>, UnfitPem> {
    let bytes = std::fs::read(path)?;
    if bytes.trim_ascii().is_empty() {
        return Err(UnfitPem::Empty);
    }
    let text = String::from_utf8_lossy(&bytes);
    let begins = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let found: Vec<&str> = begins.collect();
    // OpenSSL's own way has a header within the section.
    let is_encrypted = found.contains(&"ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED");
    if labels == KEYS && is_encrypted {
        return Err(UnfitPem::Encrypted);
    }
    if !found.iter().any(|label| labels.contains(label)) {
        let names: Vec<String> = found.iter().map(|label| format!("`BEGIN {label}`")).collect();
        let found = if names.is_empty() { "no PEM".to_string() } else { names.join(", ") };
        return Err(UnfitPem::Other { expected, found });
    }
    Ok(bytes)
}
