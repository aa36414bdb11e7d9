//! Lists in a bucket: objects that are replaced and removed by several processes, of which none may lose another's.
//!
//! An object of a list is a row of versions, each under a name of its own; the last one is what is there. To put is to
//! put a version with a higher number, and then to delete those that one has seen before; to remove is to leave word that
//! the last one that one has seen is gone, with all before it, and then to delete them. So a removal never hits what was
//! put after somebody looked, and whoever reads finds a version at any time. Nor does a version come back whose request
//! comes to the store a second time, late, because the answer to the first was lost; a collection forgets the word when
//! that cannot be any more ([`BucketObjects::is_remembered`]).
//!
//! Where only the first may be put, its name is the same for everybody, and the store's put-if-absent decides. Its number
//! is [`FIRST`], which no other version's reaches, whatever was there before and is forgotten by now. Such an object is
//! removed only where the operator does not want it to stay any more, and may be put as the first again later; then its
//! number is one more than the highest. That is the same for everybody, too, since from `FIRST` on the highest number
//! never falls: who puts deletes only what comes before his own, and the word of the last removal is never forgotten.
//! So of two that put a first, however slow they are,
//!
//! - both use one name: the store takes one of them, and the other finds that;
//! - or the one has seen fewer versions than the other. Then the name that he uses has been used. Its object is there, and
//!   he is refused; or something with a higher number is there, for ever. He looks at the row once more after he has put
//!   his, finds that it is not the last, and begins anew. Nobody has read it, since what is last is what is there.
//!
//! Whoever is told that his is there has therefore seen it as the last, and nobody puts another first while it is. A row
//! whose first an earlier registry has put, under a low number, has a version and gets no other first.
//!
//! ```text
//! <list>/<name>                   a version that earlier registries have put; comes before all others
//! <list>/<name>!<number>          the first, of an object that is not to be replaced; formats before 3 began at 0
//! <list>/<name>!<number>-<id>     any other
//! <list>/<name>![<version>].gone  empty: this version is gone, and all before it
//! ```
//!
//! The mark comes before whatever a name may have in its place, so that keys are in the order of names.

use bytes::Bytes;
use uuid::Uuid;

use super::objects::BucketObjects;
use super::store::{Listed, MAX_KEYS};
use crate::StorageError;
use crate::objects::{MayReplace, Seen};

/// Sorts before all that names are made of.
const MARK: char = '!';
/// Sorts after all versions of a name.
const AFTER_VERSIONS: &str = "!~";
/// Of a version that is gone. Comes after it and before the next.
const GONE: &str = ".gone";
/// The number of the first version of an object that is not to be replaced. Others count from 1: nobody pushes a tag so
/// often. Numbers have ten digits.
const FIRST: u64 = 5_000_000_000;
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
    let version = version(key, listed).unwrap_or_default();
    version.split(['-', '.']).next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The number of the next version.
fn next_number(key: &str, row: &[Listed]) -> u64 {
    row.last().map_or(0, |last| number(key, last)) + 1
}

/// The number of a version that is to be the first, where nothing is there.
fn first_number(key: &str, row: &[Listed]) -> u64 {
    next_number(key, row).max(FIRST)
}

pub(super) fn is_gone(key: &str) -> bool {
    key.ends_with(GONE) && without_version(key) != key
}

/// The word that a version is gone.
fn gone(key: &str, version: &str) -> String {
    if version == key { format!("{key}{MARK}{GONE}") } else { format!("{version}{GONE}") }
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
            let Some(last) = row.pop().filter(|last| !is_gone(&last.key)) else { return Ok(None) };
            let is_named_once = version(key, &last).is_some_and(|version| version.contains('-'));
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

    /// Puts a version after all others. One that others, who did not know of it, have put behind theirs meanwhile, or have
    /// removed with theirs, is put once more, so that who was answered last is last.
    pub(super) async fn put_in_row(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let mut before = self.row(key).await?;
        for _ in 0..PUTS {
            let next = next_number(key, &before);
            let own = format!("{key}{MARK}{next:010}-{}", Uuid::new_v4());
            self.store.put(&own, bytes.clone()).await?;
            if let Err(error) = self.store.delete_all(before.into_iter().map(|listed| listed.key)).await {
                // It has been put, and whoever is next deletes the rest.
                tracing::warn!(key, %error, "what was replaced is still there");
            }
            before = self.row(key).await?;
            let is_replaced = !before.iter().any(|listed| listed.key == own);
            if before.last().is_some_and(|last| last.key == own || (is_replaced && !is_gone(&last.key))) {
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
            let row = self.row(key).await?;
            if row.last().is_some_and(|last| !is_gone(&last.key)) {
                continue;
            }
            let own = format!("{key}{MARK}{:010}", first_number(key, &row));
            if self.store.create(&own, bytes.clone()).await?
                && self.row(key).await?.last().is_some_and(|last| last.key == own)
            {
                return Ok(true);
            }
        }
    }

    /// Removes what is there if it is what was seen; false when it is not.
    pub(super) async fn remove_row(&self, key: &str, seen: &Seen) -> Result<bool, StorageError> {
        if self.row(key).await?.last().is_none_or(|last| last.key != seen.version) {
            return Ok(false);
        }
        self.store.put(&gone(key, &seen.version), Bytes::new()).await?;
        let seen: Vec<String> = seen.before.iter().chain([&seen.version]).cloned().collect();
        self.store.delete_all(seen).await?;
        Ok(true)
    }

    /// Forgets that an object is gone when no version of it can come any more that was on its way then, unless the first
    /// would get a number again that it had.
    pub(super) async fn forget_removal(&self, key: &str, mut row: Vec<Listed>) -> Result<(), StorageError> {
        let Some(gone) = row.pop().filter(|last| !self.is_remembered(last)) else { return Ok(()) };
        self.store.delete_all(row.into_iter().map(|listed| listed.key)).await?;
        if number(key, &gone) < FIRST { self.store.delete(&gone.key).await } else { Ok(()) }
    }

    /// At most `limit` names after `after`, in order.
    pub(super) async fn page_of_names(
        &self,
        list: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        let prefix = format!("{list}/");
        let (mut names, mut least): (Vec<String>, usize) = (Vec::new(), 0);
        let mut start = after.map(|after| format!("{prefix}{after}{AFTER_VERSIONS}"));
        while names.len() < limit {
            // Mostly an object is one version; of the last one on a list, there may be more.
            let wanted = (limit - names.len()).saturating_add(VERSIONS).max(least);
            // Where many have been removed lately, they are not gone through in small steps.
            least = MAX_KEYS;
            let listed = self.store.list_some(&prefix, start.as_deref(), wanted).await?;
            let is_all = listed.len() < wanted;
            let mut rows: Vec<&[Listed]> =
                listed.chunk_by(|a, b| without_version(&a.key) == without_version(&b.key)).collect();
            let cut = if is_all || rows.len() < 2 { None } else { rows.pop() };
            let last = rows.last().map(|row| without_version(&row[0].key).to_string());
            let whole = match (&last, is_all || cut.is_some()) {
                (Some(last), false) => self.row(last).await?,
                _ => Vec::new(),
            };
            if !whole.is_empty() {
                rows = vec![&whole];
            }
            let there = rows.iter().filter_map(|row| row.last()).filter(|last| !is_gone(&last.key));
            let found = there.filter_map(|last| without_version(&last.key).strip_prefix(&prefix));
            // What a client gives as the last one may be no name.
            names.extend(found.filter(|name| after.is_none_or(|after| *name > after)).map(str::to_string));
            match last.filter(|_| !is_all) {
                Some(last) => start = Some(format!("{last}{AFTER_VERSIONS}")),
                None => break,
            }
        }
        names.truncate(limit);
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

    #[test]
    fn the_first_has_a_number_of_its_own_whatever_was_there_before() {
        let listed = |key: &&str| Listed { key: key.to_string(), size: 0, put: std::time::SystemTime::UNIX_EPOCH };
        let first = |keys: &[&str]| first_number("t/a", &keys.iter().map(listed).collect::<Vec<_>>());
        for gone in [&[][..], &["t/a!.gone"], &["t/a!0000000000.gone"], &["t/a!4999999998-x", "t/a!4999999998-x.gone"]]
        {
            assert_eq!(first(gone), FIRST, "{gone:?}");
        }
        assert_eq!(first(&["t/a!5000000000.gone"]), FIRST + 1);
        assert_eq!(first(&["t/a!0000000001-x", "t/a!5000000003-x.gone"]), FIRST + 4);
        assert!(format!("{FIRST:010}").len() == 10 && *"t/a!4999999999-x.gone" < *format!("t/a!{FIRST:010}"));
    }

    #[test]
    fn word_that_a_version_is_gone_comes_after_it_and_before_the_next() {
        for (version, next) in [
            ("t/a", "t/a!0000000000"),
            ("t/a!0000000000", "t/a!0000000001-x"),
            ("t/a!0000000002-x", "t/a!0000000002-y"),
            ("t/a!0000000002-y", "t/a!0000000003"),
        ] {
            let gone = gone("t/a", version);
            assert!(*version < *gone && *gone < *next, "{gone}");
            assert!(is_gone(&gone) && !is_gone(version));
            let listed = |key: &str| Listed { key: key.to_string(), size: 0, put: std::time::SystemTime::UNIX_EPOCH };
            assert_eq!(
                (without_version(&gone), number("t/a", &listed(&gone))),
                ("t/a", number("t/a", &listed(version)))
            );
        }
        // A tag may be called so.
        assert!(!is_gone("t/a.gone") && !is_gone("t/a.gone!0000000001-x") && is_gone("t/a.gone!0000000001-x.gone"));
    }
}
