//! [`Ledger`]: how much each repository holds, and how much is on its way, so that none gets more than it may.
//!
//! An upload reserves what it has, and what its next request promises to bring, before it is kept; whatever is reserved
//! or held counts at once for everybody. What was deleted counts until the next garbage collection, which takes stock
//! anew. Kept in memory: a registry of several processes lets each have its own count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::{Digest, RepositoryName};
use futures::StreamExt;
use uuid::Uuid;

use crate::access::matches;
use crate::error::{ApiError, Problem};
use crate::files::{blocking, blocking_each};
use crate::metadata::Found;
use crate::registry::Inner;
use crate::{ByteStream, StorageError};

/// How much may be stored.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    /// Bytes of all blobs and manifests.
    pub total: Option<u64>,
    /// The first rule whose pattern matches a repository says what it may hold; others may hold anything.
    pub rules: Vec<QuotaRule>,
    /// Bytes of one blob.
    pub blob: Option<u64>,
}

/// How much a repository may hold.
#[derive(Clone, Debug)]
pub struct QuotaRule {
    /// Patterns of repositories; each that matches may hold so much by itself.
    pub repositories: Vec<String>,
    /// Bytes of its blobs and manifests, those that other repositories hold as well included.
    pub bytes: u64,
}

/// What is stored and reserved, as far as there are limits.
pub(crate) struct Ledger {
    quotas: Quotas,
    taken_stock: tokio::sync::OnceCell<()>,
    /// Held while a repository begins to hold something, so that nothing is counted twice.
    linking: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<String, u64>,
    total: u64,
    reserved: HashMap<Uuid, (String, u64)>,
    /// What came while stock is taken.
    arrived: Option<Vec<(String, u64, bool)>>,
}

impl State {
    fn used(&self, name: &str) -> u64 {
        let reserved = self.reserved.values().filter(|(holder, _)| holder == name).map(|(_, bytes)| bytes);
        self.held.get(name).copied().unwrap_or_default() + reserved.sum::<u64>()
    }

    fn used_by_all(&self) -> u64 {
        self.total + self.reserved.values().map(|(_, bytes)| bytes).sum::<u64>()
    }

    fn add(&mut self, name: &str, bytes: u64, is_new: bool) {
        *self.held.entry(name.to_string()).or_default() += bytes;
        self.total += if is_new { bytes } else { 0 };
    }
}

/// A limit, and what is known of its use.
pub(crate) struct QuotaUse {
    /// The patterns of a rule.
    pub repositories: String,
    /// Bytes.
    pub limit: u64,
    /// Bytes that are held and reserved: by all, or by the repository that a rule limits and that has most. `None` before
    /// stock was taken.
    pub used: Option<u64>,
}

impl Ledger {
    pub(crate) fn new(quotas: Quotas) -> Ledger {
        Ledger { quotas, taken_stock: Default::default(), linking: Default::default(), state: Mutex::default() }
    }

    /// How much of what all may hold is used, if that is limited.
    pub(crate) fn total_use(&self) -> Option<QuotaUse> {
        let used = || self.taken_stock.initialized().then(|| self.state().used_by_all());
        self.quotas.total.map(|limit| QuotaUse { repositories: String::new(), limit, used: used() })
    }

    /// How much of each rule is used. A rule with the patterns of an earlier one, which holds in its place, is left out.
    pub(crate) fn rule_uses(&self) -> Vec<QuotaUse> {
        let most = self.taken_stock.initialized().then(|| self.most_used());
        let mut uses: Vec<QuotaUse> = Vec::new();
        for (number, rule) in self.quotas.rules.iter().enumerate() {
            let repositories = rule.repositories.join(",");
            if !uses.iter().any(|earlier| earlier.repositories == repositories) {
                uses.push(QuotaUse { repositories, limit: rule.bytes, used: most.as_ref().map(|most| most[number]) });
            }
        }
        uses
    }

    /// Of each rule, what the repository has that has most.
    fn most_used(&self) -> Vec<u64> {
        // A copy, so that no push waits while patterns are compared.
        let (mut used, reserved) = {
            let state = self.state();
            (state.held.clone(), state.reserved.values().cloned().collect::<Vec<_>>())
        };
        reserved.into_iter().for_each(|(name, bytes)| *used.entry(name).or_default() += bytes);
        let mut most = vec![0; self.quotas.rules.len()];
        for (name, bytes) in used {
            if let Some(number) = self.rule(&name) {
                most[number] = bytes.max(most[number]);
            }
        }
        most
    }

    fn is_limited(&self) -> bool {
        self.quotas.total.is_some() || !self.quotas.rules.is_empty()
    }

    /// The number of the rule that holds for a repository.
    fn rule(&self, name: &str) -> Option<usize> {
        let is_meant = |rule: &QuotaRule| rule.repositories.iter().any(|pattern| matches(pattern, name));
        self.quotas.rules.iter().position(is_meant)
    }

    fn limit(&self, name: &str) -> Option<u64> {
        self.rule(name).map(|number| self.quotas.rules[number].bytes)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `more` bytes have room.
    fn check(&self, state: &State, name: &str, more: u64) -> Result<(), ApiError> {
        let refuse = |whose: &str, limit: u64, used: u64| {
            let detail = format!("{whose} may hold {limit} bytes and has {used}; there is no room for {more} more");
            Err(ApiError::new(Problem::Quota, detail))
        };
        match (self.limit(name), self.quotas.total) {
            (Some(limit), _) if state.used(name).saturating_add(more) > limit => {
                refuse(&format!("the repository `{name}`"), limit, state.used(name))
            }
            (_, Some(limit)) if state.used_by_all().saturating_add(more) > limit => {
                refuse("the registry", limit, state.used_by_all())
            }
            _ => Ok(()),
        }
    }

    /// Reserves as much as the upload has grown to; what it has reserved already is part of that.
    fn grow(&self, name: &str, id: Uuid, size: u64) -> Result<(), ApiError> {
        if let Some(limit) = self.quotas.blob.filter(|limit| size > *limit) {
            return Err(ApiError::new(
                Problem::BlobTooLarge,
                format!("a blob may have {limit} bytes, this has {size}"),
            ));
        }
        if !self.is_limited() {
            return Ok(());
        }
        let mut state = self.state();
        let before = state.reserved.get(&id).map_or(0, |(_, bytes)| *bytes);
        if size > before {
            self.check(&state, name, size - before)?;
            state.reserved.insert(id, (name.to_string(), size));
        }
        Ok(())
    }

    /// What an upload has reserved is what it has.
    fn settle(&self, name: &str, id: Uuid, size: Option<u64>) {
        let mut state = self.state();
        match size {
            Some(size) if size > 0 => drop(state.reserved.insert(id, (name.to_string(), size))),
            _ => drop(state.reserved.remove(&id)),
        }
    }

    /// The repository holds so much more; it is new to the registry, or not.
    fn arrived(&self, name: &str, bytes: u64, is_new: bool) {
        let mut state = self.state();
        state.add(name, bytes, is_new);
        if let Some(arrived) = &mut state.arrived {
            arrived.push((name.to_string(), bytes, is_new));
        }
    }
}

/// What one request may bring to an upload. When it is dropped because the client is gone, what has not come is not
/// reserved any more.
pub(crate) struct Budget<'a> {
    registry: &'a Arc<Inner>,
    name: &'a RepositoryName,
    id: Uuid,
    before: u64,
    /// What the upload may have got to.
    size: Arc<AtomicU64>,
    is_settled: bool,
    /// Why no more may come.
    exceeded: Arc<Mutex<Option<ApiError>>>,
}

impl<'a> Budget<'a> {
    /// For a request that promises `length` bytes, or has a body of unknown length. Fails when there is no room.
    pub(crate) async fn open(
        registry: &'a Arc<Inner>,
        name: &'a RepositoryName,
        id: Uuid,
        length: Option<u64>,
    ) -> Result<Budget<'a>, ApiError> {
        registry.take_stock_once().await?;
        let ledger = &registry.ledger;
        let status = if registry.is_watched() { registry.uploads.status(name, id).await? } else { None };
        let before = status.map_or(0, |status| status.size);
        // An upload that is not there is told so by whoever writes to it.
        if status.is_some() {
            ledger.grow(name.as_str(), id, before.saturating_add(length.unwrap_or(0)))?;
        }
        let (size, is_settled) = (Arc::new(AtomicU64::new(before)), status.is_none());
        Ok(Budget { registry, name, id, before, size, is_settled, exceeded: Arc::default() })
    }

    /// The bytes of the request, which end where there is no room.
    pub(crate) fn stream<'b>(&self, bytes: ByteStream<'b>) -> ByteStream<'b> {
        let (registry, name, id) = (self.registry.clone(), self.name.to_string(), self.id);
        let (mut size, grown, exceeded) = (self.before, self.size.clone(), self.exceeded.clone());
        let count = move |frame: Result<bytes::Bytes, String>| {
            let frame = frame?;
            size += frame.len() as u64;
            grown.store(size, Ordering::Relaxed);
            registry.ledger.grow(&name, id, size).map_err(|error| {
                *exceeded.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                "there is no room for it".to_string()
            })?;
            Ok(frame)
        };
        bytes.map(count).boxed()
    }

    /// What the upload has now is what is reserved, whatever was promised. Gives the error of a request that failed for
    /// want of room, and else `error`.
    pub(crate) async fn failed(mut self, error: ApiError) -> Result<ApiError, ApiError> {
        self.settle_now().await?;
        let exceeded = self.exceeded.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(exceeded.unwrap_or(error))
    }

    pub(crate) async fn settle(mut self) -> Result<(), ApiError> {
        self.settle_now().await
    }

    /// The upload has become a blob, which whoever links it counts.
    pub(crate) fn spent(mut self) {
        self.is_settled = true;
    }

    async fn settle_now(&mut self) -> Result<(), ApiError> {
        if self.registry.ledger.is_limited() {
            let status = self.registry.uploads.status(self.name, self.id).await?;
            self.registry.ledger.settle(self.name.as_str(), self.id, status.map(|status| status.size));
        }
        self.is_settled = true;
        Ok(())
    }
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        if !self.is_settled && self.registry.ledger.is_limited() {
            let size = self.size.load(Ordering::Relaxed);
            self.registry.ledger.settle(self.name.as_str(), self.id, Some(size));
        }
    }
}

impl Inner {
    /// Whether anything limits what uploads bring.
    pub(crate) fn is_watched(&self) -> bool {
        self.ledger.is_limited() || self.ledger.quotas.blob.is_some()
    }

    /// Fails when a repository has no room for an upload of so many bytes, however few.
    pub(crate) async fn admit_upload(self: &Arc<Self>, name: &RepositoryName, length: u64) -> Result<(), ApiError> {
        self.take_stock_once().await?;
        self.ledger.check(&self.ledger.state(), name.as_str(), length.max(1))
    }

    /// Forgets what an upload that is gone has reserved.
    pub(crate) fn release(&self, name: &RepositoryName, id: Uuid) {
        self.ledger.settle(name.as_str(), id, None);
    }

    /// Whether a blob is new to the registry, as far as somebody counts.
    pub(crate) async fn is_new(&self, digest: &Digest) -> Result<bool, StorageError> {
        Ok(self.ledger.is_limited() && self.blobs.stat(digest).await?.is_none())
    }

    /// Lets a repository hold a blob that is stored; one that is mounted only if there is room for it.
    pub(crate) async fn link(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        size: u64,
        kind: Arrival,
    ) -> Result<(), ApiError> {
        let ledger = &self.ledger;
        if !ledger.is_limited() {
            return Ok(self.metadata.link_blob(name, digest).await?);
        }
        let _alone = ledger.linking.lock().await;
        let is_held = self.metadata.claim_blob(name, digest).await?;
        match kind {
            Arrival::Mounted if !is_held => ledger.check(&ledger.state(), name.as_str(), size)?,
            Arrival::Mounted => {}
            Arrival::Uploaded(id, _) => ledger.settle(name.as_str(), id, None),
        }
        if !is_held {
            ledger.arrived(name.as_str(), size, matches!(kind, Arrival::Uploaded(_, true)));
        }
        Ok(self.metadata.link_blob(name, digest).await?)
    }

    /// Fails when there is no room for a manifest of so many bytes that the repository does not have yet.
    pub(crate) async fn admit_manifest(
        self: &Arc<Self>,
        name: &RepositoryName,
        digest: &Digest,
        size: u64,
    ) -> Result<(), ApiError> {
        self.take_stock_once().await?;
        let ledger = &self.ledger;
        if !ledger.is_limited() {
            return Ok(());
        }
        let _alone = ledger.linking.lock().await;
        if !self.metadata.claim_manifest(name, digest).await? {
            ledger.check(&ledger.state(), name.as_str(), size)?;
            ledger.arrived(name.as_str(), size, true);
        }
        Ok(())
    }

    /// Adds up what is stored, before anything is counted.
    pub(crate) async fn take_stock_once(self: &Arc<Self>) -> Result<(), StorageError> {
        if self.ledger.is_limited() {
            self.ledger.taken_stock.get_or_try_init(|| self.take_stock()).await?;
        }
        Ok(())
    }

    /// Adds up again what is stored, if it was before.
    pub(crate) async fn take_stock_again(self: &Arc<Self>) -> Result<(), StorageError> {
        if self.ledger.taken_stock.initialized() { self.take_stock().await } else { Ok(()) }
    }

    async fn take_stock(self: &Arc<Self>) -> Result<(), StorageError> {
        self.ledger.state().arrived = Some(Vec::new());
        let counted = self.add_up_all().await;
        let ids: Vec<(Uuid, String)> = {
            let mut state = self.ledger.state();
            let arrived = state.arrived.take().unwrap_or_default();
            (state.held, state.total) = counted?;
            // Perhaps counted already; rather twice than not at all.
            arrived.iter().for_each(|(name, bytes, is_new)| state.add(name, *bytes, *is_new));
            state.reserved.iter().map(|(id, (name, _))| (*id, name.clone())).collect()
        };
        // Uploads that were given up take no room.
        for (id, name) in ids {
            let Ok(repository) = name.parse() else { continue };
            if self.uploads.status(&repository, id).await?.is_none() {
                self.ledger.settle(&name, id, None);
            }
        }
        Ok(())
    }

    async fn add_up_all(self: &Arc<Self>) -> Result<(HashMap<String, u64>, u64), StorageError> {
        let registry = self.clone();
        let (mut held, mut total, manifests) = blocking(move || registry.add_up_blobs()).await?;
        let registry = self.clone();
        let size = move |(name, digest): (RepositoryName, Digest)| {
            let manifest = registry.metadata.peek_manifest(&name, &digest)?;
            Ok((name, manifest.map_or(0, |(_, bytes)| bytes.len() as u64)))
        };
        for (name, size) in blocking_each(manifests, size).await? {
            *held.entry(name.into()).or_default() += size;
            total += size;
        }
        Ok((held, total))
    }

    /// What blobs take of each repository and of all, and which manifests are to be added.
    #[expect(clippy::type_complexity)]
    fn add_up_blobs(&self) -> Result<(HashMap<String, u64>, u64, Vec<(RepositoryName, Digest)>), StorageError> {
        let sizes: HashMap<Digest, u64> = self.blobs.list()?.into_iter().collect();
        let mut held: HashMap<String, u64> = HashMap::new();
        for (name, digest, _) in self.metadata.walk_links()? {
            *held.entry(name.into()).or_default() += sizes.get(&digest).copied().unwrap_or_default();
        }
        let mut manifests = Vec::new();
        for found in self.metadata.walk_repositories()? {
            if let Found::Manifest(name, digest) = found {
                manifests.push((name, digest));
            }
        }
        Ok((held, sizes.values().sum(), manifests))
    }
}

/// How a blob got to a repository.
#[derive(Clone, Copy)]
pub(crate) enum Arrival {
    /// From another repository.
    Mounted,
    /// By this upload, and whether it is new to the registry.
    Uploaded(Uuid, bool),
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cfc_oci::Algorithm;

    use super::*;
    use crate::{Options, Registry};

    /// A request whose client goes away when all has been said is dropped in the middle of whatever it waits for.
    #[tokio::test]
    async fn what_a_dropped_request_had_promised_has_room_again() {
        let directory = tempfile::TempDir::new().expect("temporary directory");
        let rules = vec![QuotaRule { repositories: vec!["**".to_string()], bytes: 10_000 }];
        let quotas = Quotas { rules, ..Quotas::default() };
        let registry = Registry::open(directory.path(), Options { quotas, ..Options::default() }).expect("opens");
        let (inner, name) = (&registry.inner, "a".parse().expect("a name"));
        let id = inner.uploads.begin(&name, Algorithm::Sha256).await.expect("begins");
        let budget = Budget::open(inner, &name, id, Some(10_000)).await.expect("there is room");
        assert!(inner.admit_upload(&name, 1).await.is_err(), "all of it is promised");
        let frames = futures::stream::iter([Ok(Bytes::from_static(&[0; 10]))]).chain(futures::stream::pending());
        let mut body = budget.stream(frames.boxed());
        body.next().await.expect("a frame").expect("that fits");
        drop((body, budget));
        inner.admit_upload(&name, 9_990).await.expect("what never came is free");
        assert!(inner.admit_upload(&name, 9_991).await.is_err(), "what came is not");
    }
}
