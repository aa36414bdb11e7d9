//! Tags: one object each, in one list a repository.

use std::time::SystemTime;

use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};

use super::{Metadata, key, to_json};
use crate::StorageError;
use crate::objects::{MayReplace, Seen};

/// A tag as somebody has found it.
pub(crate) struct SeenTag {
    /// What it points at.
    pub manifest: Digest,
    seen: Seen,
}

impl SeenTag {
    /// When it was pushed.
    pub(crate) fn pushed(&self) -> SystemTime {
        self.seen.put
    }
}

impl Metadata {
    pub(crate) async fn tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<Descriptor>, StorageError> {
        let object = self.objects.get_listed(&key::tags(name), tag.as_str()).await?;
        object.map(|object| parse(name, tag, &object)).transpose()
    }

    /// Notes that a tag is about to point at a manifest, for [`delete_manifest`](Self::delete_manifest). Comes before
    /// [`put_tag`](Self::put_tag): without its tag the note does no harm.
    pub(super) async fn note_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
    ) -> Result<(), StorageError> {
        self.put_marker(&key::tagged_by(name, manifest, tag)).await
    }

    /// Notes it again if a deletion or a collection of what was there before has taken the note meanwhile.
    pub(super) async fn require_tag_note(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
    ) -> Result<(), StorageError> {
        match self.objects.exists(&key::tagged_by(name, manifest, tag)).await? {
            true => Ok(()),
            false => self.note_tag(name, tag, manifest).await,
        }
    }

    /// Points a tag at a manifest. With `is_immutable` this fails, and gives false, when it points at another one.
    pub(super) async fn put_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Descriptor,
        is_immutable: bool,
    ) -> Result<bool, StorageError> {
        let digest = manifest.digest.clone();
        let points_here =
            move |bytes: &[u8]| serde_json::from_slice::<Descriptor>(bytes).is_ok_and(|found| found.digest == digest);
        let may_replace = is_immutable.then_some(Box::new(points_here) as MayReplace);
        self.objects.put_listed(&key::tags(name), tag.as_str(), to_json(manifest), may_replace).await
    }

    /// A tag as it can be deleted. Blocks.
    pub(crate) fn peek_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<SeenTag>, StorageError> {
        let Some(seen) = self.objects.peek_listed(&key::tags(name), tag.as_str())? else { return Ok(None) };
        Ok(Some(SeenTag { manifest: parse(name, tag, &seen.bytes)?.digest, seen }))
    }

    /// As [`peek_tag`](Self::peek_tag), off the async threads.
    pub(super) async fn seen_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<SeenTag>, StorageError> {
        let (metadata, name, tag) = (self.clone(), name.clone(), tag.clone());
        crate::files::blocking(move || metadata.peek_tag(&name, &tag)).await
    }

    /// Deletes a tag, wherever it points; false when there was none.
    pub(crate) async fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        loop {
            let Some(seen) = self.seen_tag(name, tag).await? else { return Ok(false) };
            // One that was pushed in between is deleted, too: the client asks for that.
            if self.delete_tag_as_seen(name, tag, &seen).await? {
                return Ok(true);
            }
        }
    }

    /// Deletes a tag unless it was pushed since it was seen; false then, and when somebody else has deleted it.
    pub(crate) async fn delete_tag_as_seen(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        seen: &SeenTag,
    ) -> Result<bool, StorageError> {
        let removed = self.remove_tag_as_seen(name, tag, seen).await?;
        if removed {
            // Tags that are deleted are none that stay.
            self.forget_note(name, tag, &seen.manifest, &|_| false).await?;
        }
        Ok(removed)
    }

    /// As [`delete_tag_as_seen`](Self::delete_tag_as_seen), with its note left.
    pub(super) async fn remove_tag_as_seen(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        seen: &SeenTag,
    ) -> Result<bool, StorageError> {
        self.objects.remove_listed(&key::tags(name), tag.as_str(), &seen.seen).await
    }

    /// At most `limit` tags after `after`, sorted bytewise.
    pub(crate) async fn tags(
        &self,
        name: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        self.objects.page(&key::tags(name), after, limit).await
    }
}

fn parse(name: &RepositoryName, tag: &Tag, object: &[u8]) -> Result<Descriptor, StorageError> {
    serde_json::from_slice(object).map_err(|e| StorageError::new("read", format!("{}/{tag}", key::tags(name)), e))
}
