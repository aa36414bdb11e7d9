//! [`Registry`]: a registry that is open, and what other parts of cfc ask it without HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};
use ipnet::IpNet;

use crate::bucket::{Bucket, BucketLocation, Periods};
use crate::collect::Rules;
use crate::holds::Holds;
use crate::loans::Loans;
use crate::local::{DirectoryObjects, LocalBackend};
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::proxy::{Upstream, Upstreams};
use crate::quota::{Ledger, Quotas};
use crate::rates::{RateLimits, Rates};
use crate::route::ManifestName;
use crate::webhook::{Hooks, Webhook};
use crate::{
    AuditLog, Authorizer, BlobBackend, Grant, Lender, Loan, LoanRecord, LoanRequest, Minter, Permission, RetentionRule,
    StorageError, Tls, UploadBackend,
};

/// What a client can make the registry wait for, or keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
    /// How long a client may take to send a request's head, or the next bytes of its body, or to take the next bytes of
    /// an answer.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 4096, idle: Duration::from_secs(60) }
    }
}

/// How a registry behaves.
#[derive(Clone)]
pub struct Options {
    /// Who may do what; `None` lets everybody do everything.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// Under which URL clients know the registry, `https://registry.example`; `None` for the one they have used.
    pub url: Option<String>,
    /// What a registry that is served shows of itself; `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// Manifests above this many bytes are refused with 413.
    pub max_manifest_bytes: usize,
    /// Uploads untouched for this long are removed when the registry opens, and by garbage collection.
    pub upload_expiry: Duration,
    /// Accept manifests and indexes although content they name is missing.
    pub accept_sparse: bool,
    /// Tags that keep pointing where they point, as patterns of `<repository>:<tag>`: `*` stands for anything but a
    /// slash, `**` for anything.
    pub immutable_tags: Vec<String>,
    /// Whether clients may delete tags, manifests and blobs.
    pub deletes: bool,
    /// In a bucket, bytes that all uploads together hold in memory until the store has them as parts; further ones wait to
    /// be received. A part has 128 MiB at most; where that is more, the memory is for one part at a time.
    pub upload_memory: u64,
    /// How much a client can ask for.
    pub limits: Limits,
    /// What garbage collection may remove.
    pub collection: Rules,
    /// Where it is written down who did what.
    pub audit: Option<Arc<AuditLog>>,
    /// Registries whose images are kept here, each below a prefix.
    pub upstreams: Vec<Upstream>,
    /// How much may be stored.
    pub quotas: Quotas,
    /// Which tags stay.
    pub retention: Vec<RetentionRule>,
    /// Who is told of what was pushed and deleted.
    pub webhooks: Vec<Webhook>,
    /// How often one address or user may ask.
    pub rates: RateLimits,
    /// Proxies whose word counts about who is behind them (`X-Forwarded-For`).
    pub trusted_proxies: Vec<IpNet>,
    /// How often a registry that is served collects garbage by itself; `None` for never.
    pub collect_every: Option<Duration>,
    /// How long after it was made a request may come to a bucket's store, by its clock. For so long at least, however soon
    /// garbage is collected, it is known there what was removed. Only tests have reason to change it.
    pub late_requests: Duration,
}

/// How long after it was made a request may come to a bucket's store: a quarter of an hour after it was signed (S3's
/// `RequestTimeTooSkewed`), and what the clocks of those who sign are wrong by.
pub const LATE_REQUESTS: Duration = Duration::from_secs((15 + 5) * 60);

impl Default for Options {
    fn default() -> Options {
        Options {
            authorizer: None,
            url: None,
            tls: None,
            max_manifest_bytes: 4 * 1024 * 1024,
            upload_expiry: Duration::from_secs(24 * 60 * 60),
            accept_sparse: false,
            immutable_tags: Vec::new(),
            deletes: true,
            upload_memory: 512 * 1024 * 1024,
            limits: Limits::default(),
            collection: Rules::default(),
            audit: None,
            upstreams: Vec::new(),
            quotas: Quotas::default(),
            retention: Vec::new(),
            webhooks: Vec::new(),
            rates: RateLimits::default(),
            trusted_proxies: Vec::new(),
            collect_every: Some(Duration::from_secs(6 * 60 * 60)),
            late_requests: LATE_REQUESTS,
        }
    }
}

/// A registry over one bucket. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub metadata: Metadata,
    pub blobs: Arc<dyn BlobBackend>,
    pub uploads: Arc<dyn UploadBackend>,
    /// What requests under way rely on.
    pub holds: Arc<Holds>,
    /// Held by the one collection that may run.
    pub collecting: tokio::sync::Mutex<()>,
    pub loans: Loans,
    pub metrics: Metrics,
    pub rates: Rates,
    pub hooks: Hooks,
    pub ledger: Ledger,
    pub upstreams: Upstreams,
    pub options: Options,
}

impl Registry {
    /// Opens the registry in the directory `root`, below `registry/`, for the only process that writes there. Blocks on
    /// the disk for a moment.
    pub fn open(root: &Path, options: Options) -> Result<Registry, StorageError> {
        let (objects, registry) = Registry::over(root, options)?;
        let inner = &registry.inner;
        objects.remove_temporary()?;
        inner.uploads.expire(inner.options.upload_expiry)?;
        // Nobody goes on with what a process that died was fetching.
        inner.uploads.forget(&|name| inner.upstreams.has(name))?;
        Ok(registry)
    }

    /// Opens the registry in the directory `root` for looking at it, while another process may serve it.
    pub fn open_beside(root: &Path, options: Options) -> Result<Registry, StorageError> {
        Registry::over(root, options).map(|(_, registry)| registry)
    }

    /// Opens the registry in an S3 bucket, which any number of processes may do at the same time. Fails when the store
    /// is not fit for that, unless the location says that there is only one.
    pub async fn open_bucket(location: &BucketLocation, options: Options) -> Result<Registry, StorageError> {
        let bucket = Bucket::open(location, options.periods(), options.upload_memory).await?;
        bucket.require_fit(location).await?;
        Registry::of(bucket.objects, bucket.blobs.clone(), bucket.blobs, options)
    }

    /// Opens the registry in an S3 bucket for looking after it.
    pub async fn open_bucket_beside(location: &BucketLocation, options: Options) -> Result<Registry, StorageError> {
        let bucket = Bucket::open(location, options.periods(), options.upload_memory).await?;
        Registry::of(bucket.objects, bucket.blobs.clone(), bucket.blobs, options)
    }

    fn over(root: &Path, options: Options) -> Result<(Arc<DirectoryObjects>, Registry), StorageError> {
        let directory = root.join("registry");
        let temporary = directory.join("temporary");
        let objects = Arc::new(DirectoryObjects::open(root, &temporary, options.collection.refresh())?);
        let local = Arc::new(LocalBackend::open(&directory)?);
        Ok((objects.clone(), Registry::of(objects, local.clone(), local, options)?))
    }

    fn of(
        objects: Objects,
        blobs: Arc<dyn BlobBackend>,
        uploads: Arc<dyn UploadBackend>,
        options: Options,
    ) -> Result<Registry, StorageError> {
        let inner = Inner {
            metadata: Metadata::new(objects.clone()),
            loans: Loans::new(objects),
            blobs,
            uploads,
            holds: Arc::default(),
            collecting: tokio::sync::Mutex::default(),
            metrics: Metrics::default(),
            rates: Rates::default(),
            hooks: Hooks::new(&options.webhooks)?,
            upstreams: Upstreams::new(&options.upstreams)?,
            ledger: Ledger::new(options.quotas.clone()),
            options,
        };
        Ok(Registry { inner: Arc::new(inner) })
    }

    /// Makes a password that expires, for the operator, and writes it down in the audit log.
    pub async fn lend(&self, request: &LoanRequest) -> Result<Loan, LendError> {
        let (loan, record) = self.inner.lend(request).await?;
        self.inner.note_loan("lend", record);
        Ok(loan)
    }

    /// The same by `minter`, which may make one for any name, good in every repository; for the control API.
    pub async fn mint(
        &self,
        minter: &Minter,
        name: &str,
        permissions: &[Permission],
        lifetime: Duration,
    ) -> Result<Loan, StorageError> {
        let grant = Grant::everywhere(permissions.to_vec());
        let loan = minter.lend(name, grant.clone(), lifetime);
        let record = self.inner.write_down(&loan, grant, Lender::ControlApi).await?;
        self.inner.note_loan("lend", record);
        Ok(loan)
    }

    /// The passwords that were made for a while and have not expired, also those that were taken back; the next to expire
    /// first.
    pub async fn loans(&self) -> Result<Vec<LoanRecord>, StorageError> {
        self.inner.loans.list().await
    }

    /// Takes back the password with this id, with the tokens that were given for it, and writes that down in the audit log.
    /// This registry refuses them at once, others of the same bucket within five seconds. `None` when no password with
    /// this id was made, or it expired a day ago.
    pub async fn revoke(&self, id: &str) -> Result<Option<LoanRecord>, StorageError> {
        let record = self.inner.revoke(id).await?;
        if let Some(record) = record.clone() {
            self.inner.note_loan("revoke", record);
        }
        Ok(record)
    }

    /// Goes on with the files as they are by now: the audit log in the one that has its name, the certificate and key as
    /// they say. What cannot be used stays as it was, and the log says so.
    pub fn reload(&self) {
        let options = &self.inner.options;
        if let Some(audit) = &options.audit {
            audit.reopen();
        }
        if let Some(tls) = &options.tls {
            tls.reload();
        }
    }

    /// Waits until receivers of webhooks have been told of everything, but no longer than `patience`. How many events no
    /// receiver has taken; what still waits is lost when the process ends.
    pub async fn finish_telling(&self, patience: Duration) -> u64 {
        self.inner.hooks.finish(patience).await
    }

    /// Answers one request that came by no socket, whole; for those who bring the registry's requests along themselves, as
    /// fuzzing does.
    pub async fn answer(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, StorageError> {
        use http_body_util::BodyExt;
        let (parts, body) = crate::api::respond(self, request.map(axum::body::Body::from)).await.into_parts();
        let body = body.collect().await.map_err(|error| StorageError::new("answer", "a request", error))?;
        Ok(http::Response::from_parts(parts, body.to_bytes()))
    }

    /// Lists manifests that were stored before the registry listed referrers.
    pub(crate) async fn list_earlier_referrers(&self) -> Result<(), StorageError> {
        self.inner.metadata.list_earlier_referrers().await
    }

    /// The file of a blob, for the runtime to link; `None` when there is no such blob, or no such file.
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        self.inner.blobs.local_path(digest)
    }

    /// A manifest by tag or digest, exactly as it was pushed.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &str,
    ) -> Result<Option<(Descriptor, Bytes)>, StorageError> {
        let name = match (reference.parse(), reference.parse()) {
            (Ok(tag), _) => ManifestName::Tag(tag),
            (_, Ok(digest)) => ManifestName::Digest(digest),
            _ => return Ok(None),
        };
        self.inner.manifest(repository, &name).await
    }

    /// All repositories that hold a manifest, sorted.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>, StorageError> {
        self.inner.metadata.repositories().await
    }

    /// The tags of a repository, sorted.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, StorageError> {
        let tags = self.inner.metadata.tags(repository, None, usize::MAX).await?;
        Ok(tags.into_iter().filter_map(|tag| tag.parse().ok()).collect())
    }
}

impl Options {
    fn periods(&self) -> Periods {
        let refresh = self.collection.refresh();
        Periods { refresh, remembered: refresh.max(self.late_requests) }
    }

    /// Whether a tag keeps pointing where it points.
    pub(crate) fn is_immutable(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        let name = format!("{repository}:{tag}");
        self.immutable_tags.iter().any(|pattern| crate::access::matches(pattern, &name))
    }

    /// Whether a repository can have tags that keep pointing where they point: the beginning of a pattern means it.
    pub(crate) fn can_have_immutable_tags(&self, repository: &RepositoryName) -> bool {
        let start = format!("{repository}:");
        let begins = |pattern: &str, end| pattern.get(..end).is_some_and(|begin| crate::access::matches(begin, &start));
        self.immutable_tags.iter().any(|pattern| (1..=pattern.len()).any(|end| begins(pattern, end)))
    }
}

/// Why a password was not made.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// What was asked for cannot be meant.
    #[error("{0}")]
    Refused(String),
    /// It could not be written down.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Inner {
    /// Makes a password by what the options say, although the operator need not be authorized.
    pub(crate) async fn lend(&self, request: &LoanRequest) -> Result<(Loan, LoanRecord), LendError> {
        let everybody = || LendError::Refused("it has no users, so everybody may do everything".to_string());
        let authorizer = self.options.authorizer.as_ref().ok_or_else(everybody)?;
        let loan = authorizer.lend(request).map_err(LendError::Refused)?;
        let record = self.write_down(&loan, request.grant.clone(), Lender::Operator).await?;
        Ok((loan, record))
    }

    pub(crate) async fn revoke(&self, id: &str) -> Result<Option<LoanRecord>, StorageError> {
        self.metadata.require_known_format().await?;
        self.loans.revoke(id).await
    }

    /// Nobody has a password that could not be taken back.
    async fn write_down(&self, loan: &Loan, grant: Grant, by: Lender) -> Result<LoanRecord, StorageError> {
        self.metadata.require_known_format().await?;
        let record = LoanRecord::new(loan, grant, by);
        self.loans.note(&record, loan.until).await?;
        Ok(record)
    }

    fn note_loan(&self, action: &'static str, record: LoanRecord) {
        if let Some(audit) = &self.options.audit {
            audit.note_loan(action, record);
        }
    }

    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        name: &ManifestName,
    ) -> Result<Option<(Descriptor, Bytes)>, StorageError> {
        let digest = match name {
            ManifestName::Digest(digest) => digest.clone(),
            ManifestName::Tag(tag) => match self.metadata.tag(repository, tag).await? {
                Some(descriptor) => descriptor.digest,
                None => return Ok(None),
            },
            ManifestName::Impossible(_) => return Ok(None),
        };
        let Some((media_type, bytes)) = self.metadata.manifest(repository, &digest).await? else { return Ok(None) };
        Ok(Some((Descriptor::new(&media_type, digest, bytes.len() as u64), bytes)))
    }
}
