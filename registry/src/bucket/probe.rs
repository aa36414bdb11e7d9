//! Finding out whether a registry can be in the store: whether lists show at once what was put and removed, and whether
//! several processes can use one bucket.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::store::Store;
use crate::StorageError;

/// Below these, what a process that died has left is swept.
pub(super) const RACES: &str = "registry/_race/";
pub(super) const LISTS: &str = "registry/_list/";

const ROUNDS: usize = 3;
const RUNNERS: usize = 24;
/// Objects of which a list is made.
const LISTED: usize = 3;

const WHERE_TO_BE: &str = "put the bucket in a store whose lists show at once what was put and removed, as S3's do, or \
                           keep the registry in a directory, without `bucket` below `[registry]` in the configuration file";

const WHAT_TO_DO: &str = "put the bucket in a store that has S3's conditional writes, or, if no other registry will ever \
                          use this bucket, say so with `single_replica = true` below `[registry]` in the configuration \
                          file";

/// Puts, replaces and removes objects by one client, and lists them by another each time, several times. Fails when a list
/// is not up to date: what is in a bucket is found by lists, so a registry there would lose tags, also one that is alone.
pub(super) async fn compare_lists(store: &Store, other: &Store) -> Result<(), StorageError> {
    for _ in 0..ROUNDS {
        let prefix = format!("{LISTS}{}/", Uuid::new_v4());
        let keys: Vec<String> = (0..LISTED).map(|number| format!("{prefix}{number}")).collect();
        let result = compare_once(store, other, &prefix, &keys).await;
        if result.is_err() {
            store.delete_all(keys).await?;
        }
        result?;
    }
    Ok(())
}

async fn compare_once(store: &Store, other: &Store, prefix: &str, keys: &[String]) -> Result<(), StorageError> {
    let puts = keys.iter().map(|key| store.put(key, Bytes::from_static(b"x")));
    futures::future::try_join_all(puts).await?;
    let (first, rest) = keys.split_first().expect("there are several");
    let (last, between) = rest.split_last().expect("there are several");
    let all: Vec<(&str, u64)> = keys.iter().map(|key| (key.as_str(), 1)).collect();
    require_listed(other, prefix, &all).await?;
    store.put(first, Bytes::new()).await?;
    store.delete(last).await?;
    let left: Vec<(&str, u64)> = [(first.as_str(), 0)].into_iter().chain(all[1..=between.len()].to_vec()).collect();
    require_listed(other, prefix, &left).await?;
    store.delete_all(keys[..=between.len()].to_vec()).await?;
    require_listed(other, prefix, &[]).await
}

/// Fails when a list does not have exactly `expected`: keys, and the sizes of their objects.
async fn require_listed(store: &Store, prefix: &str, expected: &[(&str, u64)]) -> Result<(), StorageError> {
    let listed = store.list(prefix).await?;
    let found: Vec<(&str, u64)> = listed.iter().map(|listed| (listed.key.as_str(), listed.size)).collect();
    if found == expected {
        return Ok(());
    }
    let name = |objects: &[(&str, u64)]| {
        let names = objects.iter().map(|(key, size)| format!("`{}` of {size} bytes", key.trim_start_matches(prefix)));
        let names: Vec<String> = names.collect();
        if names.is_empty() { "nothing".to_string() } else { names.join(", ") }
    };
    let why = format!(
        "a list has {} where {} had been left a moment before; a registry on this bucket would lose tags: {WHERE_TO_BE}",
        name(&found),
        name(expected),
    );
    Err(StorageError::new("list at once", prefix, why))
}

/// Has many requests put one object if absent, several times. Fails when not exactly one of them is the first.
pub(super) async fn race(store: &Store) -> Result<(), StorageError> {
    for _ in 0..ROUNDS {
        let key = format!("{RACES}{}", Uuid::new_v4());
        let result = race_once(store, &key).await;
        store.delete(&key).await?;
        result?;
    }
    Ok(())
}

async fn race_once(store: &Store, key: &str) -> Result<(), StorageError> {
    let refused = |what: String| {
        let why = format!("{what}; with several registries on this bucket, pushes would be lost: {WHAT_TO_DO}");
        Err(StorageError::new("put if absent", key, why))
    };
    let run = |runner: usize| async move {
        let content = Bytes::from(format!("{runner}"));
        (content.clone(), store.create_once(key, content).await)
    };
    let runs = futures::future::join_all((0..RUNNERS).map(run)).await;
    let lacks_it = |error: &object_store::Error| {
        matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
            || error.to_string().contains("501 Not Implemented")
    };
    if let Some((_, Err(error))) = runs.iter().find(|(_, result)| result.as_ref().is_err_and(lacks_it)) {
        return refused(format!("the store cannot do it: {error}"));
    }
    let first: Vec<&Bytes> = runs.iter().filter(|(_, result)| result.is_ok()).map(|(content, _)| content).collect();
    if first.len() > 1 {
        return refused(format!(
            "{} of {RUNNERS} requests at the same time were told that theirs was the first",
            first.len()
        ));
    }
    let found = store.get(key).await?;
    let Some(found) = found else {
        let (_, result) = runs.into_iter().next().expect("there are several");
        let error = result.err().map_or_else(|| "nothing is there".to_string(), |error| error.to_string());
        return Err(StorageError::new("put if absent", key, error));
    };
    // The answer of the first may have been lost; then nobody was told.
    if first.first().is_some_and(|first| **first != found) {
        return refused("a request was told that its object was the first, and another one is there".to_string());
    }
    // Later, when no requests meet, it is refused as well.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let late = Bytes::from_static(b"late");
    if store.create_once(key, late.clone()).await.is_ok() || store.get(key).await? == Some(late) {
        return refused("an object was replaced by one that was to be put only if absent".to_string());
    }
    Ok(())
}
