//! [`LocalCa`]: a certificate authority of this registry's own, for machines that have been told to trust it.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig, crypto};

use crate::files::create_secret;
use crate::token::hex;
use crate::{StorageError, Tls};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority is good for.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a certificate is good for, and after how long it is replaced.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const RENEWAL: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// A certificate authority in a directory.
///
/// ```text
/// DIRECTORY/ca.pem    its certificate, for everybody
/// DIRECTORY/ca.key    its key, mode 0600
/// ```
pub struct LocalCa {
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    name: String,
}

impl LocalCa {
    /// The authority in `directory`, made where it is not there.
    pub fn open(directory: &Path) -> Result<LocalCa, StorageError> {
        let (certificate, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
        let cannot =
            |operation, path: &Path, error: std::io::Error| StorageError::new(operation, path.display(), error);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|error| cannot("create", directory, error))?;
        if !key_path.exists() {
            let key = KeyPair::generate().map_err(|error| StorageError::new("make", key_path.display(), error))?;
            create_secret(&key_path, &key.serialize_pem()).map_err(|error| cannot("write", &key_path, error))?;
        }
        let text = std::fs::read_to_string(&key_path).map_err(|error| cannot("read", &key_path, error))?;
        let key = KeyPair::from_pem(&text).map_err(|error| StorageError::new("use", key_path.display(), error))?;
        let name = format!("cfc registry {}", &hex(&sha256(key.public_key_raw()))[..16]);
        let params = authority(&name);
        if !certificate.exists() {
            let own = params.self_signed(&key).map_err(|e| StorageError::new("make", certificate.display(), e))?;
            let new = directory.join("ca.pem.new");
            let written = std::fs::write(&new, own.pem()).and_then(|()| std::fs::rename(&new, &certificate));
            written.map_err(|error| cannot("write", &certificate, error))?;
        }
        Ok(LocalCa { certificate, issuer: Issuer::new(params, key), name })
    }

    /// The file of its certificate, in PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// What it is called: no other one is called the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Certificates for these names and addresses, each replaced before its time is over.
    pub fn serve(self, names: Vec<String>) -> Result<Tls, StorageError> {
        let issued = self.issue(&names)?;
        let renewing = Renewing { ca: self, names, current: Mutex::new((SystemTime::now(), issued)) };
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let config = builder.with_safe_default_protocol_versions().map_err(|e| StorageError::new("use", "TLS", e))?;
        let config = config.with_no_client_auth().with_cert_resolver(Arc::new(renewing));
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    fn issue(&self, names: &[String]) -> Result<Arc<CertifiedKey>, StorageError> {
        let cannot = |error: rcgen::Error| StorageError::new("certify", names.join(", "), error);
        let mut params = CertificateParams::new(names.to_vec()).map_err(cannot)?;
        params.distinguished_name = named(names.first().map_or("registry", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, LIFETIME);
        let key = KeyPair::generate().map_err(cannot)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(cannot)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = crypto::ring::sign::any_supported_type(&key)
            .map_err(|error: rustls::Error| StorageError::new("use", names.join(", "), error))?;
        Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
    }
}

/// A certificate that is replaced when it gets old.
struct Renewing {
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

/// The authority of this name. Nothing else tells one from another, so what is made of the same key is the same.
fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut params, CA_LIFETIME);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From yesterday, for clocks that are late.
fn lasts(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + lifetime).into();
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
