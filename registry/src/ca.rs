//! [`LocalCa`]: a certificate authority of this registry's own, for machines that have been told to trust it.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore, crypto};

use crate::files::{create_secret, replace};
use crate::renewing::Renewing;
use crate::token::hex;
use crate::{StorageError, Tls};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority is good for.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a certificate is good for; it is replaced before that.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What this machine calls itself.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate authority in a directory. Its certificate is good for the names and addresses that it is for, and below
/// those names, and for nothing else (RFC 5280, section 4.2.1.10): who trusts it trusts it with nobody else's.
///
/// ```text
/// DIRECTORY/ca.pem    its certificate, for everybody
/// DIRECTORY/ca.key    its key, mode 0600
/// ```
pub struct LocalCa {
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    name: String,
    names: Vec<String>,
}

impl LocalCa {
    /// The authority in `directory` for these names and addresses and those that this machine has for itself; made where
    /// there is none. One that is for others gets another certificate of the same key, which must be trusted anew.
    pub fn open(directory: &Path, names: &[String]) -> Result<LocalCa, StorageError> {
        let (certificate, key_path) = files(directory);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(|error| cannot("create", directory, error))?;
        if !key_path.exists() && !certificate.exists() {
            let key = KeyPair::generate().map_err(|error| StorageError::new("make", key_path.display(), error))?;
            create_secret(&key_path, &key.serialize_pem()).map_err(|error| cannot("write", &key_path, error))?;
        }
        let (key, name) = read_key(&key_path)?;
        let names: Vec<String> = names.iter().cloned().chain(OWN_NAMES.map(str::to_string)).collect();
        let params = authority(&name, &names)?;
        let own = params.self_signed(&key).map_err(|error| StorageError::new("certify", &name, error))?;
        let wanted = anchor(own.der()).map_err(|error| StorageError::new("certify", &name, error))?;
        let kept = if certificate.exists() { Some(read_certificate(&certificate, &key)?) } else { None };
        if kept.as_ref().is_none_or(|kept| kept.name_constraints != wanted.name_constraints) {
            replace(&certificate, own.pem().as_bytes(), 0o644).map_err(|error| cannot("write", &certificate, error))?;
            if kept.is_some() {
                let file = certificate.display();
                tracing::warn!(%file, "the registry's authority is for other names now: have it trusted anew");
            }
        }
        Ok(LocalCa { certificate, issuer: Issuer::new(params, key), name, names })
    }

    /// The authority in `directory`, if there is one.
    pub fn find(directory: &Path) -> Result<Option<LocalCa>, StorageError> {
        let (certificate, key_path) = files(directory);
        if !key_path.exists() && !certificate.exists() {
            return Ok(None);
        }
        let (key, name) = read_key(&key_path)?;
        read_certificate(&certificate, &key)?;
        let issuer = Issuer::new(authority(&name, &[])?, key);
        Ok(Some(LocalCa { certificate, issuer, name, names: Vec::new() }))
    }

    /// Whether a certificate in PEM is one of this authority's own, of now or of earlier.
    pub fn is_own(&self, pem: &[u8]) -> bool {
        let anchor = CertificateDer::from_pem_slice(pem).ok().and_then(|certificate| anchor(&certificate).ok());
        anchor.is_some_and(|anchor| is_of(&anchor, self.issuer.key()))
    }

    /// The file of its certificate, in PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// What it is called: no other one is called the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Certificates for the names and addresses that it is for, each replaced before its time is over.
    pub fn serve(self) -> Result<Tls, StorageError> {
        let names = self.names.clone();
        let renewing = Renewing::new(self, names)?;
        Tls::showing(Arc::new(renewing)).map_err(|error| StorageError::new("use", "TLS", error))
    }

    pub(crate) fn issue(&self, names: &[String]) -> Result<Arc<CertifiedKey>, StorageError> {
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

fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("ca.pem"), directory.join("ca.key"))
}

fn cannot(operation: &'static str, path: &Path, error: std::io::Error) -> StorageError {
    StorageError::new(operation, path.display(), error)
}

/// The key, and what its authority is called: no other one is called the same.
fn read_key(path: &Path) -> Result<(KeyPair, String), StorageError> {
    let text = std::fs::read_to_string(path).map_err(|error| cannot("read", path, error))?;
    let key = KeyPair::from_pem(&text).map_err(|error| StorageError::new("use", path.display(), error))?;
    let name = format!("cfc registry {}", &hex(&sha256(key.public_key_raw()))[..16]);
    Ok((key, name))
}

fn read_certificate(path: &Path, key: &KeyPair) -> Result<TrustAnchor<'static>, StorageError> {
    let wrong = |why: String| StorageError::new("use", path.display(), why);
    let pem = std::fs::read(path).map_err(|error| cannot("read", path, error))?;
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|error| wrong(error.to_string()))?;
    let anchor = anchor(&certificate).map_err(|error| wrong(error.to_string()))?;
    match is_of(&anchor, key) {
        true => Ok(anchor),
        false => {
            let what =
                "it is not the certificate of the key `ca.key` beside it: put the right one back, or remove both";
            Err(wrong(what.to_string()))
        }
    }
}

/// What those who trust a certificate know of it.
fn anchor(certificate: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, rustls::Error> {
    let mut store = RootCertStore::empty();
    store.add(certificate.clone().into_owned())?;
    Ok(store.roots.remove(0))
}

/// Whether a certificate is of a key; the key itself is the last part of what says so.
fn is_of(anchor: &TrustAnchor<'_>, key: &KeyPair) -> bool {
    anchor.subject_public_key_info.ends_with(key.public_key_raw())
}

/// The authority of this name, for these names and addresses. Nothing else tells one from another, so what is made of the
/// same key is the same.
fn authority(name: &str, names: &[String]) -> Result<CertificateParams, StorageError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    names.sort();
    names.dedup();
    let permitted_subtrees = names.iter().map(|name| subtree(name)).collect::<Result<Vec<_>, _>>()?;
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    lasts(&mut params, CA_LIFETIME);
    Ok(params)
}

/// What an authority for this name or address may certify.
fn subtree(name: &str) -> Result<GeneralSubtree, StorageError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Ok(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, bits)));
    }
    let domain = name.strip_prefix("*.").unwrap_or(name);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    match domain.split('.').all(is_label) {
        true => Ok(GeneralSubtree::DnsName(domain.to_string())),
        false => Err(StorageError::new("certify", name, "expected a name as `registry.example`, or an address")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn an_authority_stays_as_long_as_its_names_do() {
        let directory = tempfile::TempDir::new().expect("directory");
        let place = directory.path().join("ca");
        assert!(LocalCa::find(&place).expect("looks").is_none());
        assert!(!place.exists(), "who only looks makes nothing");
        let first = LocalCa::open(&place, &names(&["r.test", "10.0.0.1"])).expect("made");
        let read = || std::fs::read(place.join("ca.pem")).expect("reads");
        let bytes = read();
        // The order does not matter, nor what is said twice.
        LocalCa::open(&place, &names(&["10.0.0.1", "R.test", "r.test"])).expect("opens");
        assert!(read() == bytes);
        let found = LocalCa::find(&place).expect("looks").expect("there");
        assert_eq!(found.name(), first.name());
        let other = LocalCa::open(&place, &names(&["s.test"])).expect("opens");
        assert!(read() != bytes && other.name() == first.name());
        assert!(other.is_own(&bytes) && found.is_own(&read()));
        let mode = |file: &str| {
            let metadata = place.join(file).metadata().expect("there");
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
        };
        assert_eq!((mode("ca.pem"), mode("ca.key")), (0o644, 0o600));
        assert_eq!(std::fs::read_dir(&place).expect("lists").count(), 2);
        for odd in ["", "a..b", "a b", "https://r.test", "r.test:5000", "*"] {
            assert!(LocalCa::open(&place, &names(&[odd])).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_certificate_of_another_key_is_not_taken() {
        let directory = tempfile::TempDir::new().expect("directory");
        let place = |name: &str| directory.path().join(name);
        let (first, second) =
            (LocalCa::open(&place("a"), &[]).expect("made"), LocalCa::open(&place("b"), &[]).expect("made"));
        let foreign = std::fs::read(second.certificate()).expect("reads");
        assert!(!first.is_own(&foreign) && !first.is_own(b"nothing"));
        std::fs::copy(place("b/ca.pem"), place("a/ca.pem")).expect("copies");
        for refused in [LocalCa::open(&place("a"), &[]).err(), LocalCa::find(&place("a")).err()] {
            let why = crate::error::Chain(&refused.expect("refused")).to_string();
            assert!(why.contains("it is not the certificate of the key"), "{why}");
        }
        // Neither is made anew by itself: somebody trusts what was there.
        std::fs::remove_file(place("a/ca.key")).expect("removes");
        assert!(LocalCa::open(&place("a"), &[]).is_err() && LocalCa::find(&place("a")).is_err());
        assert!(!place("a/ca.key").exists());
    }
}
