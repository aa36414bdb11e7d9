//! What immutable tags need: the manifests that they lead to through indexes, their configs and their layers. Nobody may
//! delete any of that, since the tag would point at less than it did.
//!
//! Nothing keeps count of it. Who deletes goes through all of a repository's immutable tags, before and after.

use std::collections::HashSet;

use cfc_oci::{Digest, RepositoryName, Tag};
use futures::{StreamExt, TryStreamExt};

use super::{IsImmutable, Metadata, READS_IN_FLIGHT, key};
use crate::StorageError;
use crate::files::blocking;
use crate::manifest::ManifestFacts;

impl Metadata {
    /// An immutable tag of a repository that leads to `digest`, a manifest or a blob, if there is one. Entries of indexes
    /// that are not there lead nowhere. Fails when a manifest on the way cannot be read: what it needs is not known.
    pub(crate) async fn needed_by(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Option<Tag>, StorageError> {
        let mut pending = self.targets_of_immutable_tags(name, is_immutable).await?;
        let mut seen = HashSet::new();
        while !pending.is_empty() {
            if let Some((tag, _)) = pending.iter().find(|(_, target)| target == digest) {
                return Ok(Some(tag.clone()));
            }
            pending.retain(|(_, target)| seen.insert(target.clone()));
            let read = pending.into_iter().map(|(tag, target)| async move {
                let facts = self.peek_facts(name, &target).await?;
                Ok::<_, StorageError>((tag, facts))
            });
            let mut read = futures::stream::iter(read).buffered(READS_IN_FLIGHT);
            let mut next = Vec::new();
            while let Some((tag, facts)) = read.try_next().await? {
                let Some(facts) = facts else { continue };
                if facts.blobs.iter().chain(&facts.optional).any(|blob| blob == digest) {
                    return Ok(Some(tag));
                }
                next.extend(facts.manifests.into_iter().map(|entry| (tag.clone(), entry)));
            }
            drop(read);
            pending = next;
        }
        Ok(None)
    }

    async fn targets_of_immutable_tags(
        &self,
        name: &RepositoryName,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Vec<(Tag, Digest)>, StorageError> {
        let tags = self.tags(name, None, usize::MAX).await?;
        let tags: Vec<Tag> = tags.into_iter().filter_map(|tag| tag.parse().ok()).filter(is_immutable).collect();
        let targets = tags.into_iter().map(|tag| async move {
            let found = self.tag(name, &tag).await?;
            Ok::<_, StorageError>(found.map(|found| (tag, found.digest)))
        });
        futures::stream::iter(targets)
            .buffered(READS_IN_FLIGHT)
            .try_filter_map(|found| async { Ok(found) })
            .try_collect()
            .await
    }

    /// What a manifest says, without keeping it from anything.
    async fn peek_facts(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<ManifestFacts>, StorageError> {
        let (metadata, name, digest) = (self.clone(), name.clone(), digest.clone());
        let read = move || {
            let Some((media_type, bytes)) = metadata.peek_manifest(&name, &digest)? else { return Ok(None) };
            let cannot = |error: crate::error::ApiError| {
                StorageError::new("read", key::manifest(&name, &digest), error.to_string())
            };
            ManifestFacts::parse(Some(&media_type), &bytes).map(Some).map_err(cannot)
        };
        blocking(read).await
    }
}
