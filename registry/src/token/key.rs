//! [`Key`]: the registry's own key, and what it signs.

use std::path::Path;

use cfc_oci::base64::{decode_url, encode_url};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use crate::StorageError;
use crate::files::create_secret;

/// The only header that is written or accepted: nothing in it is ever looked at, so nothing in it can choose another
/// algorithm or bring a key along.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

const KEY_BYTES: usize = 32;

/// Longer texts are no tokens of ours.
const MAX_TOKEN_BYTES: usize = 32 * 1024;

/// A key that nobody else has. What it signs is good for who has it: this registry, and others that share the file.
pub(crate) struct Key([u8; KEY_BYTES]);

impl Key {
    /// The key in a file of 64 hexadecimal digits, which is made, readable by its owner alone, where it is not there.
    pub(crate) fn open(path: &Path) -> Result<Key, StorageError> {
        let cannot = |operation, error: std::io::Error| StorageError::new(operation, path.display(), error);
        match std::fs::read_to_string(path) {
            Ok(text) => parse(text.trim()).ok_or_else(|| {
                let what = "expected 64 hexadecimal digits; remove the file to have another key made";
                cannot("use", std::io::Error::new(std::io::ErrorKind::InvalidData, what))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create(path).map_err(|error| cannot("write", error))?;
                // Another process may have been faster.
                Key::open(path)
            }
            Err(error) => Err(cannot("read", error)),
        }
    }

    /// A key of 64 hexadecimal digits.
    pub(crate) fn shared(text: &str) -> Result<Key, StorageError> {
        let what = "expected 64 hexadecimal digits; remove it to have another key made";
        parse(text.trim()).ok_or_else(|| StorageError::new("use", "registry/token-key", what))
    }

    /// Signs claims as a JWT.
    pub(crate) fn sign(&self, claims: &impl Serialize) -> String {
        let claims = serde_json::to_vec(claims).expect("claims have only string keys");
        let text = format!("{}.{}", encode_url(HEADER.as_bytes()), encode_url(&claims));
        let signature = encode_url(&self.mac(&[text.as_bytes()]));
        format!("{text}.{signature}")
    }

    /// The claims of a JWT that this key has signed.
    pub(crate) fn verify<Claims: DeserializeOwned>(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (text, signature) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let is_ours = header == encode_url(HEADER.as_bytes());
        let signature = decode_url(signature)?;
        if !is_ours || !is_same(&signature, &self.mac(&[text.as_bytes()])) {
            return None;
        }
        serde_json::from_slice(&decode_url(claims)?).ok()
    }

    /// HMAC-SHA256 (RFC 2104) of the parts, one after another.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.0, parts)
    }
}

/// HMAC-SHA256 (RFC 2104) of the parts, one after another, with a key of any length.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Compares in a time that tells nothing of where they differ.
pub(crate) fn is_same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (left, right)| all | (left ^ right)) == 0
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str) -> Option<Key> {
    let mut key = [0; KEY_BYTES];
    if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
        return None;
    }
    for (position, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * position..2 * position + 2], 16).ok()?;
    }
    Some(Key(key))
}

/// Makes a new key, unless somebody else has made one meanwhile.
fn create(path: &Path) -> std::io::Result<()> {
    let mut bytes = [0; KEY_BYTES];
    let mut filled = 0;
    while filled < KEY_BYTES {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    create_secret(path, &format!("{}\n", hex(&bytes)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_code_is_that_of_the_standard() {
        // RFC 4231, test cases 2 and 6.
        let found = mac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(hex(&found), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let found = mac(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"]);
        assert_eq!(hex(&found), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn only_what_this_key_has_signed_is_believed() {
        let (ours, other) = (Key([7; 32]), Key([8; 32]));
        let claims = json!({"sub": "ann", "exp": 12});
        let token = ours.sign(&claims);
        assert_eq!(ours.verify::<Value>(&token), Some(claims.clone()));
        assert_eq!(ours.verify::<Value>(&other.sign(&claims)), None);
        let forged = |header: &str, signature: &dyn Fn(&str) -> Vec<u8>| {
            let text = format!("{}.{}", encode_url(header.as_bytes()), encode_url(claims.to_string().as_bytes()));
            let signature = encode_url(&signature(&text));
            format!("{text}.{signature}")
        };
        let signed = |text: &str| ours.mac(&[text.as_bytes()]).to_vec();
        // Rightly signed, but asking to be read in another way.
        for header in [
            r#"{"alg":"none","typ":"JWT"}"#,
            r#"{"alg":"RS256","typ":"JWT"}"#,
            r#"{"alg":"hs256","typ":"JWT"}"#,
            r#"{"typ":"JWT","alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"JWT","kid":"../../dev/null"}"#,
            r#"{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"AA"}}"#,
            r#"{"alg":"HS256","typ":"JWT","x5c":["AA"]}"#,
        ] {
            assert_eq!(ours.verify::<Value>(&forged(header, &signed)), None, "{header}");
        }
        assert_eq!(ours.verify::<Value>(&forged(HEADER, &signed)), Some(claims.clone()));
        for signature in [Vec::new(), vec![0; 32], signed("x")] {
            assert_eq!(ours.verify::<Value>(&forged(HEADER, &|_| signature.clone())), None);
        }
        let (text, _) = token.rsplit_once('.').expect("three parts");
        for bad in ["", ".", "..", "a.b.c", text, &format!("{text}."), &format!("{token}="), &format!("{token}.")] {
            assert_eq!(ours.verify::<Value>(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("deep/token-key");
        let first = Key::open(&path).expect("made");
        assert_eq!(first.0, Key::open(&path).expect("read").0);
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(first.0, Key::open(&directory.path().join("other")).expect("made").0);
        std::fs::write(&path, "short").expect("writes");
        assert!(Key::open(&path).is_err());
        assert_eq!(std::fs::read_dir(path.parent().expect("one")).expect("reads").count(), 1);
    }
}
