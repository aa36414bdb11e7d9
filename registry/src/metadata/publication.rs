//! [`Publication`]: a manifest with all that leads to it, as a push puts it and a deletion takes it away, beside each
//! other.
//!
//! A push puts the manifest, then what leads to it, and then looks whether the manifest is still there; if not, it does all
//! of that again. A deletion takes the manifest away, then looks what leads there, and takes that away, each as it was
//! seen before the manifest was found missing. Of the two, one sees the other: if the push finds its manifest, that is
//! deleted later, and the deletion finds all that the push has put. And no deletion takes away what a push has put after
//! the manifest was there again, since that has a version that the deletion has not seen.
//!
//! Tags are found by notes of them below the manifest. Who deletes a note looks afterwards whether the tag points there
//! again, and then notes it again, so nobody misses a note for longer than somebody is about to do the same.

use std::collections::BTreeSet;

use bytes::Bytes;
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

/// What came of deleting a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    Done,
    NotThere,
    /// This tag keeps pointing at it.
    Kept(Tag),
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

    /// Removes a manifest and all that leads to it. The repository leaves the catalog with its last manifest.
    pub(crate) async fn delete_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Deletion, StorageError> {
        let found = self.manifest(name, digest).await?;
        let mut tags: BTreeSet<Tag> = self.tags_noted(name, digest).await?.into_iter().collect();
        for tag in tags.iter().filter(|tag| is_immutable(tag)) {
            if self.points_at(name, tag, digest).await? {
                return Ok(Deletion::Kept(tag.clone()));
            }
        }
        // What leads there goes first, so that a crash leaves nothing that leads nowhere.
        for tag in &tags {
            self.delete_tag_of(name, tag, digest).await?;
        }
        let subject = found.as_ref().and_then(subject);
        if let Some(subject) = &subject {
            self.delete_referrer(name, subject, digest).await?;
        }
        let was_there = self.objects.delete(&key::manifest(name, digest)).await?;
        // A push may have found the manifest before that, and have pointed tags at it since these were listed.
        tags.extend(self.tags_noted(name, digest).await?);
        for tag in &tags {
            match &found {
                Some(found) if is_immutable(tag) && self.leads_nowhere(name, tag, digest).await? => {
                    self.put_back(name, digest, found, tag).await?;
                    return Ok(Deletion::Kept(tag.clone()));
                }
                _ => self.settle_tag(name, tag, digest, is_immutable).await?,
            }
        }
        self.forget_manifest(name, digest, subject.as_ref(), is_immutable).await?;
        Ok(if was_there { Deletion::Done } else { Deletion::NotThere })
    }

    /// Undoes a deletion for a tag that was put meanwhile and must not go.
    async fn put_back(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        (media_type, bytes): &(String, Bytes),
        tag: &Tag,
    ) -> Result<(), StorageError> {
        self.put_manifest(name, digest, media_type, bytes).await?;
        self.note_again(name, digest, std::slice::from_ref(tag)).await
    }

    async fn points_at(&self, name: &RepositoryName, tag: &Tag, manifest: &Digest) -> Result<bool, StorageError> {
        Ok(self.tag(name, tag).await?.is_some_and(|found| found.digest == *manifest))
    }

    /// Whether a tag points at a manifest that is not there.
    async fn leads_nowhere(&self, name: &RepositoryName, tag: &Tag, manifest: &Digest) -> Result<bool, StorageError> {
        Ok(self.points_at(name, tag, manifest).await? && !self.claim_manifest(name, manifest).await?)
    }

    /// Deletes a tag that points at a manifest which is not there, unless it is immutable: then who deletes the manifest
    /// sees to it.
    async fn settle_tag(
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

/// The manifest that one is about.
fn subject((media_type, bytes): &(String, Bytes)) -> Option<Digest> {
    ManifestFacts::parse(Some(media_type), bytes).ok()?.subject
}
