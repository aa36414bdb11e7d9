//! What garbage collection, verification and accounting need: everything there is, and how it is removed when nobody
//! needs it. All of it blocks.

use std::collections::HashSet;
use std::time::SystemTime;

use bytes::Bytes;
use cfc_oci::{Digest, RepositoryName, Tag};

use super::{IsImmutable, Metadata, key, split_manifest};
use crate::StorageError;
use crate::manifest::ManifestFacts;

/// An object found on a walk.
pub(crate) enum Found {
    /// A manifest.
    Manifest(RepositoryName, Digest),
    /// A tag.
    Tag(RepositoryName, Tag),
    /// A note that a tag points, or once pointed, at a manifest.
    Note(RepositoryName, Digest, Tag),
    /// The first manifest is listed as a referrer of the second.
    Referrer(RepositoryName, Digest, Digest),
}

impl Metadata {
    /// Every manifest and tag of every repository, and what is noted of them, in no order.
    pub(crate) fn walk_repositories(&self) -> Result<Vec<Found>, StorageError> {
        let mut found = Vec::new();
        self.objects.walk(key::REPOSITORIES, &mut |entry| {
            if let Some((name, digest)) = key::parse_manifest(&entry.key) {
                found.push(Found::Manifest(name, digest));
            } else if let Some((name, tag)) = key::parse_tag(&entry.key) {
                found.push(Found::Tag(name, tag));
            } else if let Some((name, digest, tag)) = key::parse_note(&entry.key) {
                found.push(Found::Note(name, digest, tag));
            } else if let Some((name, subject, digest)) = key::parse_referrer(&entry.key) {
                found.push(Found::Referrer(name, digest, subject));
            }
        })?;
        Ok(found)
    }

    /// The repositories that are in the catalog.
    pub(crate) fn walk_catalog(&self) -> Result<HashSet<RepositoryName>, StorageError> {
        let mut names = HashSet::new();
        self.objects.walk(key::CATALOG, &mut |entry| {
            names.extend(key::parse_repository(&entry.key));
        })?;
        Ok(names)
    }

    /// Which repositories hold which blobs, and when somebody last pushed, mounted or looked for each, as far as that
    /// keeps it; in no order.
    pub(crate) fn walk_links(&self) -> Result<Vec<(RepositoryName, Digest, SystemTime)>, StorageError> {
        let mut links = Vec::new();
        self.objects.walk(key::LINKS, &mut |entry| {
            links.extend(key::parse_link(&entry.key).map(|(name, digest)| (name, digest, entry.touched)));
        })?;
        Ok(links)
    }

    /// What time it is where objects are given theirs.
    pub(crate) fn now(&self) -> Result<SystemTime, StorageError> {
        self.objects.now()
    }

    /// Media type and bytes of a manifest, without keeping it from anything.
    pub(crate) fn peek_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<(String, Bytes)>, StorageError> {
        let key = key::manifest(name, digest);
        match self.objects.peek(&key)? {
            Some(bytes) => split_manifest(&key, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// When somebody last pushed, pulled or looked for a manifest, as far as that keeps it.
    pub(crate) fn manifest_touched(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<SystemTime>, StorageError> {
        self.objects.touched_at(&key::manifest(name, digest))
    }

    /// Whether any repository holds the blob.
    pub(crate) fn is_linked(&self, digest: &Digest) -> Result<bool, StorageError> {
        self.objects.has_any(&key::links(digest))
    }

    pub(crate) fn has_link(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        Ok(self.objects.touched_at(&key::link(name, digest))?.is_some())
    }

    /// Unlinks a blob that was not touched since `cutoff` unless `is_wanted`.
    pub(crate) fn unlink_if_stale(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        cutoff: SystemTime,
        is_wanted: impl Fn() -> bool,
    ) -> Result<bool, StorageError> {
        self.objects.remove_if_stale(&key::link(name, digest), cutoff, &|| Ok(is_wanted()))
    }

    /// Removes a manifest that was not touched since `cutoff` unless `is_wanted`, or a tag points at it.
    pub(crate) fn remove_manifest_if_stale(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        cutoff: SystemTime,
        is_wanted: impl Fn() -> bool,
    ) -> Result<bool, StorageError> {
        self.objects
            .remove_if_stale(&key::manifest(name, digest), cutoff, &|| Ok(is_wanted() || self.is_tagged(name, digest)?))
    }

    /// Whether a tag points at the manifest.
    pub(crate) fn is_tagged(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        for tag in self.objects.names(&key::tagged(name, digest))? {
            let Ok(tag) = tag.parse() else { continue };
            if self.peek_tag(name, &tag)?.is_some_and(|found| found.manifest == *digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes a manifest away, to where a person can look at it.
    pub(crate) fn quarantine_manifest(&self, name: &RepositoryName, digest: &Digest) -> Result<(), StorageError> {
        self.objects.set_aside(&key::manifest(name, digest), &key::quarantined(name, digest))
    }

    /// Removes what was noted about a manifest that is gone.
    pub(crate) async fn forget_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        subject: Option<&Digest>,
        is_immutable: IsImmutable<'_>,
    ) -> Result<(), StorageError> {
        let (objects, key) = (self.objects.clone(), key::manifest(name, digest));
        if crate::files::blocking(move || objects.touched_at(&key)).await?.is_some() {
            return Ok(());
        }
        if let Some(subject) = subject {
            self.delete_referrer(name, subject, digest).await?;
        }
        let tags = self.tags_noted(name, digest).await?;
        for tag in &tags {
            self.forget_note(name, tag, digest, is_immutable).await?;
        }
        self.note_again(name, digest, &tags).await?;
        self.unlist_if_empty(name).await
    }

    /// Notes again what was noted about a manifest, if it is there: it may have been pushed while that was removed. A push
    /// stores the manifest before it notes of whom that is a referrer, and looks for its notes of tags after it.
    pub(crate) async fn note_again(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        tags: &[Tag],
    ) -> Result<(), StorageError> {
        let Some((media_type, bytes)) = self.manifest(name, digest).await? else { return Ok(()) };
        for tag in tags {
            self.note_tag(name, tag, digest).await?;
        }
        match ManifestFacts::parse(Some(&media_type), &bytes) {
            Ok(facts) => match &facts.subject {
                Some(subject) => {
                    self.put_referrer(name, subject, &facts.referrer(digest.clone(), bytes.len() as u64)).await
                }
                None => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }
}
