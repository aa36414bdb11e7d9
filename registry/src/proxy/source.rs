//! [`Source`]: one upstream, and bringing here what it has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::Response;
use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, Hasher, RepositoryName, Tag};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant as Deadline, timeout, timeout_at};

use super::client::{Client, FetchError};
use super::coming::Coming;
use super::failed::Failed;
use super::flights::{Flight, Flights, Teller};
use super::{NOTHING_FOR, REMEMBERED, Upstream, lock, passing};
use crate::manifest::ManifestFacts;
use crate::metadata::Publication;
use crate::registry::Inner;
use crate::{ByteStream, StorageError};

/// Fetches that wait for their turn.
const WAITING: usize = 1000;

/// How long somebody waits for the turn to ask what is answered at once, and how long for the answer who has another to
/// fall back on.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
const RENEWAL_PATIENCE: Duration = Duration::from_secs(10);

/// For how long an upstream that was away is not asked by those who have something to fall back on.
const AWAY_FOR: Duration = Duration::from_secs(5);

/// How often the log is told that the same fails in one repository, whose clients come as often as they like.
const LOGGED_EVERY: Duration = Duration::from_secs(5);

/// What is remembered of, and fetched for, one repository: a kind and a reference.
pub(super) type Key = (String, String);

/// What is fetched, of which a blob tells when it comes.
pub(super) type Fetch = Flight<Result<(), Failed>, Arc<Coming>>;

/// An upstream, and what is known of it.
pub(super) struct Source {
    pub(super) upstream: Upstream,
    pub(super) client: Arc<Client>,
    /// When a tag was looked up last.
    looked_up: Mutex<HashMap<Key, Instant>>,
    /// What was not there, and when.
    pub(super) nothing: Mutex<HashMap<Key, Instant>>,
    /// What had no room while clients were given it, and when.
    pub(super) no_room: Mutex<HashMap<Key, Instant>>,
    /// What is fetched right now, or waits for it.
    fetching: Flights<Key, Result<(), Failed>, Arc<Coming>>,
    /// Turns to fetch a blob, which may take long.
    pub(super) blobs: Arc<Semaphore>,
    /// Turns to ask for anything else.
    questions: Arc<Semaphore>,
    /// Turns to be passed a blob, whose pace is the client's.
    pub(super) passing: Arc<Semaphore>,
    /// When it was away last.
    away: Mutex<Option<Instant>>,
    /// What failed in a repository when the log was told of it last.
    logged: Mutex<HashMap<Key, Instant>>,
}

/// What is to be fetched.
#[derive(Clone)]
pub(super) enum Wanted {
    /// By tag or digest.
    Manifest(String),
    Blob(Digest),
}

impl Wanted {
    pub(super) fn key(&self, name: &RepositoryName) -> Key {
        let what = match self {
            Wanted::Manifest(reference) => format!("manifests/{reference}"),
            Wanted::Blob(digest) => format!("blobs/{digest}"),
        };
        (name.to_string(), what)
    }
}

/// What came of asking for one who has something to fall back on.
enum Asked {
    Answered(Result<(), Failed>),
    /// Why there is no answer.
    Unanswered(String),
}

/// A manifest as it came, verified.
struct Manifest {
    facts: ManifestFacts,
    digest: Digest,
    bytes: Bytes,
}

impl Source {
    /// Fails when it cannot be asked as it must be.
    pub(super) fn new(upstream: Upstream) -> Result<Source, StorageError> {
        let turns = || Arc::new(Semaphore::new(upstream.fetches));
        Ok(Source {
            client: Arc::new(Client::new(&upstream)?),
            looked_up: Mutex::default(),
            nothing: Mutex::default(),
            no_room: Mutex::default(),
            fetching: Flights::default(),
            blobs: turns(),
            questions: turns(),
            passing: turns(),
            away: Mutex::default(),
            logged: Mutex::default(),
            upstream,
        })
    }

    /// Asks where a tag points unless that is known; an upstream that is away leaves it where it pointed.
    pub(super) async fn bring_tag(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        tag: &Tag,
    ) -> Result<(), Failed> {
        let key = (name.to_string(), tag.to_string());
        let kept = registry.metadata.tag(name, tag).await?.map(|descriptor| descriptor.digest);
        let is_fresh = lock(&self.looked_up).get(&key).is_some_and(|when| when.elapsed() < self.upstream.fresh);
        if kept.is_some() && is_fresh {
            return Ok(());
        }
        let renewed = match kept {
            Some(_) if self.is_away() => return Ok(()),
            Some(kept) => self.renew_tag(registry, name, remote, tag, kept).await,
            None => Asked::Answered(self.fetch(registry, name, remote, Wanted::Manifest(tag.to_string())).await),
        };
        match renewed {
            Asked::Answered(Ok(())) => {
                remember(&self.looked_up, key);
                Ok(())
            }
            Asked::Answered(failed) => failed,
            Asked::Unanswered(why) => {
                tracing::warn!(upstream = self.upstream.url, %name, %tag, why, "serving a tag as it was");
                Ok(())
            }
        }
    }

    /// Tells the log which upstream did not give what a client wants, and why.
    pub(super) fn log(&self, name: &RepositoryName, failed: &Failed) {
        let key = (name.to_string(), failed.outcome().to_string());
        if lock(&self.logged).get(&key).is_some_and(|when| when.elapsed() < LOGGED_EVERY) {
            return;
        }
        remember(&self.logged, key);
        let upstream = &self.upstream.url;
        match failed {
            Failed::Denied(why) => tracing::warn!(upstream, %name, why, "an upstream refuses us"),
            Failed::Away(why) => tracing::warn!(upstream, %name, why, "an upstream is away"),
            Failed::Wrong(why) => tracing::error!(upstream, %name, why, "an upstream is not believed"),
            Failed::Busy => tracing::warn!(upstream, %name, "too much is fetched from an upstream already"),
            // Nothing failed, or the log has it.
            Failed::NotThere | Failed::NoRoom(_) | Failed::Storage => {}
        }
    }

    fn is_away(&self) -> bool {
        lock(&self.away).is_some_and(|when| when.elapsed() < AWAY_FOR)
    }

    /// One that is away is not asked again at once.
    fn require_present(&self) -> Result<(), Failed> {
        match self.is_away() {
            true => Err(Failed::Away("it was away a moment ago".to_string())),
            false => Ok(()),
        }
    }

    /// Fetches what a tag points at unless that is here: upstreams count what is fetched rather than what is asked. All who
    /// ask for the same tag wait for one.
    async fn renew_tag(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        tag: &Tag,
        kept: Digest,
    ) -> Asked {
        let begin = |_| {
            let (source, registry, name) = (self.clone(), registry.clone(), name.clone());
            let (remote, tag) = (remote.to_string(), tag.clone());
            async move {
                let has_manifest = registry.metadata.claim_manifest(&name, &kept).await?;
                let is_same = has_manifest && source.points_at(&remote, &tag).await?.is_some_and(|found| found == kept);
                match is_same {
                    true => Ok(()),
                    false => source.fetch(&registry, &name, &remote, Wanted::Manifest(tag.to_string())).await,
                }
            }
        };
        self.fall_back(&(name.to_string(), format!("tags/{tag}")), begin).await
    }

    /// Where the upstream says that a tag points; `None` when it does not say.
    async fn points_at(&self, remote: &str, tag: &Tag) -> Result<Option<Digest>, Failed> {
        let question = async {
            self.require_present()?;
            self.patiently(self.client.tag(remote, tag.as_str())).await
        };
        self.ask(question).await?
    }

    /// An answer that must not take long, since who asks has something to fall back on.
    async fn patiently<T>(&self, question: impl Future<Output = Result<T, FetchError>>) -> Result<T, Failed> {
        let answer = match timeout(RENEWAL_PATIENCE, question).await {
            Ok(answer) => answer.map_err(Failed::from),
            Err(_) => {
                self.client.contacts.failed("away");
                Err(Failed::Away("it does not answer".to_string()))
            }
        };
        if let Err(Failed::Away(_)) = answer {
            *lock(&self.away) = Some(Instant::now());
        }
        answer
    }

    /// Joins `begin`, as one who has something to fall back on when nobody answers.
    async fn fall_back<Work>(&self, key: &Key, begin: impl FnOnce(Teller<Arc<Coming>>) -> Work) -> Asked
    where
        Work: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let Some(flight) = self.fetching.join(key, self.most(), begin) else {
            return Asked::Unanswered("too much is asked already".to_string());
        };
        match flight.landed().await.unwrap_or(Err(Failed::Storage)) {
            Err(Failed::Away(why)) => {
                *lock(&self.away) = Some(Instant::now());
                Asked::Unanswered(why)
            }
            Err(Failed::Busy) => Asked::Unanswered("it has no turn to be asked".to_string()),
            answered => Asked::Answered(answered),
        }
    }

    /// Fetches and questions at once, those that wait included.
    fn most(&self) -> usize {
        self.upstream.fetches.saturating_add(WAITING)
    }

    /// Fetches, or waits for who does.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        wanted: Wanted,
    ) -> Result<(), Failed> {
        ended(self.begin(registry, name, remote, wanted)?, name).await
    }

    /// Begins to fetch, or joins who does.
    pub(super) fn begin(
        self: &Arc<Self>,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        wanted: Wanted,
    ) -> Result<Fetch, Failed> {
        let key = wanted.key(name);
        if self.is_known_not_there(&key) {
            return Err(Failed::NotThere);
        }
        let begin = |teller| {
            let (source, registry, name) = (self.clone(), registry.clone(), name.clone());
            let (remote, key) = (remote.to_string(), key.clone());
            async move {
                let fetched = match &wanted {
                    Wanted::Manifest(reference) => source.fetch_manifest(&registry, &name, &remote, reference).await,
                    Wanted::Blob(digest) => source.fetch_blob(&registry, &name, &remote, digest, teller).await,
                };
                if let Err(Failed::NotThere) = fetched {
                    remember(&source.nothing, key);
                }
                fetched
            }
        };
        self.fetching.join(&key, self.most(), begin).ok_or(Failed::Busy)
    }

    pub(super) fn is_known_not_there(&self, key: &Key) -> bool {
        lock(&self.nothing).get(key).is_some_and(|when| when.elapsed() < NOTHING_FOR)
    }

    async fn fetch_manifest(
        &self,
        registry: &Arc<Inner>,
        name: &RepositoryName,
        remote: &str,
        reference: &str,
    ) -> Result<(), Failed> {
        let Manifest { facts, digest, bytes } = self.manifest(registry, remote, reference).await?;
        let metadata = &registry.metadata;
        let _hold = registry.holds.hold([digest.clone()]);
        registry.admit_manifest(name, &digest, bytes.len() as u64).await?;
        let tags: Vec<Tag> = reference.parse().into_iter().collect();
        let publication = Publication { facts: &facts, digest: &digest, bytes: &bytes, tags: &tags };
        // The upstream's tags go where they go there.
        metadata.publish(name, publication, &|_| false).await?;
        Ok(())
    }

    async fn manifest(&self, registry: &Inner, remote: &str, reference: &str) -> Result<Manifest, Failed> {
        let limit = registry.options.max_manifest_bytes;
        let (media_type, bytes) = self.ask(self.client.manifest(remote, reference, limit)).await??;
        let digest = verified(reference, &bytes)?;
        let facts = ManifestFacts::parse(media_type.as_deref(), &bytes)
            .map_err(|error| Failed::Wrong(format!("the manifest `{reference}` is not valid: {error}")))?;
        Ok(Manifest { facts, digest, bytes })
    }

    /// Gives the client a manifest that is not kept.
    pub(super) async fn pass_manifest(
        &self,
        registry: &Inner,
        remote: &str,
        reference: &str,
        is_head: bool,
    ) -> Result<Response, Failed> {
        let Manifest { facts, digest, bytes } = self.manifest(registry, remote, reference).await?;
        Ok(passing::manifest(&digest, &facts.media_type, bytes, is_head))
    }

    /// What refers to a manifest at the upstream. One that is away is not asked again at once.
    pub(super) async fn referrers(
        &self,
        registry: &Inner,
        remote: &str,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, Failed> {
        self.require_present()?;
        let limit = registry.options.max_manifest_bytes;
        self.ask(self.patiently(self.client.referrers(remote, subject, limit))).await?
    }

    /// The tags that the upstream has, sorted bytewise.
    pub(super) async fn tags(&self, registry: &Inner, remote: &str) -> Result<Vec<String>, Failed> {
        self.require_present()?;
        let limit = registry.options.max_manifest_bytes;
        let mut tags = self.ask(self.patiently(self.client.tags(remote, limit))).await??;
        tags.retain(|tag| tag.parse::<Tag>().is_ok());
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    /// Has its turn to ask something that is answered at once.
    pub(super) async fn ask<T>(&self, question: impl Future<Output = T>) -> Result<T, Failed> {
        let deadline = self.deadline();
        let _turn = turn(&self.questions, deadline.min(Deadline::now() + TURN_PATIENCE)).await?;
        within(deadline, question).await
    }

    pub(super) fn deadline(&self) -> Deadline {
        let now = Deadline::now();
        // A time that no clock reaches is no limit.
        now.checked_add(self.upstream.timeout).unwrap_or_else(|| now + super::TIMEOUT)
    }
}

/// How a fetch ends.
pub(super) async fn ended(fetch: Fetch, name: &RepositoryName) -> Result<(), Failed> {
    fetch.landed().await.unwrap_or_else(|| {
        tracing::error!(%name, "fetching from an upstream broke off by a fault of ours");
        Err(Failed::Storage)
    })
}

pub(super) async fn turn(turns: &Arc<Semaphore>, deadline: Deadline) -> Result<OwnedSemaphorePermit, Failed> {
    let turn = timeout_at(deadline, turns.clone().acquire_owned()).await;
    turn.map_err(|_| Failed::Busy)?.map_err(|_| Failed::Busy)
}

pub(super) async fn within<T>(deadline: Deadline, work: impl Future<Output = T>) -> Result<T, Failed> {
    timeout_at(deadline, work).await.map_err(|_| Failed::Away(late()))
}

fn late() -> String {
    "it took longer than `timeout` allows".to_string()
}

/// Bytes as they come, until the deadline.
pub(super) fn until(deadline: Deadline, bytes: ByteStream<'static>) -> ByteStream<'static> {
    let next = move |bytes: Option<ByteStream<'static>>| async move {
        let mut bytes = bytes?;
        match timeout_at(deadline, bytes.next()).await {
            Ok(frame) => frame.map(|frame| (frame, Some(bytes))),
            Err(_) => Some((Err(late()), None)),
        }
    };
    futures::stream::unfold(Some(bytes), next).boxed()
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

pub(super) fn remember(times: &Mutex<HashMap<Key, Instant>>, key: Key) {
    let mut times = lock(times);
    if times.len() >= REMEMBERED {
        times.clear();
    }
    times.insert(key, Instant::now());
}
