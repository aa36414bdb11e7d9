//! [`Deletion`]: a manifest that is taken away with all that leads to it, while others push. How it meets a push is told
//! in `publication.rs`.
//!
//! The manifest goes first, to where nobody looks for it. If an immutable tag turns out to lead to it then, since somebody
//! has pushed that meanwhile, the manifest comes back, and nothing else has been touched. Else its tags go, and then what
//! was put aside. Of who dies in between, a collection ends the deletion, or takes it back for an immutable tag.
//!
//! Each deletion puts the manifest aside under a name of its own, so that none takes it from another.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cfc_oci::{Digest, RepositoryName, Tag};
use uuid::Uuid;

use super::{IsImmutable, Metadata, SeenTag, join_manifest, key, split_manifest};
use crate::StorageError;
use crate::error::Chain;
use crate::files::blocking;
use crate::manifest::ManifestFacts;
use crate::objects::Entry;

/// What came of deleting a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    Done,
    NotThere,
    /// This tag keeps pointing at it.
    Kept(Tag),
    /// This immutable tag leads to it through an index.
    Needed(Tag),
}

impl Metadata {
    /// Removes a manifest and all that leads to it, or nothing. The repository leaves the catalog with its last manifest.
    /// `is_immutable` is `None` where no tag can be.
    pub(crate) async fn delete_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_immutable: Option<IsImmutable<'_>>,
    ) -> Result<Deletion, StorageError> {
        let can_be_needed = is_immutable.is_some();
        let is_immutable = is_immutable.unwrap_or(&|_| false);
        let found = self.manifest(name, digest).await?;
        let before = self.tags_at(name, digest).await?;
        if let Some((tag, _)) = before.iter().find(|(tag, _)| is_immutable(tag)) {
            return Ok(Deletion::Kept(tag.clone()));
        }
        let Some(found) = found else {
            self.settle_tags(name, digest, is_immutable).await?;
            self.forget_manifest(name, digest, None, is_immutable).await?;
            return Ok(Deletion::NotThere);
        };
        if can_be_needed && let Some(tag) = self.needed_by(name, digest, is_immutable).await? {
            return Ok(Deletion::Needed(tag));
        }
        let aside = key::aside(name, digest, Uuid::new_v4());
        self.objects.put(&aside, join_manifest(&found.0, &found.1)).await?;
        let was_there = self.objects.delete(&key::manifest(name, digest)).await?;
        let kept = match self.immutable_tag_at(name, digest, is_immutable).await? {
            Some(tag) => Some(Deletion::Kept(tag)),
            None if can_be_needed => self.needed_by(name, digest, is_immutable).await?.map(Deletion::Needed),
            None => None,
        };
        match &kept {
            Some(Deletion::Kept(tag)) => self.put_back(name, digest, &found, std::slice::from_ref(tag)).await?,
            Some(_) => self.put_back(name, digest, &found, &[]).await?,
            None => {
                self.take_away_tags(name, digest, before, is_immutable).await?;
                self.forget_manifest(name, digest, subject(&found).as_ref(), is_immutable).await?;
            }
        }
        self.objects.delete(&aside).await?;
        Ok(match kept {
            Some(kept) => kept,
            None if was_there => Deletion::Done,
            None => Deletion::NotThere,
        })
    }

    /// An immutable tag that points at a manifest, by the notes of its tags.
    async fn immutable_tag_at(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<Option<Tag>, StorageError> {
        for tag in self.tags_noted(name, digest).await? {
            if is_immutable(&tag) && self.points_at(name, &tag, digest).await? {
                return Ok(Some(tag));
            }
        }
        Ok(None)
    }

    /// Removes the tags that point at a manifest which has just been taken away: as they were seen `before`, and those that
    /// a push has put which found the manifest before that.
    async fn take_away_tags(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        before: Vec<(Tag, SeenTag)>,
        is_immutable: IsImmutable<'_>,
    ) -> Result<(), StorageError> {
        for (tag, seen) in &before {
            self.remove_tag_as_seen(name, tag, seen).await?;
        }
        self.settle_tags(name, digest, is_immutable).await
    }

    /// The tags that point at a manifest, by their notes.
    async fn tags_at(&self, name: &RepositoryName, digest: &Digest) -> Result<Vec<(Tag, SeenTag)>, StorageError> {
        let mut tags = Vec::new();
        for tag in self.tags_noted(name, digest).await? {
            let seen = self.seen_tag(name, &tag).await?.filter(|seen| seen.manifest == *digest);
            tags.extend(seen.map(|seen| (tag, seen)));
        }
        Ok(tags)
    }

    async fn settle_tags(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_immutable: IsImmutable<'_>,
    ) -> Result<(), StorageError> {
        for tag in self.tags_noted(name, digest).await? {
            self.settle_tag(name, &tag, digest, is_immutable).await?;
        }
        Ok(())
    }

    /// Undoes a deletion, for `tags` that must not go.
    async fn put_back(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        (media_type, bytes): &(String, Bytes),
        tags: &[Tag],
    ) -> Result<(), StorageError> {
        self.put_manifest(name, digest, media_type, bytes).await?;
        self.note_again(name, digest, tags).await
    }

    /// Takes back deletions of those who have died, where an immutable tag leads to the manifest. Of others, what was put
    /// aside goes after `grace`.
    pub(crate) async fn end_deletions(
        &self,
        grace: Duration,
        is_immutable: &(dyn Fn(&RepositoryName, &Tag) -> bool + Send + Sync),
    ) -> Result<(), StorageError> {
        let (aside, now) = self.list_aside().await?;
        for Entry { key, touched } in aside {
            let Some((name, digest)) = key::parse_aside(&key) else { continue };
            let is_immutable = |tag: &Tag| is_immutable(&name, tag);
            let pointing = self.immutable_tag_at(&name, &digest, &is_immutable).await?;
            let kept = match &pointing {
                Some(tag) => Some(tag.clone()),
                None => match self.needed_by(&name, &digest, &is_immutable).await {
                    Ok(needed_by) => needed_by,
                    Err(error) => {
                        tracing::error!(repository = %name, %digest, error = %Chain(&error), "a deletion that was not ended is left as it is");
                        continue;
                    }
                },
            };
            if let Some(tag) = &kept
                && !self.claim_manifest(&name, &digest).await?
                && let Some(object) = self.objects.get(&key).await?
            {
                tracing::warn!(repository = %name, %digest, %tag, "a deletion that was not ended is taken back");
                self.put_back(&name, &digest, &split_manifest(&key, object)?, pointing.as_slice()).await?;
            }
            let is_over = now.duration_since(touched).is_ok_and(|age| age >= grace);
            if kept.is_some() || is_over {
                self.objects.delete(&key).await?;
            }
        }
        Ok(())
    }

    /// What is aside, and what time it is there; mostly nothing, and then nobody needs to know.
    async fn list_aside(&self) -> Result<(Vec<Entry>, SystemTime), StorageError> {
        let objects = self.objects.clone();
        blocking(move || {
            let mut found = Vec::new();
            objects.walk(key::DELETING, &mut |entry| found.push(entry))?;
            let now = if found.is_empty() { SystemTime::UNIX_EPOCH } else { objects.now()? };
            Ok((found, now))
        })
        .await
    }

    /// Whether somebody is deleting a manifest, or has died doing so. Blocks.
    pub(crate) fn is_being_deleted(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.objects.has_any(&key::all_aside(name, digest))
    }
}

/// The manifest that one is about.
fn subject((media_type, bytes): &(String, Bytes)) -> Option<Digest> {
    ManifestFacts::parse(Some(media_type), bytes).ok()?.subject
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cfc_oci::Descriptor;

    use super::*;
    use crate::local::DirectoryObjects;
    use crate::metadata::{Publication, to_json};

    /// A push of `v1` that is so far that its tag can be found, between a deletion's first look and what follows.
    fn point_v1_at(root: &Path, digest: &Digest) {
        let repository = root.join("registry/repositories/a");
        let note = repository.join(format!("_tagged/sha256/{}/v1", digest.hex()));
        std::fs::create_dir_all(note.parent().expect("a directory")).expect("creates");
        std::fs::write(note, "").expect("writes");
        let descriptor = Descriptor::new("application/json", digest.clone(), 2);
        std::fs::write(repository.join("_tags/v1"), to_json(&descriptor)).expect("writes");
    }

    #[tokio::test]
    async fn a_deletion_that_an_immutable_tag_refuses_late_leaves_everything_in_a_directory() {
        for is_noted_before in [false, true] {
            let directory = tempfile::TempDir::new().expect("temporary directory");
            let root = directory.path();
            let objects = DirectoryObjects::open(root, &root.join("temporary"), Duration::ZERO).expect("opens");
            let metadata = Metadata::new(Arc::new(objects));
            let name: RepositoryName = "a".parse().expect("a name");
            let [z, v1] = ["z", "v1"].map(|tag| tag.parse::<Tag>().expect("a tag"));
            let config = Descriptor::new(cfc_oci::media_type::CONFIG, Digest::of(b"{}"), 2);
            let config = String::from_utf8(to_json(&config).to_vec()).expect("JSON");
            let json = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
            let digest = Digest::of(json.as_bytes());
            let media_type = Some(cfc_oci::media_type::MANIFEST);
            let facts = ManifestFacts::parse(media_type, json.as_bytes()).expect("a manifest");
            let tags = [z.clone()];
            let publication = Publication { facts: &facts, digest: &digest, bytes: json.as_bytes(), tags: &tags };
            assert_eq!(metadata.publish(&name, publication, &|_| false).await.expect("stores"), None);
            if is_noted_before {
                metadata.note_tag(&name, &v1, &digest).await.expect("stores");
            }
            // Asked for `z` by the first look at what points there, then by that at what needs it, which has listed all.
            let asked = AtomicUsize::new(0);
            let is_immutable = |tag: &Tag| {
                if *tag == z && asked.fetch_add(1, Ordering::Relaxed) > 0 {
                    point_v1_at(root, &digest);
                }
                *tag == v1
            };
            let deletion = metadata.delete_manifest(&name, &digest, Some(&is_immutable)).await.expect("stores");
            assert_eq!(deletion, Deletion::Kept(v1.clone()));
            for tag in [&z, &v1] {
                let found = metadata.tag(&name, tag).await.expect("reads");
                assert_eq!(found.map(|found| found.digest), Some(digest.clone()), "{tag}");
            }
            assert!(metadata.manifest(&name, &digest).await.expect("reads").is_some());
            assert!(!metadata.is_being_deleted(&name, &digest).expect("reads"));
        }
    }
}
