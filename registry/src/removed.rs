//! [`Removed`]: what a collection takes away, thing by thing, for an operator who wants to see it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use cfc_oci::{Digest, RepositoryName};
use serde::{Deserialize, Serialize};

use crate::Collected;

/// What a collection has done, or would do, with each thing that it removes where that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// How much it is.
    #[serde(flatten)]
    pub counts: Collected,
    /// Each of them, sorted, but for uploads; `None` where nobody has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Vec<Removed>>,
}

/// Something that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Removed {
    /// What it is.
    pub kind: RemovedKind,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; of a link, that of the blob, which others keep.
    pub bytes: u64,
    /// Where it is; of a blob, which repositories have let go of it now.
    pub repositories: Vec<RepositoryName>,
    /// Why nobody needs it.
    pub reason: RemovalReason,
}

/// What a collection removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemovedKind {
    /// A manifest.
    Manifest,
    /// A blob, whose bytes get free.
    Blob,
    /// That one repository holds a blob, which stays for others.
    Link,
}

/// Why something is garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemovalReason {
    /// A manifest that no tag, index or subject leads to.
    Untagged,
    /// A blob that no manifest of the repository names.
    Unnamed,
    /// A blob that no repository has held.
    Unheld,
}

impl fmt::Display for RemovedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RemovedKind::Manifest => "manifest",
            RemovedKind::Blob => "blob",
            RemovedKind::Link => "link",
        })
    }
}

impl fmt::Display for RemovalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RemovalReason::Untagged => "no tag, index or subject leads to it",
            RemovalReason::Unnamed => "no manifest there names it",
            RemovalReason::Unheld => "no repository holds it",
        })
    }
}

/// What a collection writes down of what it removes, while it does.
#[derive(Default)]
pub(crate) struct Notes {
    removed: Vec<Removed>,
    /// Which repositories have let go of which blobs.
    unlinked: HashMap<Digest, BTreeSet<RepositoryName>>,
}

impl Notes {
    /// A repository's manifest goes.
    pub(crate) fn manifest(&mut self, repository: &RepositoryName, digest: &Digest, bytes: u64) {
        let (kind, reason) = (RemovedKind::Manifest, RemovalReason::Untagged);
        let repositories = vec![repository.clone()];
        self.removed.push(Removed { kind, digest: digest.clone(), bytes, repositories, reason });
    }

    /// A repository lets go of a blob.
    pub(crate) fn link(&mut self, repository: &RepositoryName, digest: &Digest) {
        self.unlinked.entry(digest.clone()).or_default().insert(repository.clone());
    }

    /// A blob stays, or goes after all repositories have let go of it.
    pub(crate) fn blob(&mut self, digest: &Digest, bytes: u64, is_removed: bool) {
        let repositories: Vec<RepositoryName> = self.unlinked.remove(digest).into_iter().flatten().collect();
        match is_removed {
            false => repositories.into_iter().for_each(|repository| self.let_go(repository, digest, bytes)),
            true => {
                let reason = if repositories.is_empty() { RemovalReason::Unheld } else { RemovalReason::Unnamed };
                self.removed.push(Removed {
                    kind: RemovedKind::Blob,
                    digest: digest.clone(),
                    bytes,
                    repositories,
                    reason,
                });
            }
        }
    }

    fn let_go(&mut self, repository: RepositoryName, digest: &Digest, bytes: u64) {
        let (kind, reason) = (RemovedKind::Link, RemovalReason::Unnamed);
        self.removed.push(Removed { kind, digest: digest.clone(), bytes, repositories: vec![repository], reason });
    }

    /// All of it, in order.
    pub(crate) fn finish(mut self) -> Vec<Removed> {
        // Links to blobs whose bytes were gone already.
        for (digest, repositories) in std::mem::take(&mut self.unlinked) {
            repositories.into_iter().for_each(|repository| self.let_go(repository, &digest, 0));
        }
        self.removed.sort();
        self.removed
    }
}
