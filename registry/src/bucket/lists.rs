//! Lists in a bucket: objects that are replaced and removed by several processes, of which none may lose another's.
//!
//! An object of a list is a row of versions, each under a name of its own; the last one is what is there. To put is to
//! put a version with a higher number, and then to delete those that one has seen before; to remove is to delete those
//! that one has seen, the last one last. So a removal never hits what was put after somebody looked, and whoever reads
//! finds a version at any time. Where only the first may be put, its name is the same for everybody, and the store's
//! put-if-absent decides; such an object is not removed.
//!
//! ```text
//! <list>/<name>                   a version that earlier registries have put; comes before all others
//! <list>/<name>!0000000000        the first, of an object that is not to be replaced
//! <list>/<name>!<number>-<id>     any other
//! ```
//!
//! The mark comes before whatever a name may have in its place, so that keys are in the order of names.

use bytes::Bytes;
use uuid::Uuid;

use super::objects::BucketObjects;
use super::store::Listed;
use crate::StorageError;
use crate::objects::{MayReplace, Seen};

/// Sorts before all that names are made of.
const MARK: char = '!';
/// Sorts after all versions of a name.
const AFTER_VERSIONS: &str = "!~";
const FIRST: &str = "0000000000";
/// What is asked for of one object: there are more versions only while many put it at the same time.
const VERSIONS: usize = 4;
/// How often a version is put that others get ahead of.
const PUTS: usize = 4;

/// The key without its version.
pub(super) fn without_version(key: &str) -> &str {
    // In other keys the mark is the first of a part.
    match key.rsplit_once(MARK) {
        Some((object, _)) if !object.ends_with('/') => object,
        _ => key,
    }
}

/// What comes after the mark; `None` for a version of earlier registries.
fn version<'a>(key: &str, listed: &'a Listed) -> Option<&'a str> {
    listed.key.strip_prefix(key)?.strip_prefix(MARK)
}

fn is_version(key: &str, listed: &Listed) -> bool {
    listed.key == key || version(key, listed).is_some()
}

fn number(key: &str, listed: &Listed) -> u64 {
    let version = version(key, listed).unwrap_or(FIRST);
    version.split('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

impl BucketObjects {
    /// The versions of an object, the one that is there last.
    pub(super) async fn row(&self, key: &str) -> Result<Vec<Listed>, StorageError> {
        let mut listed = self.store.list_some(key, None, VERSIONS).await?;
        if listed.len() == VERSIONS && is_version(key, &listed[VERSIONS - 1]) {
            listed.extend(self.store.list(&format!("{key}{MARK}")).await?);
            listed.sort_by(|a, b| a.key.cmp(&b.key));
            listed.dedup_by(|a, b| a.key == b.key);
        }
        listed.retain(|listed| is_version(key, listed));
        Ok(listed)
    }

    /// What is there.
    pub(super) async fn last_of_row(&self, key: &str) -> Result<Option<Seen>, StorageError> {
        loop {
            let mut row = self.row(key).await?;
            let Some(last) = row.pop() else { return Ok(None) };
            let is_named_once = version(key, &last).is_some_and(|version| version != FIRST);
            let bytes = match is_named_once {
                true => self.read_version(&last.key).await?,
                false => self.store.get(&last.key).await?,
            };
            // Somebody may have put another one, and deleted this, right now.
            if let Some(bytes) = bytes {
                let before = row.into_iter().map(|listed| listed.key).collect();
                return Ok(Some(Seen { bytes, put: last.put, version: last.key, before }));
            }
        }
    }

    /// Puts a version after all others. One that others, who did not know of it, have put behind theirs meanwhile is put
    /// once more, so that who was answered last is last.
    pub(super) async fn put_in_row(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let mut before = self.row(key).await?;
        for _ in 0..PUTS {
            let next = before.last().map_or(0, |last| number(key, last)) + 1;
            let own = format!("{key}{MARK}{next:010}-{}", Uuid::new_v4());
            self.store.put(&own, bytes.clone()).await?;
            if let Err(error) = self.store.delete_all(before.into_iter().map(|listed| listed.key)).await {
                // It has been put, and whoever is next deletes the rest.
                tracing::warn!(key, %error, "what was replaced is still there");
            }
            before = self.row(key).await?;
            let is_behind = before.iter().rev().skip(1).any(|listed| listed.key == own);
            if !is_behind {
                break;
            }
        }
        Ok(())
    }

    /// Says whether the object, or one that is as good, is there now.
    pub(super) async fn put_first(
        &self,
        key: &str,
        bytes: Bytes,
        may_replace: MayReplace,
    ) -> Result<bool, StorageError> {
        loop {
            if let Some(found) = self.last_of_row(key).await? {
                return Ok(may_replace(&found.bytes));
            }
            if self.store.create(&format!("{key}{MARK}{FIRST}"), bytes.clone()).await? {
                return Ok(true);
            }
        }
    }

    /// Removes what is there if it is what was seen; false when it is not.
    pub(super) async fn remove_row(&self, key: &str, seen: &Seen) -> Result<bool, StorageError> {
        if self.row(key).await?.last().is_none_or(|last| last.key != seen.version) {
            return Ok(false);
        }
        self.store.delete_all(seen.before.iter().cloned()).await?;
        self.store.delete(&seen.version).await?;
        Ok(true)
    }

    /// At most `limit` names after `after`, in order.
    pub(super) async fn page_of_names(
        &self,
        list: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        let prefix = format!("{list}/");
        let mut names: Vec<String> = Vec::new();
        let mut start = after.map(|after| format!("{prefix}{after}{AFTER_VERSIONS}"));
        while names.len() < limit {
            let wanted = limit - names.len();
            let listed = self.store.list_some(&prefix, start.as_deref(), wanted).await?;
            let found = listed.iter().filter_map(|listed| without_version(&listed.key).strip_prefix(&prefix));
            // What a client gives as the last one may be no name.
            names.extend(found.filter(|name| after.is_none_or(|after| *name > after)).map(str::to_string));
            names.dedup();
            match listed.last().filter(|_| listed.len() >= wanted) {
                Some(last) => start = Some(format!("{}{AFTER_VERSIONS}", without_version(&last.key))),
                None => break,
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_names() {
        let keys =
            ["t/a", "t/a!0000000000", "t/a!0000000002-x", "t/a!0000000010-b", "t/a-b!0000000001-x", "t/a.b", "t/a0"];
        assert!(keys.is_sorted());
        let names = keys.map(without_version);
        assert_eq!(names, ["t/a", "t/a", "t/a", "t/a", "t/a-b", "t/a.b", "t/a0"]);
        let after = format!("t/a{AFTER_VERSIONS}");
        assert!(keys[3] < after.as_str() && after.as_str() < keys[4]);
        // Versions of kept objects are none of these.
        assert_eq!(without_version("l/a/_link/!b.c"), "l/a/_link/!b.c");
        let listed = |key: &str| Listed { key: key.to_string(), size: 0, put: std::time::SystemTime::UNIX_EPOCH };
        assert_eq!(keys.map(|key| number("t/a", &listed(key)))[..4], [0, 0, 2, 10]);
        assert_eq!(keys.map(|key| is_version("t/a", &listed(key))), [true, true, true, true, false, false, false]);
    }
}
