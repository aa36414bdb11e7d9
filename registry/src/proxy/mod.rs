//! Pull-through caching: repositories below a prefix are those of another registry. What a client asks for is fetched
//! once, verified, and kept as if it had been pushed; the handlers then serve it as they serve everything. Who wants a blob
//! meanwhile is given it as it comes. What there is no room for is passed on without being kept: a client who wants an
//! image wants it all the same.
//!
//! An upstream is not trusted: content is what its digest says or is not kept, and where the upstream points, with a
//! token service or a redirect, is not followed to where only this machine could go.

mod source;

mod blobs;
mod coming;
mod failed;
mod flights;
mod passing;
mod window;

mod challenge;
mod client;
mod contacts;
mod destination;
mod login;
mod resuming;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::Response;
use cfc_oci::{Descriptor, RepositoryName, Tag};
use http::{HeaderMap, Method, request::Parts};

use crate::StorageError;
use crate::error::{ApiError, Problem};
use crate::registry::Inner;
use crate::route::{ManifestName, Resource};
pub(crate) use coming::Portion;
pub(crate) use contacts::UpstreamState;
use failed::Failed;
pub use login::Login;
use source::{Fetch, Source, Wanted, ended};

/// How long it is believed that there is nothing.
const NOTHING_FOR: Duration = Duration::from_secs(5);

/// What is remembered of tags and of what is not there; beyond this, all of it is forgotten.
const REMEMBERED: usize = 10_000;

/// How long one fetch may take, and how many go on at once, unless the operator says.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);
const FETCHES: usize = 16;

/// A registry whose images are kept here.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `hub` for repositories `hub/…`.
    pub prefix: String,
    /// `https://registry.example`.
    pub url: String,
    /// How clients that use this registry as a mirror call it (`ns`, distribution-spec, "Registry Proxying"): `docker.io`. Their
    /// `library/debian` is `hub/library/debian` here. `None` for the host and port of its URL.
    pub namespace: Option<String>,
    /// Who we are there.
    pub credentials: Option<Login>,
    /// Token services, besides the upstream's own server, that get these credentials and may be anywhere, as `host` or
    /// `host:port`.
    pub realms: Vec<String>,
    /// Servers that the upstream may redirect to wherever they are, as `host` or `host:port`. Others must be ones that
    /// everybody could reach.
    pub redirects: Vec<String>,
    /// A file of certificates (PEM) to trust besides the system's, for its own server and those that `realms` and `redirects`
    /// name.
    pub ca: Option<PathBuf>,
    /// How long a tag is believed to point where it pointed.
    pub fresh: Duration,
    /// Blobs that are fetched at once; others wait. As many manifests and smaller things besides.
    pub fetches: usize,
    /// How long one fetch may take, its waiting included.
    pub timeout: Duration,
}

impl Upstream {
    /// One that wants no login, as others are unless somebody says.
    pub fn new(prefix: &str, url: &str) -> Upstream {
        Upstream {
            prefix: prefix.to_string(),
            url: url.to_string(),
            namespace: None,
            credentials: None,
            realms: Vec::new(),
            redirects: Vec::new(),
            ca: None,
            fresh: Duration::from_secs(60),
            fetches: FETCHES,
            timeout: TIMEOUT,
        }
    }
}

impl Upstream {
    /// Whether clients call it so.
    fn is_called(&self, namespace: &str) -> bool {
        match &self.namespace {
            Some(name) => name == namespace,
            None => self.url.split_once("://").is_some_and(|(_, rest)| rest.split('/').next() == Some(namespace)),
        }
    }
}

/// All upstreams.
pub(crate) struct Upstreams(Vec<Arc<Source>>);

impl Upstreams {
    /// Fails when one of them cannot be asked as it must be.
    pub(crate) fn new(upstreams: &[Upstream]) -> Result<Upstreams, StorageError> {
        let sources = upstreams.iter().map(|upstream| Source::new(upstream.clone()).map(Arc::new));
        Ok(Upstreams(sources.collect::<Result<_, _>>()?))
    }

    /// The prefix of each, and how it is with it.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&str, UpstreamState)> {
        self.0.iter().map(|source| (source.upstream.prefix.as_str(), source.client.contacts.state()))
    }

    /// What the repository is called here that clients call `name` in the registry `namespace`; `None` when that is no
    /// upstream.
    pub(crate) fn mirrored(&self, namespace: &str, name: &RepositoryName) -> Option<RepositoryName> {
        let source = self.0.iter().find(|source| source.upstream.is_called(namespace))?;
        let prefix = &source.upstream.prefix;
        match name.as_str().strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('/')) {
            true => Some(name.clone()),
            false => format!("{prefix}/{name}").parse().ok(),
        }
    }

    /// Whether a repository is one of an upstream's.
    pub(crate) fn has(&self, name: &RepositoryName) -> bool {
        self.of(name).is_some()
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

/// What came of asking an upstream.
pub(crate) enum Brought {
    /// The handler finds it here, or finds out that there is nothing and says so in its own words.
    Here,
    /// The client's answer, of what is not kept.
    Answer(Box<Response>),
    /// A blob, or a part of one, that is on its way here.
    Coming(Portion),
    /// What refers to a manifest there, besides what is kept here.
    Referrers(Vec<Descriptor>),
    /// The tags that there are, sorted; those that are kept and are not among them are of the past.
    Tags(Vec<String>),
}

/// Makes sure that what a request is about is here, if an upstream has it. Repositories of upstreams are not written to.
pub(crate) async fn bring(
    registry: &Arc<Inner>,
    name: &RepositoryName,
    resource: &Resource,
    request: &Parts,
) -> Result<Brought, ApiError> {
    let Some((source, remote)) = registry.upstreams.of(name) else { return Ok(Brought::Here) };
    if !matches!(request.method, Method::GET | Method::HEAD) {
        // What was kept of an upstream may be forgotten.
        return match request.method {
            Method::DELETE if !matches!(resource, Resource::Upload(_)) => Ok(Brought::Here),
            _ => Err(ApiError::new(Problem::ReadOnly, format!("it is a copy of {}", source.upstream.url))),
        };
    }
    let (headers, is_head) = (&request.headers, request.method == Method::HEAD);
    let asking = Asking { registry, source: &source, name, remote: &remote, headers, is_head };
    match resource {
        Resource::Manifest(ManifestName::Tag(tag)) => asking.for_tag(tag).await,
        Resource::Manifest(ManifestName::Digest(digest)) => {
            if registry.metadata.claim_manifest(name, digest).await? {
                return Ok(Brought::Here);
            }
            let reference = digest.to_string();
            let fetched = source.fetch(registry, name, &remote, Wanted::Manifest(reference.clone())).await;
            asking.manifest(&reference, fetched).await
        }
        Resource::Blob(digest) => {
            if registry.metadata.claim_blob(name, digest).await? {
                return Ok(Brought::Here);
            }
            asking.for_blob(digest).await
        }
        Resource::Referrers(subject) => asking.for_referrers(subject).await,
        Resource::Tags => asking.for_tags().await,
        _ => Ok(Brought::Here),
    }
}

/// A request for something of a repository of an upstream.
struct Asking<'a> {
    registry: &'a Arc<Inner>,
    source: &'a Arc<Source>,
    name: &'a RepositoryName,
    /// What the repository is called there.
    remote: &'a str,
    headers: &'a HeaderMap,
    is_head: bool,
}

impl Asking<'_> {
    /// Also who only looks gets the manifest brought here: it is small, and clients that look pull by digest next, so
    /// that nobody would ever learn to what the tag points while the upstream is away.
    async fn for_tag(&self, tag: &Tag) -> Result<Brought, ApiError> {
        let Asking { registry, source, name, remote, .. } = self;
        match source.bring_tag(registry, name, remote, tag).await {
            // What is kept of it is of the past.
            Err(Failed::NotThere) => Err(ApiError::new(Problem::ManifestUnknown, tag)),
            fetched => self.manifest(tag.as_str(), fetched).await,
        }
    }

    async fn manifest(&self, reference: &str, fetched: Result<(), Failed>) -> Result<Brought, ApiError> {
        match fetched {
            Err(Failed::NoRoom(why)) => {
                self.warn_of_no_room(&why);
                let passed = self.source.pass_manifest(self.registry, self.remote, reference, self.is_head).await;
                self.passed_on(passed)
            }
            fetched => self.here(fetched),
        }
    }

    /// Who only looks is told what the upstream tells, and nothing is brought here.
    async fn for_blob(&self, digest: &cfc_oci::Digest) -> Result<Brought, ApiError> {
        let Asking { source, name, remote, .. } = self;
        if self.is_head {
            match source.blob_size(name, remote, digest).await {
                Ok(Some(size)) => return Ok(Brought::Answer(Box::new(passing::size_of_blob(digest, size)))),
                Ok(None) => {}
                Err(failed) => return self.here(Err(failed)),
            }
        }
        if source.had_no_room(name, digest) {
            return self.pass_blob(digest, "it had none a while ago").await;
        }
        match self.fetch_blob(digest).await {
            Ok(brought) => Ok(brought),
            Err(Failed::NoRoom(why)) => self.pass_blob(digest, &why).await,
            Err(failed) => self.here(Err(failed)),
        }
    }

    /// Has a blob fetched; gives what is coming of it rather than to wait for all.
    async fn fetch_blob(&self, digest: &cfc_oci::Digest) -> Result<Brought, Failed> {
        let mut fetch = self.begin_blob(digest).await?;
        if let Some(coming) = fetch.news().await {
            match coming.length {
                Some(size) if self.is_head => {
                    return Ok(Brought::Answer(Box::new(passing::size_of_blob(digest, size))));
                }
                None if self.is_head => {}
                _ => {
                    if let Some(portion) = coming.portion(self.headers).await {
                        return Ok(Brought::Coming(portion));
                    }
                }
            }
        }
        ended(fetch, self.name).await.map(|()| Brought::Here)
    }

    /// Begins to fetch a blob, or joins who does. Who meets a fetch that has broken off and is about to end begins anew,
    /// unless it has shown that there is no room.
    async fn begin_blob(&self, digest: &cfc_oci::Digest) -> Result<Fetch, Failed> {
        let begin = || self.source.begin(self.registry, self.name, self.remote, Wanted::Blob(digest.clone()));
        let fetch = begin()?;
        if !fetch.told().is_some_and(|coming| coming.is_broken()) {
            return Ok(fetch);
        }
        match ended(fetch, self.name).await {
            Err(failed @ Failed::NoRoom(_)) => Err(failed),
            _ => begin(),
        }
    }

    async fn pass_blob(&self, digest: &cfc_oci::Digest, why: &str) -> Result<Brought, ApiError> {
        self.warn_of_no_room(why);
        self.passed_on(self.source.pass_blob(self.remote, digest).await)
    }

    async fn for_referrers(&self, subject: &cfc_oci::Digest) -> Result<Brought, ApiError> {
        match self.source.referrers(self.registry, self.remote, subject).await {
            Ok(referrers) => Ok(Brought::Referrers(referrers)),
            Err(failed @ (Failed::Away(_) | Failed::Busy)) => self.what_is_kept(failed).await,
            Err(failed) => self.here(Err(failed)),
        }
    }

    /// As distribution does it: what the upstream says, or what is kept while it is away.
    async fn for_tags(&self) -> Result<Brought, ApiError> {
        match self.source.tags(self.registry, self.remote).await {
            Ok(tags) => Ok(Brought::Tags(tags)),
            Err(Failed::NotThere) => Err(ApiError::new(Problem::NameUnknown, self.name)),
            Err(failed @ (Failed::Away(_) | Failed::Busy)) => self.what_is_kept(failed).await,
            Err(failed) => Err(self.failed(failed)),
        }
    }

    /// The list that is kept, while the upstream gives none. Of a repository of which nothing is kept nobody knows whether
    /// it is there.
    async fn what_is_kept(&self, failed: Failed) -> Result<Brought, ApiError> {
        if !self.registry.metadata.has_repository(self.name).await? {
            return Err(self.failed(failed));
        }
        self.source.log(self.name, &failed);
        Ok(Brought::Here)
    }

    /// That there is nothing the handler finds out for itself, and says in its own words.
    fn here(&self, fetched: Result<(), Failed>) -> Result<Brought, ApiError> {
        match fetched {
            Ok(()) | Err(Failed::NotThere) => Ok(Brought::Here),
            Err(failed) => Err(self.failed(failed)),
        }
    }

    fn passed_on(&self, passed: Result<Response, Failed>) -> Result<Brought, ApiError> {
        match passed {
            Ok(answer) => Ok(Brought::Answer(Box::new(answer))),
            Err(failed) => self.here(Err(failed)),
        }
    }

    /// The client's answer when the upstream gave nothing, of which the log learns too.
    fn failed(&self, failed: Failed) -> ApiError {
        self.source.log(self.name, &failed);
        failed.into()
    }

    fn warn_of_no_room(&self, why: &str) {
        tracing::warn!(name = %self.name, why, "passing on what there is no room for");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
