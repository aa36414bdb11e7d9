//! Pull-through caching: repositories below a prefix are those of another registry. What a client asks for is fetched
//! once, verified, and kept as if it had been pushed; the handlers then serve it as they serve everything.
//!
//! An upstream is not trusted: content is what its digest says or is not kept, and where the upstream points, with a
//! token service or a redirect, is not followed to where only this machine could go.

mod client;
mod destination;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, Hasher, RepositoryName, Tag};
use futures::{FutureExt, future::BoxFuture, future::Shared};
use http::{Method, StatusCode};

use crate::error::{ApiError, Problem};
use crate::manifest::ManifestFacts;
use crate::quota::{Arrival, Budget};
use crate::registry::Inner;
use crate::route::{ManifestName, Resource};
use crate::{CommitError, StorageError};
use client::{Client, FetchError};

/// How long it is believed that there is nothing.
const NOTHING_FOR: Duration = Duration::from_secs(5);

/// What is remembered of tags and of what is not there; beyond this, all of it is forgotten.
const REMEMBERED: usize = 10_000;

/// A registry whose images are kept here.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `hub` for repositories `hub/…`.
    pub prefix: String,
    /// `https://registry.example`.
    pub url: String,
    /// Who we are there: a user name and a password.
    pub credentials: Option<(String, String)>,
    /// Hosts of token services, besides the upstream's own, that get these credentials.
    pub realms: Vec<String>,
    /// How long a tag is believed to point where it pointed.
    pub fresh: Duration,
}

/// All upstreams.
pub(crate) struct Upstreams(Vec<Arc<Source>>);

/// An upstream, and what is known of it.
struct Source {
    upstream: Upstream,
    client: Client,
    /// When a tag was looked up last.
    looked_up: Mutex<HashMap<(String, String), Instant>>,
    /// What was not there, and when.
    nothing: Mutex<HashMap<(String, String), Instant>>,
    /// What is fetched right now.
    fetching: Mutex<HashMap<(String, String), Fetching>>,
}

/// A fetch that all who want the same wait for. It goes on when they go away.
type Fetching = Shared<BoxFuture<'static, Result<(), Failed>>>;

/// Why something was not fetched, for each of those who waited.
#[derive(Clone, Debug)]
enum Failed {
    NotThere,
    /// The upstream cannot be reached, or has a problem of its own.
    Away(String),
    /// It gave something else than it promised, or points where we do not go.
    Wrong(String),
    /// Our own fault, which the log has.
    Storage,
}

impl Upstreams {
    pub(crate) fn new(upstreams: &[Upstream]) -> Upstreams {
        Upstreams(upstreams.iter().map(|upstream| Arc::new(Source::new(upstream.clone()))).collect())
    }

    /// The upstream of a repository, the one with the longest prefix, and what the repository is called there.
    fn of(&self, name: &RepositoryName) -> Option<(Arc<Source>, String)> {
        let inner = |source: &Arc<Source>| {
            let rest = name.as_str().strip_prefix(&source.upstream.prefix)?.strip_prefix('/')?;
            Some((source.clone(), rest.to_string()))
        };
        self.0.iter().filter_map(inner).max_by_key(|(source, _)| source.upstream.prefix.len())
    }
}

/// Makes sure that what a request is about is here, if an upstream has it. Repositories of upstreams are not written to.
pub(crate) async fn bring(
    registry: &Arc<Inner>,
    name: &RepositoryName,
    resource: &Resource,
    method: &Method,
) -> Result<(), ApiError> {
    let Some((source, remote)) = registry.upstreams.of(name) else { return Ok(()) };
    if !matches!(*method, Method::GET | Method::HEAD) {
        // What was kept of an upstream may be forgotten.
        return match *method {
            Method::DELETE if !matches!(resource, Resource::Upload(_)) => Ok(()),
            _ => Err(ApiError::new(Problem::ReadOnly, format!("it is a copy of {}", source.upstream.url))),
        };
    }
    match resource {
        Resource::Manifest(ManifestName::Tag(tag)) => source.bring_tag(registry, name, &remote, tag).await,
        Resource::Manifest(ManifestName::Digest(digest)) => {
            if registry.metadata.claim_manifest(name, digest).await? {
                return Ok(());
            }
            or_nothing(source.fetch(registry, name, &remote, Wanted::Manifest(digest.to_string())).await)
        }
        Resource::Blob(digest) => {
            if registry.metadata.claim_blob(name, digest).await? {
                return Ok(());
            }
            or_nothing(source.fetch(registry, name, &remote, Wanted::Blob(digest.clone())).await)
        }
        _ => Ok(()),
    }
}

/// That there is nothing the handler finds out for itself, and says in its own words.
fn or_nothing(fetched: Result<(), Failed>) -> Result<(), ApiError> {
    match fetched {
        Err(Failed::NotThere) => Ok(()),
        fetched => Ok(fetched?),
    }
}

/// What is to be fetched.
#[derive(Clone)]
enum Wanted {
    /// By tag or digest.
    Manifest(String),
    Blob(Digest),
}

impl Wanted {
    fn key(&self) -> String {
        match self {
            Wanted::Manifest(reference) => format!("manifests/{reference}"),
            Wanted::Blob(digest) => format!("blobs/{digest}"),
        }
    }
}

impl Source {
    fn new(upstream: Upstream) -> Source {
        let client = Client::new(&upstream);
        Source { upstream, client, looked_up: Mutex::default(), nothing: Mutex::default(), fetching: Mutex::default() }
    }

    /// Asks where a tag points unless that is known; an upstream that is away leaves it where it pointed.
    async fn bring_tag(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        tag: &Tag,
    ) -> Result<(), ApiError> {
        let key = (name.to_string(), tag.to_string());
        let is_kept = registry.metadata.tag(name, tag).await?.is_some();
        let is_fresh = lock(&self.looked_up).get(&key).is_some_and(|when| when.elapsed() < self.upstream.fresh);
        if is_kept && is_fresh {
            return Ok(());
        }
        match self.fetch(registry, name, remote, Wanted::Manifest(tag.to_string())).await {
            Ok(()) => {
                remember(&self.looked_up, key);
                Ok(())
            }
            Err(Failed::Away(why)) if is_kept => {
                tracing::warn!(%name, %tag, why, "serving a tag as it was");
                Ok(())
            }
            // It was there.
            Err(Failed::NotThere) if is_kept => Err(ApiError::new(Problem::ManifestUnknown, tag)),
            failed => or_nothing(failed),
        }
    }

    /// Fetches, or waits for who does.
    async fn fetch(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        wanted: Wanted,
    ) -> Result<(), Failed> {
        let key = (name.to_string(), wanted.key());
        if lock(&self.nothing).get(&key).is_some_and(|when| when.elapsed() < NOTHING_FOR) {
            return Err(Failed::NotThere);
        }
        let fetching = {
            let mut all = lock(&self.fetching);
            all.get(&key).cloned().unwrap_or_else(|| {
                let fetching = self.clone().begin(registry.clone(), name.clone(), remote.to_string(), wanted);
                all.insert(key.clone(), fetching.clone());
                fetching
            })
        };
        fetching.await
    }

    fn begin(self: Arc<Self>, registry: Arc<Inner>, name: RepositoryName, remote: String, wanted: Wanted) -> Fetching {
        let key = (name.to_string(), wanted.key());
        let task = tokio::spawn(async move {
            let fetched = match &wanted {
                Wanted::Manifest(reference) => self.fetch_manifest(&registry, &name, &remote, reference).await,
                Wanted::Blob(digest) => self.fetch_blob(&registry, &name, &remote, digest).await,
            };
            if let Err(Failed::NotThere) = fetched {
                remember(&self.nothing, key.clone());
            }
            lock(&self.fetching).remove(&key);
            fetched
        });
        let ended = async { task.await.unwrap_or(Err(Failed::Storage)) };
        ended.boxed().shared()
    }

    async fn fetch_manifest(
        &self,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        reference: &str,
    ) -> Result<(), Failed> {
        let limit = registry.options.max_manifest_bytes;
        let (media_type, bytes) = self.client.manifest(remote, reference, limit).await?;
        let digest = verified(reference, &bytes)?;
        let facts = ManifestFacts::parse(media_type.as_deref(), &bytes)
            .map_err(|error| Failed::Wrong(format!("the manifest `{reference}` is not valid: {error}")))?;
        let metadata = &registry.metadata;
        let _hold = registry.holds.hold([digest.clone()]);
        registry.admit_manifest(name, &digest, bytes.len() as u64).await.map_err(no_room)?;
        metadata.put_manifest(name, &digest, &facts.media_type, &bytes).await?;
        if let Some(subject) = &facts.subject {
            let referrer = facts.referrer(digest.clone(), bytes.len() as u64);
            metadata.put_referrer(name, subject, &referrer).await?;
        }
        if let Ok(tag) = reference.parse::<Tag>() {
            metadata.note_tag(name, &tag, &digest).await?;
            let descriptor = Descriptor::new(&facts.media_type, digest, bytes.len() as u64);
            metadata.put_tag(name, &tag, &descriptor, false).await?;
        }
        Ok(())
    }

    /// Takes a blob in by way of an upload, which compares what came with the digest.
    async fn fetch_blob(
        &self,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        digest: &Digest,
    ) -> Result<(), Failed> {
        let body = self.client.blob(remote, digest).await?;
        let _hold = registry.holds.hold([digest.clone()]);
        let id = registry.uploads.begin(name, digest.algorithm()).await?;
        let budget = Budget::open(registry, name, id, None).await.map_err(no_room)?;
        let is_new = registry.is_new(digest).await?;
        match registry.uploads.commit(name, id, None, budget.stream(body), digest).await {
            Ok(size) => registry.link(name, digest, size, Arrival::Uploaded(id, is_new)).await.map_err(no_room),
            Err(error) => {
                registry.uploads.abort(name, id).await?;
                registry.release(name, id);
                Err(match error {
                    CommitError::Append(crate::AppendError::Body(why)) => Failed::Away(why),
                    CommitError::Append(crate::AppendError::Storage(error)) => error.into(),
                    error => Failed::Wrong(error.to_string()),
                })
            }
        }
    }
}

/// What is kept of upstreams counts as what is pushed.
fn no_room(error: ApiError) -> Failed {
    Failed::Wrong(error.to_string())
}

/// The digest of a manifest, which is the one that it was asked for by.
fn verified(reference: &str, bytes: &Bytes) -> Result<Digest, Failed> {
    let Ok(expected) = reference.parse::<Digest>() else { return Ok(Digest::of(bytes)) };
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    match found == expected {
        true => Ok(found),
        false => Err(Failed::Wrong(format!("the manifest is {found} instead of {expected}"))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(times: &Mutex<HashMap<(String, String), Instant>>, key: (String, String)) {
    let mut times = lock(times);
    if times.len() >= REMEMBERED {
        times.clear();
    }
    times.insert(key, Instant::now());
}

impl From<StorageError> for Failed {
    fn from(error: StorageError) -> Failed {
        tracing::error!(error = %crate::error::Chain(&error), "storage failed");
        Failed::Storage
    }
}

impl From<FetchError> for Failed {
    fn from(error: FetchError) -> Failed {
        match error {
            FetchError::Status(StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Failed::NotThere
            }
            FetchError::Status(status) => Failed::Away(format!("it answered {status}")),
            FetchError::Unreachable(why) => Failed::Away(why),
            FetchError::Refused(why) => Failed::Wrong(why),
        }
    }
}

impl From<Failed> for ApiError {
    fn from(failed: Failed) -> ApiError {
        match failed {
            Failed::NotThere => Problem::NotFound.into(),
            Failed::Away(why) => ApiError::new(Problem::UpstreamAway, why).with_header(http::header::RETRY_AFTER, "5"),
            Failed::Wrong(why) => {
                tracing::error!(why, "an upstream is not believed");
                ApiError::new(Problem::UpstreamWrong, why)
            }
            Failed::Storage => Problem::Internal.into(),
        }
    }
}
