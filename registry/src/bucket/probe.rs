//! Finding out whether the store lets several processes use one bucket.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::store::Store;
use crate::StorageError;

const ROUNDS: usize = 3;
const RUNNERS: usize = 24;

const WHAT_TO_DO: &str = "put the bucket in a store that has S3's conditional writes, or, if no other registry will ever \
                          use this bucket, say so with `single_replica = true` below `[registry]` in the configuration \
                          file";

/// Has many requests put one object if absent, several times. Fails when not exactly one of them is the first.
pub(super) async fn race(store: &Store) -> Result<(), StorageError> {
    for _ in 0..ROUNDS {
        let key = format!("registry/_race/{}", Uuid::new_v4());
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
