//! Kept objects in a bucket: what goes when nobody needs it, though several processes rely on it and several collect.
//!
//! A kept object is a set of versions, each under a name of its own that is never used again. The object is there when
//! any version is. To make it young is to put another version; to remove it is to delete the versions that one has seen.
//! So what was put after somebody looked can never be hit by what he removes.
//!
//! Whoever makes an old object young says so first, then looks whether it is still there, and puts the version only
//! then. A collection deletes the versions first and looks then whether anybody said so, before it removes what depends
//! on the object. Of the two, one sees the other.

use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

use super::objects::BucketObjects;
use super::store::Listed;
use crate::StorageError;

const MARK: char = '!';
const NEW: &str = "new-";

/// The versions of one kept object.
#[derive(Default)]
pub(super) struct Versions {
    pub there: Vec<Listed>,
    /// Announced, and perhaps put by now.
    pub announced: Vec<Listed>,
}

/// The key of the object of which `key` is a version, and whether it is only announced.
pub(super) fn parse_version(key: &str) -> Option<(&str, bool)> {
    let (object, version) = key.rsplit_once('/')?;
    let version = version.strip_prefix(MARK)?;
    Some((object, version.starts_with(NEW)))
}

impl Versions {
    pub(super) fn youngest(&self) -> Option<&Listed> {
        self.there.iter().max_by_key(|version| version.put)
    }

    /// When the youngest was put, or announced.
    pub(super) fn touched(&self) -> Option<SystemTime> {
        self.there.iter().chain(&self.announced).map(|version| version.put).max()
    }

    fn into_keys(self) -> impl Iterator<Item = String> {
        self.there.into_iter().chain(self.announced).map(|version| version.key)
    }
}

impl BucketObjects {
    pub(super) async fn versions(&self, key: &str) -> Result<Versions, StorageError> {
        let mut versions = Versions::default();
        for listed in self.store.list(&format!("{key}/{MARK}")).await? {
            match parse_version(&listed.key) {
                Some((_, true)) => versions.announced.push(listed),
                _ => versions.there.push(listed),
            }
        }
        Ok(versions)
    }

    pub(super) fn is_fresh(&self, version: &Listed) -> bool {
        self.store.now().duration_since(version.put).map_or(true, |age| age < self.refresh)
    }

    async fn put_version(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.store.put(&format!("{key}/{MARK}{}", Uuid::new_v4()), bytes).await
    }

    /// Puts a version, or relies on one that is there and young.
    pub(super) async fn put_versioned(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let versions = self.versions(key).await?;
        if let Some(version) = versions.youngest().filter(|version| self.is_fresh(version))
            && (bytes.is_empty() || self.read_version(&version.key).await?.as_ref() == Some(&bytes))
        {
            return Ok(());
        }
        self.put_version(key, bytes).await?;
        self.store.delete_all(versions.into_keys()).await
    }

    /// Makes an object young that is there; false when it is gone.
    pub(super) async fn refresh(&self, key: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let announced = format!("{key}/{MARK}{NEW}{}", Uuid::new_v4());
        self.store.put(&announced, Bytes::new()).await?;
        let mut versions = self.versions(key).await?;
        if versions.there.is_empty() {
            self.store.delete(&announced).await?;
            return Ok(false);
        }
        self.put_version(key, bytes).await?;
        // The announcement stays until it is old: a list that is being made may miss the version.
        versions.there.retain(|version| !self.is_fresh(version));
        versions.announced.retain(|version| !self.is_fresh(version));
        self.store.delete_all(versions.into_keys()).await?;
        Ok(true)
    }

    /// Bytes of a version, which never change.
    pub(super) async fn read_version(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        if let Some(bytes) = self.cache.get(key) {
            return Ok(Some(bytes));
        }
        let bytes = self.store.get(key).await?;
        if let Some(bytes) = &bytes {
            self.cache.put(key, bytes.clone());
        }
        Ok(bytes)
    }

    /// Deletes all versions, those included that are put meanwhile; false when there was none.
    pub(super) async fn delete_versions(&self, key: &str) -> Result<bool, StorageError> {
        let mut was_there = false;
        loop {
            let versions = self.versions(key).await?;
            if versions.touched().is_none() {
                return Ok(was_there);
            }
            was_there |= !versions.there.is_empty();
            self.store.delete_all(versions.into_keys()).await?;
        }
    }

    /// Deletes all versions that are there now if none is younger than `cutoff`.
    pub(super) async fn delete_stale_versions(
        &self,
        versions: Versions,
        cutoff: SystemTime,
    ) -> Result<bool, StorageError> {
        match versions.touched() {
            Some(touched) if touched <= cutoff => {
                self.store.delete_all(versions.into_keys()).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
