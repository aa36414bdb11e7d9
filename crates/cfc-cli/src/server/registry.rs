//! The registry over the data directory's bucket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cfc_control::{RegistryGrant, RegistryPasswords};
use cfc_registry::{
    AccessRules, AuditLog, BucketLocation, LocalCa, Minter, Options, Permission, QuotaRule, Quotas, RateLimits,
    Registry, Rules, Tls,
};
use futures::FutureExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tokio::signal::unix::Signal;

use crate::args::BucketChoice;
use crate::failure::Failure;
use crate::server::descriptors::{self, Server};
use crate::settings::{QuotaEntry, RetentionEntry, Settings, UpstreamEntry, WebhookEntry};

/// How large an audit log gets before another is begun.
const AUDIT_LOG_BYTES: u64 = 100 * 1024 * 1024;

/// How long redirects to the bucket's store may be good for; the end is S3's.
const REDIRECTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(7 * 24 * 60 * 60);

/// The directory that stands for the bucket.
pub fn bucket_directory(settings: &Settings) -> PathBuf {
    settings.data.join("bucket")
}

/// Where the registry's certificate authority is.
pub fn ca_directory(settings: &Settings) -> PathBuf {
    settings.data.join("ca")
}

/// The bucket: a directory, with every acknowledged object synced.
pub fn bucket(settings: &Settings) -> Result<Arc<dyn ObjectStore>, Failure> {
    let directory = bucket_directory(settings);
    let cannot = |error: &dyn std::error::Error| {
        Failure::because(format!("cannot use `{}` as bucket", directory.display()), error)
    };
    std::fs::create_dir_all(&directory).map_err(|error| cannot(&error))?;
    let store = LocalFileSystem::new_with_prefix(&directory).map_err(|error| cannot(&error))?;
    Ok(Arc::new(store.with_fsync(true)))
}

/// The S3 bucket in which a registry that runs alone is; `None` for the data directory.
pub fn bucket_location(settings: &Settings, choice: &BucketChoice) -> Result<Option<BucketLocation>, Failure> {
    let entry = &settings.file.registry;
    let location = match (&choice.bucket, &entry.bucket) {
        (Some(location), _) => location.clone(),
        (None, Some(text)) => text.parse().map_err(|error| {
            Failure::because("cannot use `bucket` below `[registry]` in the configuration file", &error)
        })?,
        (None, None) if choice.endpoint.is_some() => {
            return Err(Failure::new("`--endpoint` is for a bucket").hint("name it with --bucket s3://BUCKET"));
        }
        (None, None) => {
            entry.check_without_bucket()?;
            return Ok(None);
        }
    };
    if let Some(endpoint) = &entry.endpoint {
        cfc_registry::check_endpoint(endpoint).map_err(|error| {
            Failure::because("cannot use `endpoint` below `[registry]` in the configuration file", &error)
        })?;
    }
    let redirect = entry.redirect.map(|lifetime| lifetime.duration());
    if redirect.is_some_and(|lifetime| !REDIRECTS.contains(&lifetime)) {
        let what = "`redirect` below `[registry]` in the configuration file is not between a minute and seven days";
        return Err(
            Failure::new(what).hint("a pull of a large layer that broke off goes on with the same URL: \"20m\"")
        );
    }
    Ok(Some(BucketLocation {
        endpoint: choice.endpoint.clone().or_else(|| entry.endpoint.clone()),
        redirect,
        single_replica: entry.single_replica,
        ..location
    }))
}

/// The registry for looking at it and after it, while others may serve it.
pub async fn open_beside(settings: &Settings, choice: &BucketChoice) -> Result<Registry, Failure> {
    let options = options(settings)?;
    match bucket_location(settings, choice)? {
        Some(location) => Ok(Registry::open_bucket_beside(&location, options).await?),
        None => {
            require(settings)?;
            Ok(Registry::open_beside(&bucket_directory(settings), options)?)
        }
    }
}

/// The registry for changing it as one that is served does by itself, while none is: in a bucket beside others, in the data
/// directory alone, of which the caller holds the lock. It writes the audit log and tells the receivers of webhooks.
pub async fn open_by_hand(settings: &Settings, choice: &BucketChoice, rules: Rules) -> Result<Registry, Failure> {
    let options = Options { audit: audit_by_hand(settings)?, collection: rules, ..options(settings)? };
    match bucket_location(settings, choice)? {
        Some(location) => Ok(Registry::open_bucket_beside(&location, options).await?),
        None => Ok(Registry::open(&bucket_directory(settings), options)?),
    }
}

/// The registry in a bucket, for making passwords with the key that all who serve it sign with. It writes the audit log.
pub async fn open_to_lend(settings: &Settings, location: &BucketLocation) -> Result<Registry, Failure> {
    let rules = rules(settings)?.ok_or_else(|| {
        Failure::new("`htpasswd` below `[registry]` in the configuration file names no users")
            .hint("use the configuration file of those who serve the bucket; without users everybody may do everything")
    })?;
    let rules = rules.with_shared_tokens(&location.token_key().await?)?;
    let options = Options { authorizer: Some(Arc::new(rules)), audit: audit_by_hand(settings)?, ..options(settings)? };
    Ok(Registry::open_bucket_beside(location, options).await?)
}

/// Refuses a data directory in which no registry has been served yet. Makes nothing.
pub fn require(settings: &Settings) -> Result<(), Failure> {
    let directory = bucket_directory(settings).join("registry");
    match directory.metadata() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("there is no registry in the data directory `{}`", settings.data.display());
            Err(Failure::new(what)
                .hint("name the right one with --data DIR or CFC_DATA, or a bucket with --bucket URL"))
        }
        Err(error) => Err(Failure::because(format!("cannot look at `{}`", directory.display()), &error)),
    }
}

/// How the configuration file wants the registry.
pub fn options(settings: &Settings) -> Result<Options, Failure> {
    let entry = &settings.file.registry;
    entry.check()?;
    let mut options = Options {
        accept_sparse: entry.accept_sparse,
        deletes: entry.deletes,
        immutable_tags: entry.immutable_tags.clone(),
        url: entry.url()?,
        ..Options::default()
    };
    if let Some(grace) = entry.gc_grace {
        options.collection.grace = grace.duration();
    }
    options.collection.untagged = entry.gc_untagged.map(|age| age.duration());
    if let Some(every) = entry.gc_every {
        options.collect_every = Some(every.duration()).filter(|every| !every.is_zero());
    }
    let number = |number: std::num::NonZeroU32| number.get();
    options.rates = RateLimits {
        by_address: entry.requests_per_minute_by_address.map(number),
        by_user: entry.requests_per_minute_by_user.map(number),
    };
    let bytes = |size: crate::size::Size| size.bytes();
    options.quotas = Quotas {
        total: entry.quota.map(bytes),
        blob: entry.max_blob.map(bytes),
        rules: entry.quotas.iter().map(quota).collect(),
    };
    options.retention = entry.retention.iter().map(RetentionEntry::rule).collect::<Result<_, _>>()?;
    options.upstreams = entry.upstream.iter().map(UpstreamEntry::upstream).collect::<Result<_, _>>()?;
    options.webhooks = entry.webhook.iter().map(WebhookEntry::webhook).collect::<Result<_, _>>()?;
    options.trusted_proxies = entry.trusted_proxies.iter().copied().map(Into::into).collect();
    if let Some(size) = entry.max_manifest {
        options.max_manifest_bytes = usize::try_from(size.bytes()).unwrap_or(usize::MAX);
    }
    if let Some(size) = entry.upload_memory {
        options.upload_memory = size.bytes();
    }
    if let Some(connections) = entry.max_connections {
        options.limits.connections = connections.get() as usize;
    }
    if let Some(idle) = entry.idle_timeout {
        options.limits.idle = idle.duration();
    }
    Ok(options)
}

fn quota(entry: &QuotaEntry) -> QuotaRule {
    QuotaRule { repositories: entry.repositories.clone(), bytes: entry.size.bytes() }
}

/// Where a registry that is served writes down who did what.
fn audit(settings: &Settings) -> Result<Option<Arc<AuditLog>>, Failure> {
    let entry = &settings.file.registry;
    let size = entry.audit_log_size.map_or(AUDIT_LOG_BYTES, |size| size.bytes());
    let log = match &entry.audit_log {
        None => return Ok(None),
        Some(path) if path.as_os_str() == "-" => AuditLog::to_stdout(),
        Some(path) => open_audit_log(path, size)?,
    };
    Ok(Some(Arc::new(log)))
}

/// The same, for a command. It begins no new file, since a registry of the same bucket may be writing to that one; and what
/// would be on the standard output, where its answer is, is on the standard error.
pub fn audit_by_hand(settings: &Settings) -> Result<Option<Arc<AuditLog>>, Failure> {
    let log = match &settings.file.registry.audit_log {
        None => return Ok(None),
        Some(path) if path.as_os_str() == "-" => AuditLog::to_stderr(),
        Some(path) => open_audit_log(path, u64::MAX)?,
    };
    Ok(Some(Arc::new(log)))
}

fn open_audit_log(path: &Path, size: u64) -> Result<AuditLog, Failure> {
    AuditLog::to_file(path, size).map_err(|error| Failure::because("cannot use `audit_log` below `[registry]`", &error))
}

/// The registry of the data directory within the platform, and what makes the passwords for it that the control API
/// gives to whoever may deploy.
pub fn open(settings: &Settings) -> Result<(Registry, Option<RegistryPasswords>), Failure> {
    let mut options = options(settings)?;
    options.limits.connections = descriptors::connections(Server::Registry, options.limits.connections);
    let access = access(settings)?;
    let minter = access.as_ref().and_then(AccessRules::minter);
    options.authorizer = access.map(|rules| Arc::new(rules) as _);
    options.audit = audit(settings)?;
    if settings.file.registry.bucket.is_some() {
        let what = "`bucket` below `[registry]` in the configuration file is for a registry that runs alone";
        let hint = "`cfc serve` keeps its registry in the data directory, from which it runs the images; run \
                    `cfc registry serve` for the bucket with another configuration file (CFC_CONFIG)";
        return Err(Failure::new(what).hint(hint));
    }
    if settings.file.registry.is_encrypted() {
        let what = "`tls_certificate` or `tls_names` below `[registry]` in the configuration file is for a registry that runs alone";
        let hint =
            "`cfc serve` keeps its registry on loopback; run `cfc registry serve` with a data directory of its own";
        return Err(Failure::new(what).hint(hint));
    }
    settings.file.registry.check_without_bucket()?;
    warn(settings, None);
    let registry = Registry::open(&bucket_directory(settings), options)?;
    let passwords = minter.map(|minter| {
        let registry = registry.clone();
        Arc::new(move |grant| password(registry.clone(), minter.clone(), grant).boxed()) as _
    });
    Ok((registry, passwords))
}

/// A password for the user whom wrangler takes, that allows what wrangler does with it: its `images delete` pushes.
async fn password(
    registry: Registry,
    minter: Minter,
    grant: RegistryGrant,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let pull = [Permission::Pull, Permission::Catalog].into_iter().filter(|_| grant.pull);
    let push = [Permission::Push, Permission::Delete, Permission::Collect].into_iter().filter(|_| grant.push);
    let permissions: Vec<Permission> = pull.chain(push).collect();
    Ok(registry.mint(&minter, "v1", &permissions, grant.lifetime).await?.password)
}

/// The registry alone: in the bucket, else in the data directory, of which the caller holds the lock.
pub async fn open_alone(settings: &Settings, location: Option<&BucketLocation>) -> Result<Registry, Failure> {
    let mut options = options(settings)?;
    options.limits.connections = descriptors::connections(Server::RegistryAlone, options.limits.connections);
    let access = match (location, rules(settings)?) {
        (Some(location), Some(rules)) => Some(rules.with_shared_tokens(&location.token_key().await?)?),
        _ => access(settings)?,
    };
    options.authorizer = access.map(|rules| Arc::new(rules) as _);
    options.audit = audit(settings)?;
    options.tls = tls(settings)?;
    warn(settings, location);
    match location {
        Some(location) => Ok(Registry::open_bucket(location, options).await?),
        None => Ok(Registry::open(&bucket_directory(settings), options)?),
    }
}

/// Who may do what, if the configuration file names users; with tokens by the key of the data directory.
fn access(settings: &Settings) -> Result<Option<AccessRules>, Failure> {
    let key = bucket_directory(settings).join("registry/token-key");
    Ok(rules(settings)?.map(|rules| rules.with_tokens(&key)).transpose()?)
}

/// Tells the log what is allowed and seldom meant.
fn warn(settings: &Settings, location: Option<&BucketLocation>) {
    let entry = &settings.file.registry;
    if entry.gc_grace.is_some_and(|grace| grace.duration().is_zero()) {
        tracing::warn!(
            "`gc_grace = 0`: a collection removes what clients have just pushed and have not named in a manifest yet"
        );
    }
    if entry.gc_grace.is_some_and(|grace| grace.duration() < cfc_registry::LATE_REQUESTS) && location.is_some() {
        tracing::warn!(
            "`gc_grace` of less than 20 minutes with `bucket`: the store takes requests a quarter of an hour after they were \
             made, and one of a push may bring back what a collection has removed"
        );
    }
    for quota in entry.quotas.iter().filter(|quota| quota.size.bytes() == 0) {
        tracing::warn!(
            repositories = ?quota.repositories,
            "`size = 0` below `[[registry.quotas]]`: nothing can be pushed there, and what comes from an upstream is \
             passed on without being kept"
        );
    }
    if entry.tls_names.is_some() && location.is_some_and(|location| !location.single_replica) {
        let directory = ca_directory(settings);
        tracing::warn!(
            directory = %directory.display(),
            "`tls_names` with `bucket`: each registry of the bucket certifies itself by an authority in its own data \
             directory; give all of them the same `ca` directory, or `tls_certificate` and `tls_key`"
        );
    }
}

/// Tells the log of users who cannot be let in.
fn warn_of_users(file: &Path, rules: &AccessRules) {
    let file = file.display();
    if !rules.has_users() {
        tracing::warn!(%file, "`htpasswd` names no user: only what `anonymous` may do is allowed to anybody");
    }
    for name in rules.unknown_users() {
        tracing::warn!(%file, user = name, "a user of `[[registry.allow]]` is not in `htpasswd`");
    }
}

/// Who may do what, if the configuration file names users.
pub fn rules(settings: &Settings) -> Result<Option<AccessRules>, Failure> {
    let entry = &settings.file.registry;
    match &entry.htpasswd {
        Some(file) => {
            let rules = AccessRules::new(file, entry.allow.clone())
                .map_err(|error| Failure::because("cannot use `htpasswd` below `[registry]`", &error))?;
            warn_of_users(file, &rules);
            Ok(Some(rules))
        }
        None if entry.allow.is_empty() => Ok(None),
        None => Err(Failure::new("`[[registry.allow]]` in the configuration file needs users")
            .hint("name a file that `htpasswd -B` has made as `htpasswd` below `[registry]`")),
    }
}

fn tls(settings: &Settings) -> Result<Option<Tls>, Failure> {
    let entry = &settings.file.registry;
    match (&entry.tls_certificate, &entry.tls_key, &entry.tls_names) {
        (Some(certificate), Some(key), None) => Ok(Some(Tls::open(certificate, key)?)),
        (None, None, None) => Ok(None),
        (None, None, Some(names)) => {
            settings.create_data_directory()?;
            Ok(Some(LocalCa::open(&ca_directory(settings), names)?.serve()?))
        }
        (_, _, Some(_)) => Err(Failure::new("`tls_names` below `[registry]` has the registry make its certificates")
            .hint("leave out `tls_certificate` and `tls_key`, or `tls_names`")),
        _ => Err(Failure::new("`tls_certificate` and `tls_key` below `[registry]` need each other")),
    }
}

/// Has the registry look at its files again whenever it is asked to.
pub async fn reload(mut hangups: Signal, registry: Registry) {
    while hangups.recv().await.is_some() {
        registry.reload();
    }
}
