//! [`Reference`]: `[registry/]repository[:tag][@digest]` (distribution's reference grammar).
//!
//! A reference without a registry names an image in the local store; nobody guesses a registry for it here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The longest name, registry included, that clients accept.
const MAX_NAME_LENGTH: usize = 255;
const MAX_TAG_LENGTH: usize = 128;

/// A path below a registry: lower-case components between slashes (distribution-spec, "Pulling manifests", `<name>`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let well_formed = text.len() <= MAX_NAME_LENGTH && !text.is_empty() && text.split('/').all(is_component);
        if well_formed {
            Ok(RepositoryName(text.to_string()))
        } else {
            Err(ReferenceError { text: text.to_string(), kind: ReferenceErrorKind::Repository })
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let mut position = 0;
    loop {
        let start = position;
        while position < bytes.len() && is_alphanumeric(bytes[position]) {
            position += 1;
        }
        if position == start {
            return false;
        }
        if position == bytes.len() {
            return true;
        }
        let separator_start = position;
        while position < bytes.len() && matches!(bytes[position], b'.' | b'_' | b'-') {
            position += 1;
        }
        let separator = &text[separator_start..position];
        let is_separator = matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
        if separator.is_empty() || !is_separator {
            return false;
        }
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Tag(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `latest`, the tag of a reference that names none.
    pub fn latest() -> Tag {
        Tag("latest".to_string())
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = text.bytes().next().is_some_and(is_word);
        let goes_on_well = text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if starts_well && goes_on_well && text.len() <= MAX_TAG_LENGTH {
            Ok(Tag(text.to_string()))
        } else {
            Err(ReferenceError { text: text.to_string(), kind: ReferenceErrorKind::Tag })
        }
    }
}

macro_rules! text_conversions {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = ReferenceError;
            fn try_from(text: String) -> Result<Self, ReferenceError> {
                text.parse()
            }
        }
    )*};
}
text_conversions!(RepositoryName, Tag);

/// Names an image: where it lives, and which one of the repository's images it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    /// Host and optional port of the registry; `None` for an image of the local store.
    pub registry: Option<String>,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag, where one was written.
    pub tag: Option<Tag>,
    /// The digest, where one was written; it wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses `[registry/]repository[:tag][@digest]`. The first component is a registry when it contains a dot or a
    /// colon, or is `localhost` (the rule that Docker's clients share).
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        text.parse()
    }

    /// The tag, or `latest` where neither tag nor digest was written.
    pub fn tag_or_latest(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Tag::latest()),
        }
    }

    /// The same repository, named by `digest` alone.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// What follows the repository in a manifest's URL: the digest, else the tag, else `latest`.
    pub fn manifest_name(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.clone().unwrap_or_else(Tag::latest).to_string(),
        }
    }

    /// The name without tag and digest.
    pub fn name(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.repository),
            None => self.repository.to_string(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |kind| ReferenceError { text: text.to_string(), kind };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| error(ReferenceErrorKind::Digest))?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_registry(first) => (Some(first), rest),
            _ => (None, rest),
        };
        if registry.is_some_and(|registry| !is_host(registry)) {
            return Err(error(ReferenceErrorKind::Registry));
        }
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => {
                (repository, Some(tag.parse().map_err(|_| error(ReferenceErrorKind::Tag))?))
            }
            _ => (rest, None),
        };
        let repository = repository.parse().map_err(|_| error(ReferenceErrorKind::Repository))?;
        Ok(Reference { registry: registry.map(str::to_string), repository, tag, digest })
    }
}

fn is_registry(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, port)) => ("ipv6", port),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok());
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_port && host.split('.').all(is_label)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

/// Why a text is not a reference, repository name or tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed image reference `{text}`: {kind}")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
    /// Which part is wrong.
    pub kind: ReferenceErrorKind,
}

/// The part of a reference that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceErrorKind {
    /// Host or port.
    #[error("the registry must be a host name with an optional port")]
    Registry,
    /// Path.
    #[error("the repository must be lower-case letters and digits, separated by `.`, `_`, `-` or `/`")]
    Repository,
    /// Tag.
    #[error("the tag must be at most 128 letters, digits, `_`, `.` or `-`")]
    Tag,
    /// Digest.
    #[error("the digest must be sha256 or sha512 and lower-case hexadecimal")]
    Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, registry: Option<&str>, repository: &str, tag: Option<&str>) {
        let reference = Reference::parse(text).expect(text);
        assert_eq!(reference.registry.as_deref(), registry, "{text}");
        assert_eq!(reference.repository.as_str(), repository, "{text}");
        assert_eq!(reference.tag.as_ref().map(Tag::as_str), tag, "{text}");
        assert_eq!(reference.to_string(), text);
    }

    #[test]
    fn references_split_where_docker_splits_them() {
        check("busybox", None, "busybox", None);
        check("library/busybox:1.36", None, "library/busybox", Some("1.36"));
        check("localhost/app:x", Some("localhost"), "app", Some("x"));
        check("127.0.0.1:5000/a/b:latest", Some("127.0.0.1:5000"), "a/b", Some("latest"));
        check("[::1]:5000/app", Some("[::1]:5000"), "app", None);
        check("a/b__c.d-e--f", None, "a/b__c.d-e--f", None);
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = Digest::of(b"x");
        let reference = Reference::parse(&format!("r.example/app:1@{digest}")).expect("well-formed");
        assert_eq!(reference.manifest_name(), digest.to_string());
        assert_eq!(reference.with_digest(digest.clone()).to_string(), format!("r.example/app@{digest}"));
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            "App",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-x",
            "a..b",
            "a_-b",
            "a@sha256:1",
            "r.x:99999/a",
            "a b",
            "../a",
            "a___b",
        ] {
            assert!(Reference::parse(text).is_err(), "{text} was accepted");
        }
    }
}
