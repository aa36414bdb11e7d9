//! [`BucketObjects`]: objects of metadata in a bucket, under their keys.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::Periods;
use super::format::Format;
use super::kept::{Mark, Versions, parse_version};
use super::lists::{is_gone, without_version};
use super::store::{Listed, Store};
use crate::StorageError;
use crate::metadata::is_kept;
use crate::objects::{Entry, MayReplace, ObjectBackend, Seen};

/// Manifests kept in memory; beyond this, all are forgotten.
const CACHED_BYTES: usize = 8 * 1024 * 1024;

/// Objects that are listed to find out whether there is any.
const FIRST: usize = 10;

/// Objects in a bucket.
pub(crate) struct BucketObjects {
    pub(super) store: Arc<Store>,
    pub(super) periods: Periods,
    pub(super) cache: Cache,
    pub(super) format: Format,
}

impl BucketObjects {
    pub(super) fn new(store: Arc<Store>, periods: Periods) -> BucketObjects {
        BucketObjects { store, periods, cache: Cache::default(), format: Format::default() }
    }

    /// As [`ObjectBackend::claim`], with the bytes of an object when they are to be read.
    async fn claim_version(&self, key: &str, is_read: bool) -> Result<Option<Bytes>, StorageError> {
        loop {
            let versions = self.versions(key).await?;
            let Some(version) = versions.youngest() else { return Ok(None) };
            let is_fresh = self.is_fresh(version);
            let bytes = match is_read || (!is_fresh && version.size > 0) {
                true => self.read_version(&version.key).await?,
                false => Some(Bytes::new()),
            };
            // Somebody has put another in its place meanwhile, or has removed it.
            let Some(bytes) = bytes else { continue };
            if is_fresh || self.refresh(key, bytes.clone()).await? {
                return Ok(Some(bytes));
            }
        }
    }
}

#[async_trait]
impl ObjectBackend for BucketObjects {
    async fn require_known_format(&self) -> Result<(), StorageError> {
        self.format.require_known(&self.store).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        self.store.get(key).await
    }

    async fn exists(&self, key: &str) -> Result<bool, StorageError> {
        Ok(self.store.size(key).await?.is_some())
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.store.put(key, bytes).await
    }

    async fn delete(&self, key: &str) -> Result<bool, StorageError> {
        if is_kept(key) {
            return self.delete_versions(key).await;
        }
        let was_there = self.exists(key).await?;
        self.store.delete(key).await?;
        Ok(was_there)
    }

    async fn put_kept(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.put_versioned(key, bytes).await
    }

    async fn get_kept(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        self.claim_version(key, true).await
    }

    async fn claim(&self, key: &str) -> Result<bool, StorageError> {
        Ok(self.claim_version(key, false).await?.is_some())
    }

    async fn get_listed(&self, list: &str, name: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.last_of_row(&format!("{list}/{name}")).await?.map(|found| found.bytes))
    }

    fn peek_listed(&self, list: &str, name: &str) -> Result<Option<Seen>, StorageError> {
        self.store.wait(self.last_of_row(&format!("{list}/{name}")))
    }

    async fn put_listed(
        &self,
        list: &str,
        name: &str,
        bytes: Bytes,
        may_replace: Option<MayReplace>,
    ) -> Result<bool, StorageError> {
        let key = format!("{list}/{name}");
        match may_replace {
            Some(may_replace) => self.put_first(&key, bytes, may_replace).await,
            None => self.put_in_row(&key, bytes).await.map(|()| true),
        }
    }

    async fn remove_listed(&self, list: &str, name: &str, seen: &Seen) -> Result<bool, StorageError> {
        self.remove_row(&format!("{list}/{name}"), seen).await
    }

    async fn page(&self, list: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        self.page_of_names(list, after, limit).await
    }

    /// An object that is only announced counts. What everybody has heard of by now is forgotten.
    fn walk(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StorageError> {
        let mut kept: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        let mut others: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for listed in self.store.wait(self.store.list(&format!("{prefix}/")))? {
            match parse_version(&listed.key).map(|(key, _)| key.to_string()) {
                Some(key) => kept.entry(key).or_default().push(listed),
                None => others.entry(without_version(&listed.key).to_string()).or_default().push(listed),
            }
        }
        for (key, row) in others {
            // Of several versions the last is what is there.
            match row.last().filter(|last| !is_gone(&last.key)).map(|last| last.put) {
                Some(touched) => each(Entry { key, touched }),
                None => self.store.wait(self.forget_removal(&key, row))?,
            }
        }
        for (key, listed) in kept {
            let versions = self.store.wait(self.tidy(Versions::of(listed)))?;
            if let Some(touched) = versions.touched() {
                each(Entry { key, touched });
            }
        }
        Ok(())
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let prefix = format!("{prefix}/");
        let listed = self.store.wait(self.store.list(&prefix))?;
        let names = listed.iter().filter_map(|listed| listed.key.strip_prefix(&prefix));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_string).collect())
    }

    fn page_of_owners(
        &self,
        prefix: &str,
        leaf: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        self.store.wait(self.page_of_names_with(leaf, prefix, after, limit))
    }

    fn has_any(&self, prefix: &str) -> Result<bool, StorageError> {
        let prefix = format!("{prefix}/");
        let is_there = |listed: &Listed| !matches!(parse_version(&listed.key), Some((_, Mark::Gone(_))));
        // Mostly there is nothing, or something among the first.
        let first = self.store.wait(self.store.list_some(&prefix, None, FIRST))?;
        match first.iter().any(is_there) || first.len() < FIRST {
            true => Ok(first.iter().any(is_there)),
            false => Ok(self.store.wait(self.store.list(&prefix))?.iter().any(is_there)),
        }
    }

    fn touched_at(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        if !is_kept(key) {
            return Ok(self.store.wait(self.store.look(key))?.map(|found| found.put));
        }
        let versions = self.store.wait(self.versions(key))?;
        Ok(versions.touched())
    }

    fn peek(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        self.store.wait(async {
            if !is_kept(key) {
                return self.store.get(key).await;
            }
            let mut is_announced = false;
            loop {
                let versions = self.versions(key).await?;
                match versions.youngest() {
                    // Somebody may put a younger one, and delete this one, right now.
                    Some(version) => match self.store.get(&version.key).await? {
                        Some(bytes) => return Ok(Some(bytes)),
                        None => continue,
                    },
                    // It may be there although a list that was made meanwhile misses it; or who announced it has died.
                    None if !versions.announced.is_empty() && !is_announced => is_announced = true,
                    None => return Ok(None),
                }
            }
        })
    }

    fn remove_if_stale(
        &self,
        key: &str,
        cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let versions = self.store.wait(self.versions(key))?;
        if versions.touched().is_none_or(|touched| touched > cutoff) || is_wanted()? {
            return Ok(false);
        }
        self.store.wait(self.delete_stale_versions(versions, cutoff))
    }

    fn set_aside(&self, key: &str, target: &str) -> Result<(), StorageError> {
        let Some(bytes) = self.peek(key)? else { return Ok(()) };
        self.store.wait(async {
            self.store.put(target, bytes).await?;
            self.delete_versions(key).await.map(|_| ())
        })
    }

    fn now(&self) -> Result<SystemTime, StorageError> {
        self.store.wait(self.store.read_clock())
    }
}

/// Bytes under keys whose objects never change.
#[derive(Default)]
pub(super) struct Cache(Mutex<(usize, HashMap<String, Bytes>)>);

impl Cache {
    pub(super) fn get(&self, key: &str) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.get(key).cloned()
    }

    pub(super) fn put(&self, key: &str, bytes: Bytes) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = key.len() + bytes.len();
        if cache.0 + size > CACHED_BYTES {
            *cache = (0, HashMap::new());
        }
        if size <= CACHED_BYTES && cache.1.insert(key.to_string(), bytes).is_none() {
            cache.0 += size;
        }
    }
}
