//! What repositories take.

use std::collections::{BTreeMap, HashMap};

use cfc_oci::Digest;
use serde::Serialize;

use crate::files::blocking;
use crate::metadata::Found;
use crate::{Registry, StorageError};

/// What one repository takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tags.
    pub tags: u64,
    /// Manifests.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of its blobs, those that other repositories hold as well included.
    pub bytes: u64,
    /// Bytes of its blobs that no other repository holds.
    pub own_bytes: u64,
}

impl Registry {
    /// What each repository takes, by name.
    pub async fn usage(&self) -> Result<BTreeMap<String, Usage>, StorageError> {
        let registry = self.clone();
        blocking(move || registry.add_up()).await
    }

    fn add_up(&self) -> Result<BTreeMap<String, Usage>, StorageError> {
        let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
        for found in self.inner.metadata.walk_repositories()? {
            match found {
                Found::Manifest(name, _) => usage.entry(name.into()).or_default().manifests += 1,
                Found::Tag(name, _) => usage.entry(name.into()).or_default().tags += 1,
                Found::Note(..) | Found::Referrer(..) => {}
            }
        }
        let sizes: HashMap<Digest, u64> = self.inner.blobs.list()?.into_iter().collect();
        let links = self.inner.metadata.walk_links()?;
        let mut holders: HashMap<&Digest, u64> = HashMap::new();
        links.iter().for_each(|(_, digest, _)| *holders.entry(digest).or_default() += 1);
        for (name, digest, _) in &links {
            let size = sizes.get(digest).copied().unwrap_or_default();
            let entry = usage.entry(name.to_string()).or_default();
            entry.blobs += 1;
            entry.bytes += size;
            if holders.get(digest) == Some(&1) {
                entry.own_bytes += size;
            }
        }
        Ok(usage)
    }
}
