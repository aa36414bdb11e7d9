//! [`Loans`]: which passwords were made for a while, and which of them were taken back. Both are kept where the repositories
//! are, so that all who serve these know.
//!
//! ```text
//! registry/_loans/<until>-<id>      JSON: for whom and what; until when it is good, in seconds since 1970
//! registry/_revoked/<until>-<id>    JSON: when it was taken back
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::files::blocking;
use crate::objects::Objects;
use crate::{Grant, Loan, StorageError};

const LENT: &str = "registry/_loans";
const REVOKED: &str = "registry/_revoked";

/// How long it is believed that nobody else has taken a password back.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// For how long it is known of a password that it was made, or taken back, after it has expired: an upload may go on for a
/// day, and clocks differ.
const REMEMBERED: Duration = Duration::from_secs(25 * 60 * 60);

/// Who has made a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lender {
    /// `cfc registry credentials`.
    Operator,
    /// The control API, for whoever may deploy.
    ControlApi,
}

/// A password that was made for a while, but for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoanRecord {
    /// What it is taken back by: 32 hexadecimal digits. Opens nothing.
    pub id: String,
    /// The user name that goes with it.
    pub username: String,
    /// What it is good for.
    #[serde(flatten)]
    pub grant: Grant,
    /// When it was made, as `2026-01-31T12:00:00Z`.
    pub made: String,
    /// Until when it is good, in the same form.
    pub expires: String,
    /// Who has made it.
    pub by: Lender,
    /// When it was taken back; `None` while it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
}

impl LoanRecord {
    pub(crate) fn new(loan: &Loan, grant: Grant, by: Lender) -> LoanRecord {
        LoanRecord {
            id: loan.id.clone(),
            username: loan.username.clone(),
            grant,
            made: now_text(),
            expires: loan.expires.clone(),
            by,
            revoked: None,
        }
    }
}

/// The passwords of one registry that were made for a while.
pub(crate) struct Loans {
    objects: Objects,
    revoked: Mutex<Revoked>,
}

/// What is known of passwords that were taken back.
#[derive(Default)]
struct Revoked {
    /// When it was last looked.
    known: Option<Instant>,
    /// When each would have expired, in seconds since 1970, by its id. None is ever good again.
    until: HashMap<String, u64>,
}

impl Loans {
    pub(crate) fn new(objects: Objects) -> Loans {
        Loans { objects, revoked: Mutex::default() }
    }

    /// Writes down that a password is made, before anybody gets it. `until` is when it expires, in seconds since 1970. What
    /// has long expired is forgotten.
    pub(crate) async fn note(&self, record: &LoanRecord, until: u64) -> Result<(), StorageError> {
        let json = serde_json::to_vec(record).expect("texts are JSON");
        self.objects.put(&key(LENT, until, &record.id), Bytes::from(json)).await?;
        self.forget(LENT).await?;
        self.forget(REVOKED).await
    }

    /// Those that have not expired, also when they were taken back; the next to expire first.
    pub(crate) async fn list(&self) -> Result<Vec<LoanRecord>, StorageError> {
        let revoked = self.names(REVOKED).await?;
        let now = crate::token::now();
        let mut records = Vec::new();
        for (until, id) in self.names(LENT).await?.into_iter().filter(|(until, _)| *until > now) {
            // One that has just been forgotten, by a clock that goes before ours.
            let Some(mut record) = self.record(until, &id).await? else { continue };
            if revoked.contains(&(until, id.clone())) {
                record.revoked = self.revoked_at(until, &id).await?;
            }
            records.push(record);
        }
        Ok(records)
    }

    /// Takes a password back, for ever; once more does no harm. Also one that has expired, since uploads that it has begun may
    /// go on, and it has not for who has another clock. `None` when none with this id is known.
    pub(crate) async fn revoke(&self, id: &str) -> Result<Option<LoanRecord>, StorageError> {
        let known = self.names(LENT).await?.into_iter().find(|(_, known)| known == id);
        let Some((until, id)) = known else { return Ok(None) };
        let Some(mut record) = self.record(until, &id).await? else { return Ok(None) };
        record.revoked = self.revoked_at(until, &id).await?;
        if record.revoked.is_none() {
            let time = now_text();
            let json = json!({ "revoked": time }).to_string();
            self.objects.put(&key(REVOKED, until, &id), Bytes::from(json)).await?;
            record.revoked = Some(time);
        }
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).until.insert(id, until);
        Ok(Some(record))
    }

    /// Whether a password was taken back, as of [`LOOK_EVERY`] ago; by this process, as of now.
    pub(crate) async fn is_revoked(&self, id: &str) -> Result<bool, StorageError> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        // Several may look at the same time: nobody waits for another's look at a store that is slow.
        let begun = Instant::now();
        let found = self.names(REVOKED).await?;
        let now = crate::token::now();
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.until.extend(found.into_iter().map(|(until, id)| (id, until)));
        revoked.until.retain(|_, until| !is_forgotten(*until, now));
        revoked.known = revoked.known.max(Some(begun));
        Ok(revoked.until.contains_key(id))
    }

    /// The same, without a look; `None` when the last one was too long ago.
    fn known(&self, id: &str) -> Option<bool> {
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        match revoked.until.contains_key(id) {
            true => Some(true),
            false => revoked.known.filter(|known| known.elapsed() < LOOK_EVERY).map(|_| false),
        }
    }

    async fn record(&self, until: u64, id: &str) -> Result<Option<LoanRecord>, StorageError> {
        self.read(&key(LENT, until, id)).await
    }

    async fn revoked_at(&self, until: u64, id: &str) -> Result<Option<String>, StorageError> {
        #[derive(Deserialize)]
        struct Revocation {
            revoked: String,
        }
        let found = self.read::<Revocation>(&key(REVOKED, until, id)).await?;
        Ok(found.map(|revocation| revocation.revoked))
    }

    async fn read<Object: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<Object>, StorageError> {
        let Some(bytes) = self.objects.get(key).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StorageError::new("read", key, error))
    }

    async fn forget(&self, directory: &'static str) -> Result<(), StorageError> {
        let now = crate::token::now();
        for (until, id) in self.names(directory).await?.into_iter().filter(|(until, _)| is_forgotten(*until, now)) {
            self.objects.delete(&key(directory, until, &id)).await?;
        }
        Ok(())
    }

    /// Each time and id below a directory, sorted. What has no such name is nobody's.
    async fn names(&self, directory: &'static str) -> Result<Vec<(u64, String)>, StorageError> {
        let objects = self.objects.clone();
        let names = blocking(move || objects.names(directory)).await?;
        let parse =
            |name: String| name.split_once('-').and_then(|(until, id)| Some((until.parse().ok()?, id.to_string())));
        let mut names: Vec<(u64, String)> = names.into_iter().filter_map(parse).collect();
        names.sort();
        Ok(names)
    }
}

fn key(directory: &str, until: u64, id: &str) -> String {
    format!("{directory}/{until}-{id}")
}

fn is_forgotten(until: u64, now: u64) -> bool {
    until + REMEMBERED.as_secs() < now
}

fn now_text() -> String {
    cfc_oci::rfc3339(crate::token::now() as i64)
}
