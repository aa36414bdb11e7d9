//! Blobs of an upstream: the half of [`Source`] that brings them here, or passes them on.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use cfc_oci::{Digest, RepositoryName};
use uuid::Uuid;

use super::coming::{Coming, Feed};
use super::failed::Failed;
use super::flights::Teller;
use super::source::{Source, Wanted, remember, turn, until, within};
use super::{lock, passing, resuming};
use crate::error::Problem;
use crate::quota::{Arrival, Budget};
use crate::registry::Inner;
use crate::{AppendError, CommitError, Content};

/// For how long what had no room while clients were given it is passed on at once: the next try would end where this one
/// did.
const NO_ROOM_FOR: Duration = Duration::from_secs(5 * 60);

impl Source {
    /// Takes a blob in by way of an upload, which compares what came with the digest. Tells those who wait what comes.
    pub(super) async fn fetch_blob(
        &self,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        digest: &Digest,
        teller: Teller<Arc<Coming>>,
    ) -> Result<(), Failed> {
        // Another fetch may have ended since somebody looked.
        if registry.metadata.claim_blob(name, digest).await? {
            return Ok(());
        }
        let fetched = self.bring_blob(registry, name, remote, digest, &teller).await;
        registry.metrics.count_fetched(fetched.as_ref().map_or_else(Failed::outcome, |()| "kept"));
        if let Err(failed) = &fetched
            && teller.borrow().is_some()
        {
            let upstream = &self.upstream.url;
            tracing::error!(upstream, %name, %digest, ?failed, "clients are not given the end of a blob from an upstream");
            if let Failed::NoRoom(_) = failed {
                remember(&self.no_room, Wanted::Blob(digest.clone()).key(name));
            }
        }
        fetched
    }

    async fn bring_blob(
        &self,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        digest: &Digest,
        teller: &Teller<Arc<Coming>>,
    ) -> Result<(), Failed> {
        let deadline = self.deadline();
        let _turn = turn(&self.blobs, deadline).await?;
        let mut content = within(deadline, resuming::blob(&self.client, remote, digest)).await??;
        content.bytes = until(deadline, content.bytes);
        let _hold = registry.holds.hold([digest.clone()]);
        let id = registry.uploads.begin(name, digest.algorithm()).await?;
        let kept = keep(registry, name, id, digest, content, teller).await;
        if kept.is_err() {
            // Where this fails too, the upload is gone when it expires.
            let _ = registry.uploads.abort(name, id).await.map_err(Failed::from);
            registry.release(name, id);
        }
        kept
    }

    /// Whether a blob had no room a while ago.
    pub(super) fn had_no_room(&self, name: &RepositoryName, digest: &Digest) -> bool {
        let key = Wanted::Blob(digest.clone()).key(name);
        lock(&self.no_room).get(&key).is_some_and(|when| when.elapsed() < NO_ROOM_FOR)
    }

    /// The size of a blob that is not here; `None` when the upstream does not tell it.
    pub(super) async fn blob_size(
        &self,
        name: &RepositoryName,
        remote: &str,
        digest: &Digest,
    ) -> Result<Option<u64>, Failed> {
        let key = Wanted::Blob(digest.clone()).key(name);
        if self.is_known_not_there(&key) {
            return Err(Failed::NotThere);
        }
        let size = self.ask(self.client.blob_size(remote, digest)).await?.map_err(Failed::from);
        if let Err(Failed::NotThere) = size {
            remember(&self.nothing, key);
        }
        size
    }

    /// Gives the client a blob that is not kept.
    pub(super) async fn pass_blob(&self, remote: &str, digest: &Digest) -> Result<Response, Failed> {
        let deadline = self.deadline();
        let turn = turn(&self.passing, deadline).await?;
        let content = within(deadline, resuming::blob(&self.client, remote, digest)).await??;
        Ok(passing::blob(digest, content.length, until(deadline, content.bytes), turn))
    }
}

/// Keeps what comes as the upload `id`, if there is room for it.
async fn keep(
    registry: &Arc<Inner>,
    name: &RepositoryName,
    id: Uuid,
    digest: &Digest,
    content: Content<'static>,
    teller: &Teller<Arc<Coming>>,
) -> Result<(), Failed> {
    let budget = Budget::open(registry, name, id, content.length).await?;
    let is_new = registry.is_new(digest).await?;
    let feed = Feed::open(registry, id, digest, content.length).await?;
    // What may turn out to have no room is not begun with: it can still be passed on whole.
    if content.length.is_some() || !registry.is_watched() {
        teller.send_replace(Some(feed.coming()));
    }
    let body = Content { length: content.length, bytes: feed.pass(budget.stream(content.bytes)) };
    let failed = match registry.uploads.commit(name, id, None, body, digest).await {
        Ok(size) => {
            budget.spent();
            registry.link(name, digest, size, Arrival::Uploaded(id, is_new)).await?;
            feed.kept(size);
            return Ok(());
        }
        Err(CommitError::Append(AppendError::Body(why))) => Failed::Away(why),
        Err(CommitError::Append(AppendError::Storage(error))) => error.into(),
        Err(CommitError::Append(error @ (AppendError::TooLarge { .. } | AppendError::UnequalParts))) => {
            Failed::NoRoom(error.to_string())
        }
        Err(error) => Failed::Wrong(error.to_string()),
    };
    // What there was no room for ended like an upstream that goes away.
    match Failed::from(budget.failed(Problem::Internal.into()).await?) {
        no_room @ Failed::NoRoom(_) => Err(no_room),
        _ => Err(failed),
    }
}
