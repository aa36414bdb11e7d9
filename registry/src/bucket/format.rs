//! The format of a bucket: by which rules things are stored there. It is written down, so that no registry takes what one
//! of another version has stored for something else.
//!
//! Who raises the number leaves [`LOOK_EVERY`] and the time of a request between that and the first thing that he stores
//! in the new way: until then, those who know the old one may be storing things in theirs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::store::{Listed, Store};
use crate::StorageError;

/// What this version stores things in:
/// 1. a tag is one object; buckets of this format do not say so
/// 2. a tag is a row of versions; those of format 1 are read, and gone with their next push
/// 3. the first version of an immutable tag has a number that no other reaches; those of format 2 are read, and stay
const FORMAT: u64 = 3;
const FORMATS: &str = "registry/_format/";
/// How long it is believed that nobody has raised it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a request may take that began before it was known.
const LAST_REQUESTS: Duration = Duration::from_secs(60);

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

    /// Writes down that things are stored in our way from now on. Waits where another way was written down until those who
    /// know no other have noticed.
    pub(super) async fn mark(&self, store: &Store) -> Result<(), StorageError> {
        if self.look(store).await?.is_none_or(|found| found < FORMAT) {
            // Any other process of this version is as good a first.
            store.create(&key(FORMAT), version()).await?;
            self.look(store).await?;
        }
        let wait = left_to_wait(&store.list(FORMATS).await?, store.now());
        if !wait.is_zero() {
            tracing::info!(seconds = wait.as_secs(), "registries of older versions get time to notice the new format");
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// The format, `None` where nobody says; fails when it is one that we do not know.
    async fn look(&self, store: &Store) -> Result<Option<u64>, StorageError> {
        let listed = store.list(FORMATS).await?;
        let Some(found) = listed.iter().filter_map(number).max() else { return Ok(None) };
        if found <= FORMAT {
            return Ok(Some(found));
        }
        let by = store.get(&key(found)).await?.unwrap_or_default();
        let by = String::from_utf8_lossy(&by).trim().to_string();
        Err(StorageError::new("use", key(found), UnknownFormat { found, by }))
    }
}

fn number(listed: &Listed) -> Option<u64> {
    listed.key.strip_prefix(FORMATS)?.parse().ok()
}

/// How long it is until everybody who knows an older format only, which was written down before ours, has noticed. What
/// earlier registries than those have left says nothing, and they would not notice.
fn left_to_wait(formats: &[Listed], now: SystemTime) -> Duration {
    let ours = formats.iter().find(|listed| number(listed) == Some(FORMAT));
    let has_older = formats.iter().filter_map(number).any(|format| format < FORMAT);
    let Some(ours) = ours.filter(|_| has_older) else { return Duration::ZERO };
    let age = now.duration_since(ours.put).unwrap_or_default();
    (LOOK_EVERY + LAST_REQUESTS).saturating_sub(age)
}

fn key(format: u64) -> String {
    format!("{FORMATS}{format:010}")
}

/// Who we are, for those who do not know our format.
fn version() -> String {
    format!("cfc {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_raises_the_number_waits_for_those_who_know_another() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let listed = |format: u64, seconds| Listed { key: key(format), size: 0, put: at(seconds) };
        let wait = |formats: &[Listed], now| left_to_wait(formats, at(now)).as_secs();
        let raised = [listed(FORMAT - 1, 10), listed(FORMAT, 100)];
        assert_eq!([100, 120, 165, 1000].map(|now| wait(&raised, now)), [65, 45, 0, 0]);
        // By a clock that is behind, and where there is nobody to wait for.
        assert_eq!(wait(&raised, 90), 65);
        assert_eq!(wait(&raised[1..], 100), 0);
    }
}
