//! Tags: one object each, in one list a repository.

use std::time::SystemTime;

use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};

use super::{Metadata, key, to_json};
use crate::StorageError;
use crate::objects::MayReplace;

impl Metadata {
    pub(crate) async fn tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<Descriptor>, StorageError> {
        let key = key::tag(name, tag);
        let Some(object) = self.objects.get(&key).await? else { return Ok(None) };
        serde_json::from_slice(&object).map(Some).map_err(|e| StorageError::new("read", &key, e))
    }

    /// Notes that a tag is about to point at a manifest, for [`delete_manifest`](Self::delete_manifest). Comes before
    /// [`put_tag`](Self::put_tag): without its tag the note does no harm.
    pub(crate) async fn note_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Digest,
    ) -> Result<(), StorageError> {
        self.put_marker(&key::tagged_by(name, manifest, tag)).await
    }

    /// Notes it again if a deletion or a collection of what was there before has taken the note meanwhile.
    pub(crate) async fn require_tag_note(
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
    pub(crate) async fn put_tag(
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

    /// False when there was no such tag.
    pub(crate) async fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        self.delete_tag_as_seen(name, tag, None).await
    }

    /// Deletes a tag, with `seen` only if it was pushed then; false when there was none.
    pub(crate) async fn delete_tag_as_seen(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        seen: Option<SystemTime>,
    ) -> Result<bool, StorageError> {
        let Some(manifest) = self.tag(name, tag).await? else { return Ok(false) };
        let deleted = self.objects.remove_listed(&key::tags(name), tag.as_str(), seen).await?;
        if deleted {
            self.objects.delete(&key::tagged_by(name, &manifest.digest, tag)).await?;
            // Somebody may have pushed it again, and have noted that before.
            if self.tag(name, tag).await?.is_some_and(|found| found.digest == manifest.digest) {
                self.note_tag(name, tag, &manifest.digest).await?;
            }
        }
        Ok(deleted)
    }

    pub(super) async fn remove_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        self.objects.remove_listed(&key::tags(name), tag.as_str(), None).await
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
