//! [`Source`]: what comes from outside of a build.

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use cfc_plan::{GitSource, UrlSource};

/// Something from outside: an identifier with a scheme, and attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    identifier: String,
    attributes: BTreeMap<String, String>,
}

impl Source {
    fn new(identifier: String, attributes: &[(&str, &str)]) -> Source {
        let attributes = attributes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Source { identifier, attributes }
    }

    /// Files that the client of `session` calls `name`: those at `paths` (all when there are none), without the leading
    /// slash. The daemon keeps what it was sent, and for the next build with the same `hint` asks only for what has changed.
    pub(crate) fn local(name: &str, session: &str, paths: &[String], hint: &str) -> Source {
        // The session is part of the operation: the daemon would take two at the same time for one, and the files of one
        // client for those of the other.
        let mut source = Source::new(
            format!("local://{name}"),
            &[("local.session", session), ("local.sharedkeyhint", hint), ("local.unique", session)],
        );
        if !paths.is_empty() {
            let paths = serde_json::to_string(paths).expect("text is JSON");
            source.attributes.insert("local.followpaths".to_string(), paths);
        }
        source
    }

    /// An image that a registry or the daemon itself has. With `prefers_local`, the registry is not asked when the daemon
    /// has it.
    pub(crate) fn image(reference: &str, prefers_local: bool) -> Source {
        let mode = if prefers_local { "local" } else { "default" };
        Source::new(format!("docker-image://{reference}"), &[("image.resolvemode", mode)])
    }

    /// The image `reference` (which ends in a digest) of the content store `store`, which the client of `session` has.
    pub(crate) fn layout(reference: &str, session: &str, store: &str) -> Source {
        Source::new(format!("oci-layout://{reference}"), &[("oci.session", session), ("oci.store", store)])
    }

    /// A file of the network, called by its name.
    pub(crate) fn http(url: &UrlSource, name: &str) -> Source {
        let mut source = Source::new(url.url.clone(), &[("http.filename", name)]);
        if let Some(checksum) = &url.checksum {
            source.attributes.insert("http.checksum".to_string(), checksum.to_string());
        }
        source
    }

    /// All of a repository.
    pub(crate) fn git(git: &GitSource) -> Source {
        let bare = git.remote.split_once("://").map_or(git.remote.as_str(), |(_, rest)| rest);
        let fragment = if git.reference.is_empty() { String::new() } else { format!("#{}", git.reference) };
        let mut source = Source::new(format!("git://{bare}{fragment}"), &[("git.fullurl", &git.remote)]);
        let mut set = |key: &str, value: &str| source.attributes.insert(key.to_string(), value.to_string());
        if git.keeps_git_directory {
            set("git.keepgitdir", "true");
        }
        if git.skips_submodules {
            set("git.skipsubmodules", "true");
        }
        if let Some(checksum) = &git.checksum {
            set("git.checksum", checksum);
        }
        source
    }

    pub(super) fn to_message(&self) -> pb::SourceOp {
        pb::SourceOp { identifier: self.identifier.clone(), attrs: self.attributes.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_keep_their_whole_address() {
        let git = GitSource::parse("https://host/a.git#v1:sub").expect("a repository").expect("well-formed");
        let source = Source::git(&git);
        assert_eq!(source.identifier, "git://host/a.git#v1");
        assert_eq!(source.attributes["git.fullurl"], "https://host/a.git");
    }
}
