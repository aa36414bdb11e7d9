//! Kept objects in a bucket: what goes when nobody needs it, though several processes rely on it and several collect.
//!
//! A kept object is a set of versions, each under a name of its own that is never used again. The object is there when
//! any version is. To make it young is to put another version; to remove it is to delete the versions that one has seen.
//! So what was put after somebody looked can never be hit by what he removes.
//!
//! Whoever makes an old object young says so first, then looks whether it is still there, and puts the version only
//! then. A collection deletes the versions first and looks then whether anybody said so, before it removes what depends
//! on the object. Of the two, one sees the other.
//!
//! A deletion that somebody asks for is stronger: an object that is made young keeps the name of the version that was
//! there, and the deletion leaves word that all by that name are gone. So it does not come back with who was slow.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use super::objects::BucketObjects;
use super::store::Listed;
use crate::StorageError;

const MARK: char = '!';
const NEW: &str = "new-";
const GONE: &str = "gone-";

/// What the last part of a key says about a kept object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark<'a> {
    /// It is there, by the name under which it was put first.
    There(&'a str),
    /// It is about to be made young.
    New,
    /// By that name, it is not there any more.
    Gone(&'a str),
}

/// The versions of one kept object.
#[derive(Default)]
pub(super) struct Versions {
    pub there: Vec<Listed>,
    /// Announced, and perhaps put by now.
    pub announced: Vec<Listed>,
    /// Put, or found, by somebody who did not know yet that the object was deleted.
    dead: Vec<Listed>,
    gone: Vec<Listed>,
}

/// The key of the object of which `key` says something, and what that is.
pub(super) fn parse_version(key: &str) -> Option<(&str, Mark<'_>)> {
    let (object, version) = key.rsplit_once('/')?;
    let version = version.strip_prefix(MARK)?;
    let mark = match (version.strip_prefix(GONE), version.starts_with(NEW)) {
        (Some(root), _) => Mark::Gone(root),
        (None, true) => Mark::New,
        (None, false) => Mark::There(root(version)),
    };
    Some((object, mark))
}

/// The name under which a version was put first.
fn root(version: &str) -> &str {
    version.split_once('.').map_or(version, |(root, _)| root)
}

fn root_of(listed: &Listed) -> &str {
    match parse_version(&listed.key) {
        Some((_, Mark::There(root) | Mark::Gone(root))) => root,
        _ => "",
    }
}

impl Versions {
    /// From everything that is listed of one object.
    pub(super) fn of(listed: impl IntoIterator<Item = Listed>) -> Versions {
        let mut versions = Versions::default();
        for listed in listed {
            match parse_version(&listed.key) {
                Some((_, Mark::New)) => versions.announced.push(listed),
                Some((_, Mark::Gone(_))) => versions.gone.push(listed),
                _ => versions.there.push(listed),
            }
        }
        let gone = &versions.gone;
        let is_gone = |version: &Listed| gone.iter().any(|gone| root_of(gone) == root_of(version));
        (versions.dead, versions.there) = versions.there.into_iter().partition(is_gone);
        versions
    }

    pub(super) fn youngest(&self) -> Option<&Listed> {
        self.there.iter().max_by_key(|version| version.put)
    }

    /// When the youngest was put, or announced.
    pub(super) fn touched(&self) -> Option<SystemTime> {
        self.there.iter().chain(&self.announced).map(|version| version.put).max()
    }

    /// Everything but that it is gone.
    fn into_keys(self) -> impl Iterator<Item = String> {
        self.there.into_iter().chain(self.announced).chain(self.dead).map(|version| version.key)
    }

    /// The names of all that is there.
    fn roots(&self) -> BTreeSet<String> {
        self.there.iter().map(|version| root_of(version).to_string()).collect()
    }
}

impl BucketObjects {
    pub(super) async fn versions(&self, key: &str) -> Result<Versions, StorageError> {
        Ok(Versions::of(self.store.list(&format!("{key}/{MARK}")).await?))
    }

    /// Whether who relies on a version need not make it young.
    pub(super) fn is_fresh(&self, version: &Listed) -> bool {
        self.is_younger(version, self.periods.refresh)
    }

    /// Whether word that something is gone, or is about to be made young, may still be needed: a request that somebody
    /// made before he could know of it may still come to the store.
    pub(super) fn is_remembered(&self, word: &Listed) -> bool {
        self.is_younger(word, self.periods.remembered)
    }

    fn is_younger(&self, listed: &Listed, than: Duration) -> bool {
        self.store.now().duration_since(listed.put).map_or(true, |age| age < than)
    }

    /// Leaves word that all by these names are gone.
    async fn bury(&self, key: &str, roots: BTreeSet<String>) -> Result<(), StorageError> {
        let put = roots
            .into_iter()
            .map(|root| async move { self.store.put(&format!("{key}/{MARK}{GONE}{root}"), Bytes::new()).await });
        futures::future::try_join_all(put).await.map(|_| ())
    }

    /// Puts a version, or relies on one that is there and young.
    pub(super) async fn put_versioned(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let versions = self.versions(key).await?;
        if let Some(version) = versions.youngest().filter(|version| self.is_fresh(version))
            && (bytes.is_empty() || self.read_version(&version.key).await?.as_ref() == Some(&bytes))
        {
            return Ok(());
        }
        self.store.put(&format!("{key}/{MARK}{}", Uuid::new_v4()), bytes).await?;
        // Who makes one of those young has one that is younger; a deletion may see that one only.
        self.bury(key, versions.roots()).await?;
        self.store.delete_all(versions.into_keys()).await
    }

    /// Makes an object young that is there; false when it is gone.
    pub(super) async fn refresh(&self, key: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let announced = format!("{key}/{MARK}{NEW}{}", Uuid::new_v4());
        self.store.put(&announced, Bytes::new()).await?;
        let mut versions = self.versions(key).await?;
        let Some(root) = versions.youngest().map(|youngest| root_of(youngest).to_string()) else {
            self.store.delete(&announced).await?;
            return Ok(false);
        };
        self.store.put(&format!("{key}/{MARK}{root}.{}", Uuid::new_v4()), bytes).await?;
        // The announcement stays until it is old: a list that is being made may miss the version.
        versions.there.retain(|version| !self.is_fresh(version) && root_of(version) == root);
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
            self.bury(key, versions.roots()).await?;
            self.store.delete_all(versions.into_keys()).await?;
        }
    }

    /// Forgets deletions of which everybody has heard by now, and that somebody was about to make the object young who has
    /// died since. Gives what is left.
    pub(super) async fn tidy(&self, mut versions: Versions) -> Result<Versions, StorageError> {
        let is_old = |word: &Listed| !self.is_remembered(word);
        let old_gone: Vec<Listed> = versions.gone.extract_if(.., |gone| is_old(gone)).collect();
        let is_forgotten = |dead: &Listed| old_gone.iter().any(|gone| root_of(gone) == root_of(dead));
        let dead: Vec<Listed> = versions.dead.extract_if(.., |dead| is_forgotten(dead)).collect();
        let announced: Vec<Listed> = versions.announced.extract_if(.., |announced| is_old(announced)).collect();
        // What is dead goes before the word that it is.
        self.store.delete_all(dead.into_iter().chain(announced).map(|listed| listed.key)).await?;
        self.store.delete_all(old_gone.into_iter().map(|listed| listed.key)).await?;
        Ok(versions)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Versions {
        let put = SystemTime::UNIX_EPOCH;
        Versions::of(names.iter().map(|name| Listed { key: format!("a/{name}"), size: 0, put }))
    }

    #[test]
    fn what_is_made_of_something_deleted_is_not_there() {
        let keys = |versions: &[Listed]| versions.iter().map(|version| version.key.clone()).collect::<Vec<_>>();
        let versions = listed(&["!a", "!a.b", "!c", "!gone-a", "!new-d"]);
        assert_eq!(
            (keys(&versions.there), keys(&versions.dead)),
            (vec!["a/!c".into()], vec!["a/!a".into(), "a/!a.b".into()])
        );
        assert_eq!(keys(&versions.announced), ["a/!new-d"]);
        assert!(listed(&["!a.b", "!gone-a"]).touched().is_none());
        assert_eq!(listed(&["!a.b", "!c"]).roots(), ["a".to_string(), "c".to_string()].into());
    }
}
