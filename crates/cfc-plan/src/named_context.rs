//! [`NamedContext`]: what whoever builds puts in the place of a stage or an image (`cfc build --build-context`).

use std::fmt;
use std::path::PathBuf;

use cfc_oci::{Reference, Tag};
use serde::{Serialize, Serializer};

use crate::{GitSource, UrlSource};

/// Names that always mean what they mean (BuildKit, `dockerfile2llb`).
const KEPT: [&str; 2] = ["scratch", "context"];
/// What everybody leaves out in front of an image's name (distribution's "familiar names").
const USUAL_REGISTRIES: [&str; 2] = ["docker.io", "index.docker.io"];

/// A name that `FROM` or `--from` may have, in its shortest form: `docker.io/library/alpine:latest` is `alpine`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextName(String);

impl ContextName {
    /// The name that `text` stands for, as BuildKit shortens it. None for what cannot be the name of an image, so capital
    /// letters too, and for `scratch` and `context`.
    ///
    /// ```
    /// use cfc_plan::ContextName;
    /// assert_eq!(ContextName::of("docker.io/library/alpine:latest"), ContextName::of("alpine"));
    /// assert_eq!(ContextName::of("scratch"), None);
    /// ```
    pub fn of(text: &str) -> Option<ContextName> {
        if KEPT.contains(&text) {
            return None;
        }
        let mut reference = Reference::parse(text).ok()?;
        if reference.registry.as_deref().is_some_and(|registry| USUAL_REGISTRIES.contains(&registry)) {
            reference.registry = None;
        }
        if reference.digest.is_none() && reference.tag == Some(Tag::latest()) {
            reference.tag = None;
        }
        let name = reference.to_string();
        let official = name.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        Some(ContextName(official.filter(|_| reference.registry.is_none()).unwrap_or(&name).to_string()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ContextName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What is used in place of a stage or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// The empty filesystem.
    Scratch,
    /// An image, by a name that [`BaseImages`](crate::BaseImages) knows.
    Image(String),
    /// Files, which become the root's.
    Files(ContextFiles),
}

/// Where files of a build context are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextFiles {
    /// In a directory.
    Directory(PathBuf),
    /// In a Git repository.
    Git(GitSource),
    /// At an address: a single file, which is not unpacked.
    Url(UrlSource),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_as_buildkit_shortens_them() {
        for (text, name) in [
            ("alpine", "alpine"),
            ("alpine:latest", "alpine"),
            ("docker.io/library/alpine:3", "alpine:3"),
            ("library/alpine", "alpine"),
            ("docker.io/me/app:latest", "me/app"),
            ("registry.example/library/app", "registry.example/library/app"),
            ("base.with_dots-2", "base.with_dots-2"),
        ] {
            assert_eq!(ContextName::of(text).expect(text).as_str(), name, "{text}");
        }
        for text in ["scratch", "context", "Base", "", "a b"] {
            assert_eq!(ContextName::of(text), None, "{text}");
        }
    }
}
