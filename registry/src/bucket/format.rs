//! The format of a bucket: by which rules things are stored there. It is written down, so that no registry takes what one
//! of another version has stored for something else.
//!
//! Who raises the number must leave [`LOOK_EVERY`] and the time of a request between that and the first thing that he
//! stores in the new way: until then, those who know the old one may be storing things in theirs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::store::Store;
use crate::StorageError;

/// What this version stores things in:
/// 1. a tag is one object; buckets of this format do not say so
/// 2. a tag is a row of versions; those of format 1 are read, and gone with their next push
const FORMAT: u64 = 2;
const FORMATS: &str = "registry/_format/";
/// How long it is believed that nobody has raised it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Things are stored in a way that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "{by} stores things here in format {found}, and this is cfc {}, which knows formats up to {FORMAT}: use the same \
     version of cfc for all registries of a bucket, the newest of them",
    env!("CARGO_PKG_VERSION")
)]
pub(crate) struct UnknownFormat {
    found: u64,
    by: String,
}

/// What is known of a bucket's format.
#[derive(Default)]
pub(super) struct Format {
    /// When it was last looked at, and was one that we know.
    known: Mutex<Option<Instant>>,
}

impl Format {
    /// Fails when things are stored in a way that we do not know, as of [`LOOK_EVERY`] ago.
    pub(super) async fn require_known(&self, store: &Store) -> Result<(), StorageError> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some_and(|known| known.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let begun = Instant::now();
        self.look(store).await?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        Ok(())
    }

    /// Writes down that things are stored in our way from now on.
    pub(super) async fn mark(&self, store: &Store) -> Result<(), StorageError> {
        if self.look(store).await?.is_some_and(|found| found >= FORMAT) {
            return Ok(());
        }
        // Any other process of this version is as good a first.
        store.create(&key(FORMAT), version().into()).await?;
        self.look(store).await.map(|_| ())
    }

    /// The format, `None` where nobody says; fails when it is one that we do not know.
    async fn look(&self, store: &Store) -> Result<Option<u64>, StorageError> {
        let listed = store.list(FORMATS).await?;
        let formats = listed.iter().filter_map(|listed| listed.key.strip_prefix(FORMATS)?.parse().ok());
        let Some(found) = formats.max() else { return Ok(None) };
        if found <= FORMAT {
            return Ok(Some(found));
        }
        let by = store.get(&key(found)).await?.unwrap_or_default();
        let by = String::from_utf8_lossy(&by).trim().to_string();
        Err(StorageError::new("use", key(found), UnknownFormat { found, by }))
    }
}

fn key(format: u64) -> String {
    format!("{FORMATS}{format:010}")
}

/// Who we are, for those who do not know our format.
fn version() -> String {
    format!("cfc {}", env!("CARGO_PKG_VERSION"))
}
