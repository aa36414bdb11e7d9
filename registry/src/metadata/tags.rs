//! Tags: one object each, and their names in order in memory, so that a page of a list costs what the page is long.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};

use super::{Metadata, key, to_json};
use crate::StorageError;
use crate::files::{Staged, blocking};

/// Names kept in memory; beyond this, all are forgotten and read again when somebody asks. About 100 bytes each.
const MAX_NAMES: usize = 1_000_000;

/// The tags of repositories that somebody has listed, as they are on disk. This process is the only one that changes
/// them.
#[derive(Default)]
pub(super) struct TagNames(Mutex<HashMap<RepositoryName, Arc<Names>>>);

/// The tags of one repository; `None` until somebody asks for them. Whoever gives a file its name, or takes it, holds
/// the lock and changes both.
#[derive(Default)]
struct Names(Mutex<Option<BTreeSet<String>>>);

impl TagNames {
    fn of(&self, name: &RepositoryName) -> Arc<Names> {
        let mut repositories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        repositories.entry(name.clone()).or_default().clone()
    }

    /// Keeps the memory bounded: forgets a repository without tags, whose name anybody may have made up, and all of
    /// them when they are too many. One that somebody is changing right now is left alone.
    fn shrink(&self, listed: &RepositoryName) {
        let mut repositories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unused = |names: &Arc<Names>| Arc::strong_count(names) == 1;
        let count = |names: &Arc<Names>| names.lock().as_ref().map_or(0, BTreeSet::len);
        if repositories.get(listed).is_some_and(|names| is_unused(names) && count(names) == 0) {
            repositories.remove(listed);
        }
        let total: usize = repositories.values().filter(|names| is_unused(names)).map(count).sum();
        if total > MAX_NAMES {
            repositories.retain(|_, names| !is_unused(names));
        }
    }
}

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        self.objects.put_marker(&key::tagged_by(name, manifest, tag)).await
    }

    /// Points a tag at a manifest. With `is_immutable` this fails, and gives false, when it points at another one.
    pub(crate) async fn put_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Descriptor,
        is_immutable: bool,
    ) -> Result<bool, StorageError> {
        let names = self.tag_names.of(name);
        let (text, digest) = (tag.to_string(), manifest.digest.clone());
        let publish = move |staged: Staged, path: &Path| {
            let mut names = names.lock();
            if is_immutable && points_elsewhere(path, &digest)? {
                return Ok(None);
            }
            let unsynced = staged.publish(path)?;
            if let Some(names) = names.as_mut() {
                names.insert(text);
            }
            Ok(Some(unsynced))
        };
        self.objects.put_by(&key::tag(name, tag), to_json(manifest), publish).await
    }

    /// False when there was no such tag.
    pub(crate) async fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        let Some(manifest) = self.tag(name, tag).await? else { return Ok(false) };
        let deleted = self.remove_tag(name, tag).await?;
        self.objects.delete(&key::tagged_by(name, &manifest.digest, tag)).await?;
        Ok(deleted)
    }

    pub(super) async fn remove_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        let names = self.tag_names.of(name);
        let (path, text) = (self.objects.path(&key::tag(name, tag)), tag.to_string());
        blocking(move || {
            let mut names = names.lock();
            let removed = crate::files::remove_wherever(&path)?;
            if let Some(names) = names.as_mut() {
                names.remove(&text);
            }
            Ok(removed)
        })
        .await
    }

    /// At most `limit` tags after `after`, sorted bytewise.
    pub(crate) async fn tags(
        &self,
        name: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        let names = self.tag_names.of(name);
        if let Ok(known) = names.0.try_lock()
            && let Some(known) = known.as_ref()
        {
            return Ok(page(known, after, limit));
        }
        let (objects, prefix, after) = (self.objects.clone(), key::tags(name), after.map(str::to_string));
        let listed = blocking(move || {
            let mut names = names.lock();
            if names.is_none() {
                *names = Some(objects.names(&prefix)?.into_iter().collect());
            }
            Ok(names.as_ref().map(|names| page(names, after.as_deref(), limit)).unwrap_or_default())
        });
        let listed = listed.await;
        self.tag_names.shrink(name);
        listed
    }
}

/// Whether there is a tag at `path` that points at another manifest.
fn points_elsewhere(path: &Path, digest: &Digest) -> Result<bool, StorageError> {
    let error = |e: std::io::Error| StorageError::new("read", path.display(), e);
    match std::fs::read(path) {
        Ok(bytes) => {
            let found: Descriptor = serde_json::from_slice(&bytes).map_err(|e| error(e.into()))?;
            Ok(found.digest != *digest)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(error(e)),
    }
}

fn page(names: &BTreeSet<String>, after: Option<&str>, limit: usize) -> Vec<String> {
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    names.range::<str, _>((start, Bound::Unbounded)).take(limit).cloned().collect()
}
