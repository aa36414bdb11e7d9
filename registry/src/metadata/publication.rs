//! [`Publication`]: a manifest with all that leads to it, as a push puts it; and how that meets a deletion.
//!
//! A push puts the manifest, then what leads to it, and then looks whether the manifest is still there; if not, it does all
//! of that again. A deletion takes the manifest away, then looks what leads there, and takes that away, each as it was
//! seen before the manifest was found missing (`deletion.rs`). Of the two, one sees the other: if the push finds its
//! manifest, that is deleted later, and the deletion finds all that the push has put. And no deletion takes away what a
//! push has put after the manifest was there again, since that has a version that the deletion has not seen.
//!
//! Tags are found by notes of them below the manifest. Who deletes a note looks afterwards whether the tag points there
//! again, and then notes it again, so nobody misses a note for longer than somebody is about to do the same.

use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};

use super::{Metadata, key};
use crate::StorageError;
use crate::manifest::ManifestFacts;

/// Says whether a tag keeps pointing where it points.
pub(crate) type IsImmutable<'a> = &'a (dyn Fn(&Tag) -> bool + Send + Sync);

/// A manifest that is pushed, and what is to lead to it.
#[derive(Clone, Copy)]
pub(crate) struct Publication<'a> {
    pub facts: &'a ManifestFacts,
    pub digest: &'a Digest,
    pub bytes: &'a [u8],
    pub tags: &'a [Tag],
}

impl Metadata {
    /// Stores a manifest, then makes it findable. A crash in between leaves a manifest that nobody was told of, never a
    /// name without a manifest. Gives a tag that points elsewhere and must not be changed, if there is one.
    pub(crate) async fn publish(
        &self,
        name: &RepositoryName,
        publication: Publication<'_>,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Option<Tag>, StorageError> {
        let Publication { facts, digest, tags, .. } = publication;
        loop {
            if let Some(refused) = self.publish_once(name, publication, is_immutable).await? {
                return Ok(Some(refused));
            }
            let is_named = !tags.is_empty() || facts.subject.is_some();
            if !is_named || self.claim_manifest(name, digest).await? {
                return Ok(None);
            }
        }
    }

    async fn publish_once(
        &self,
        name: &RepositoryName,
        publication: Publication<'_>,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Option<Tag>, StorageError> {
        let Publication { facts, digest, bytes, tags } = publication;
        // Each of these waits for the disk; what may come in any order waits together.
        let manifest = self.put_manifest(name, digest, &facts.media_type, bytes);
        let notes = futures::future::try_join_all(tags.iter().map(|tag| self.note_tag(name, tag, digest)));
        futures::try_join!(manifest, notes)?;
        let size = bytes.len() as u64;
        if let Some(subject) = &facts.subject {
            self.put_referrer(name, subject, &facts.referrer(digest.clone(), size)).await?;
        }
        let descriptor = Descriptor::new(&facts.media_type, digest.clone(), size);
        let descriptor = &descriptor;
        let put = tags.iter().map(|tag| async move {
            match self.put_tag(name, tag, descriptor, is_immutable(tag)).await? {
                true => self.require_tag_note(name, tag, digest).await.map(|()| None),
                false => Ok::<_, StorageError>(Some(tag.clone())),
            }
        });
        Ok(futures::future::try_join_all(put).await?.into_iter().flatten().next())
    }

    pub(super) async fn points_at(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
    ) -> Result<bool, StorageError> {
        Ok(self.tag(name, tag).await?.is_some_and(|found| found.digest == *manifest))
    }

    /// Deletes a tag that points at a manifest which is not there, unless it is immutable: then who deletes the manifest
    /// sees to it.
    pub(super) async fn settle_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<(), StorageError> {
        if is_immutable(tag) {
            return Ok(());
        }
        // In this order: a push puts the tag after the manifest, so what was seen before is from before.
        while let Some(seen) = self.seen_tag(name, tag).await?.filter(|seen| seen.manifest == *manifest) {
            if self.claim_manifest(name, manifest).await? || self.remove_tag_as_seen(name, tag, &seen).await? {
                break;
            }
        }
        Ok(())
    }

    /// Deletes the note that a tag points at a manifest, where it does not any more.
    pub(super) async fn forget_note(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<(), StorageError> {
        self.objects.delete(&key::tagged_by(name, manifest, tag)).await?;
        if !self.points_at(name, tag, manifest).await? {
            return Ok(());
        }
        // Who pushed it again had noted that before. Who deletes the manifest may have missed the note.
        self.note_tag(name, tag, manifest).await?;
        self.settle_tag(name, tag, manifest, is_immutable).await
    }
}
