//! [`Store`]: what the registry asks of S3, in its own words. Says what was tried when something fails, and finds out
//! what became of a request whose answer was lost.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{BucketLocation, check_endpoint};
use crate::{BlobStream, StorageError};

/// How often something is tried that the client library does not repeat by itself: what may have been done although no
/// answer came, and answers that ended early.
const TRIES: u32 = 8;
/// The longest that nothing may come from the store while we wait for it.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long something is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects deleted at the same time.
const DELETIONS_IN_FLIGHT: usize = 16;
/// Below this, what a process that died has left is swept.
pub(super) const CLOCKS: &str = "registry/_clock/";
/// What one request lists at most.
pub(super) const MAX_KEYS: usize = 1000;

/// Where a store is that wants all parts of an upload but the last to be of one size.
const EQUAL_PARTS_AT: &str = ".r2.cloudflarestorage.com";

/// What came of making parts one object.
pub(super) enum Completed {
    Whole,
    /// They are gone, or not what they were.
    Gone,
    /// They are not of one size, which the store wants.
    Unequal,
}

/// An object that a list names.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub key: String,
    pub size: u64,
    /// When it was put, by the store's clock.
    pub put: SystemTime,
}

/// A bucket, or what is below a prefix of it.
pub(super) struct Store {
    s3: AmazonS3,
    prefix: String,
    runtime: Handle,
    /// How far the store's clock is ahead of ours, in milliseconds.
    ahead: AtomicI64,
    /// Parts of an upload must be of one size.
    equal_parts: AtomicBool,
}

impl Store {
    pub(super) fn open(location: &BucketLocation) -> Result<Store, StorageError> {
        // The client library's TLS takes the process's provider; another part may have installed it.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&location.bucket);
        let endpoint = endpoint(location)?;
        if let Some(endpoint) = &endpoint {
            // The client library prefers the second, which the environment may have set, to the first.
            builder = builder.with_endpoint(endpoint).with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        if let Some(keys) = &location.keys {
            builder = builder.with_access_key_id(&keys.id).with_secret_access_key(&keys.secret);
        }
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let equal_parts = AtomicBool::new(endpoint.is_some_and(|endpoint| is_known_for_equal_parts(&endpoint)));
        // A pull lasts as long as its client takes: only silence is a fault, not duration.
        let client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(10))
            .with_read_timeout(SILENCE)
            .with_allow_http(is_plain);
        let backoff = BackoffConfig { init_backoff: Duration::from_millis(50), ..BackoffConfig::default() };
        require_both_keys(&builder).map_err(|what| StorageError::new("use", location, what))?;
        // Bulk deletion is not in every store. Under TLS nobody can change a body, so it need not be hashed once more.
        let s3 = builder
            .with_client_options(client)
            .with_retry(RetryConfig { backoff, max_retries: 10, retry_timeout: PATIENCE })
            .with_unsigned_payload(!is_plain)
            .with_disable_bulk_delete(true)
            .build()
            .map_err(|e| StorageError::new("use", location, e))?;
        let prefix = location.prefix.clone();
        Ok(Store { s3, prefix, runtime: Handle::current(), ahead: AtomicI64::new(0), equal_parts })
    }

    /// Fails when nothing says who we are to the store, which else its first request would in the words of whatever was
    /// asked last.
    pub(super) async fn require_credentials(&self, location: &BucketLocation) -> Result<(), StorageError> {
        let found = self.s3.credentials().get_credential().await;
        found.map(|_| ()).map_err(|error| StorageError::new("use", location, NoCredentials(error)))
    }

    /// Waits for `future` on a thread that may block.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(super) fn s3(&self) -> &AmazonS3 {
        &self.s3
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn path(&self, key: &str) -> Path {
        Path::parse(format!("{}{key}", self.prefix)).expect("keys are made of names, digests and numbers")
    }

    fn found(&self, meta: ObjectMeta) -> Option<Listed> {
        let key = meta.location.as_ref().strip_prefix(&self.prefix)?.to_string();
        Some(Listed { key, size: meta.size, put: meta.last_modified.into() })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        let read = || async { self.s3.get(&self.path(key)).await?.bytes().await };
        found(again(read).await).map_err(|e| StorageError::new("read", key, e))
    }

    /// The first line, with what came along of what follows it.
    pub(super) async fn get_line(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        let read = || async {
            let mut frames = self.s3.get(&self.path(key)).await?.into_stream();
            let mut line = BytesMut::new();
            while let Some(frame) = frames.try_next().await? {
                line.extend_from_slice(&frame);
                if frame.contains(&b'\n') {
                    break;
                }
            }
            Ok(line.freeze())
        };
        found(again(read).await).map_err(|e| StorageError::new("read", key, e))
    }

    /// The bytes of `range` as they come; `None` when there is no such object.
    pub(super) async fn stream(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, StorageError> {
        if range.is_empty() {
            return Ok(self.size(key).await?.map(|_| futures::stream::empty().boxed()));
        }
        let path = self.path(key);
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let opened = found(again(|| self.s3.get_opts(&path, options.clone())).await);
        let opened = opened.map_err(|e| StorageError::new("read", key, e))?;
        let key = key.to_string();
        let stream = |opened: object_store::GetResult| {
            opened.into_stream().map_err(move |e| StorageError::new("read", &key, e)).boxed()
        };
        Ok(opened.map(stream))
    }

    /// Size in bytes, or `None` when there is no such object.
    pub(super) async fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        Ok(self.look(key).await?.map(|found| found.size))
    }

    /// The object without its bytes; its time in whole seconds.
    pub(super) async fn look(&self, key: &str) -> Result<Option<Listed>, StorageError> {
        let path = self.path(key);
        let head = found(again(|| self.s3.head(&path)).await);
        Ok(head.map_err(|e| StorageError::new("read", key, e))?.and_then(|meta| self.found(meta)))
    }

    pub(super) async fn put(&self, key: &str, payload: impl Into<PutPayload>) -> Result<(), StorageError> {
        let (path, payload) = (self.path(key), payload.into());
        let put = again(|| self.s3.put(&path, payload.clone())).await;
        put.map(|_| ()).map_err(|e| StorageError::new("write", key, e))
    }

    /// Puts an object if there is none; says whether it is this one that is there now. When an answer is lost, what is
    /// there tells: so bytes that matter must differ from those that anybody else puts.
    pub(super) async fn create(&self, key: &str, payload: impl Into<PutPayload>) -> Result<bool, StorageError> {
        let payload = payload.into();
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.create_once(key, payload.clone()).await {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            match self.get(key).await? {
                Some(found) => return Ok(found.iter().eq(payload.iter().flatten())),
                // It was not done; or it was, and is gone again, which nobody does to such an object at once.
                None if tries < TRIES => tokio::time::sleep(Duration::from_millis(50) * tries).await,
                None => return Err(StorageError::new("write", key, error)),
            }
        }
    }

    /// One request, whatever comes of it.
    pub(super) async fn create_once(
        &self,
        key: &str,
        payload: impl Into<PutPayload>,
    ) -> Result<(), object_store::Error> {
        self.s3.put_opts(&self.path(key), payload.into(), PutMode::Create.into()).await.map(|_| ())
    }

    /// Whether there was an object is not known.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let path = self.path(key);
        let deleted = found(again(|| self.s3.delete(&path)).await);
        deleted.map(|_| ()).map_err(|e| StorageError::new("remove", key, e))
    }

    pub(super) async fn delete_all(&self, keys: impl IntoIterator<Item = String>) -> Result<(), StorageError> {
        let keys = futures::stream::iter(keys.into_iter().map(Ok));
        keys.try_for_each_concurrent(DELETIONS_IN_FLIGHT, |key| async move { self.delete(&key).await }).await
    }

    /// Everything whose key begins with `prefix`, in the order of keys.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.list_some(prefix, None, usize::MAX).await
    }

    /// At most `limit` objects whose key begins with `prefix` and comes after `after`, in the order of keys.
    pub(super) async fn list_some(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, StorageError> {
        let whole = format!("{}{prefix}", self.prefix);
        let mut all: Vec<Listed> = Vec::new();
        let mut page_token = None;
        while all.len() < limit {
            let options = PaginatedListOptions {
                offset: after.map(|after| format!("{}{after}", self.prefix)),
                max_keys: Some(MAX_KEYS.min(limit - all.len())),
                page_token: page_token.take(),
                ..PaginatedListOptions::default()
            };
            let page = again(|| self.s3.list_paginated(Some(&whole), options.clone())).await;
            let page = page.map_err(|e| StorageError::new("list", prefix, e))?;
            all.extend(page.result.objects.into_iter().filter_map(|meta| self.found(meta)));
            page_token = page.page_token;
            if page_token.is_none() {
                break;
            }
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    // Multipart uploads.

    /// Whether all parts of an upload but the last must be of one size, as far as we know.
    pub(super) fn wants_equal_parts(&self) -> bool {
        self.equal_parts.load(Ordering::Relaxed)
    }

    pub(super) async fn begin_multipart(&self, key: &str) -> Result<String, StorageError> {
        let path = self.path(key);
        again(|| self.s3.create_multipart(&path)).await.map_err(|e| StorageError::new("write", key, e))
    }

    /// Uploads a part, whose numbers begin with 0, and gives the store's name of it; `None` when there is no such upload
    /// any more.
    pub(super) async fn put_part(
        &self,
        key: &str,
        multipart: &String,
        number: usize,
        payload: PutPayload,
    ) -> Result<Option<String>, StorageError> {
        let path = self.path(key);
        let put = found(again(|| self.s3.put_part(&path, multipart, number, payload.clone())).await);
        put.map(|part| part.map(|part| part.content_id)).map_err(|e| StorageError::new("write", key, e))
    }

    /// Makes the parts an object of `size` bytes. If it had been done before, that is as good.
    pub(super) async fn complete_multipart(
        &self,
        key: &str,
        multipart: &String,
        parts: &[String],
        size: u64,
    ) -> Result<Completed, StorageError> {
        let parts: Vec<PartId> = parts.iter().map(|part| PartId { content_id: part.clone() }).collect();
        let path = self.path(key);
        let complete = || async {
            let error = match self.s3.complete_multipart(&path, multipart, parts.clone()).await {
                Ok(_) => return Ok(Completed::Whole),
                Err(error) => error,
            };
            match found(self.s3.head(&path).await)? {
                Some(found) if found.size == size => Ok(Completed::Whole),
                _ if matches!(error, object_store::Error::NotFound { .. }) => Ok(Completed::Gone),
                _ if is_about_equal_parts(&error.to_string()) => Ok(Completed::Unequal),
                // Another request has put other parts in their place.
                _ if error.to_string().contains("InvalidPart") => Ok(Completed::Gone),
                _ => Err(error),
            }
        };
        let completed = again(complete).await.map_err(|e| StorageError::new("write", key, e))?;
        if matches!(completed, Completed::Unequal) {
            tracing::warn!(key, "the store wants all parts of an upload to be of one size, which they are from now on");
            self.equal_parts.store(true, Ordering::Relaxed);
        }
        Ok(completed)
    }

    /// Forgets the parts; if there is no such upload any more, that is as good.
    pub(super) async fn abort_multipart(&self, key: &str, multipart: &String) -> Result<(), StorageError> {
        let path = self.path(key);
        let aborted = found(again(|| self.s3.abort_multipart(&path, multipart)).await);
        aborted.map(|_| ()).map_err(|e| StorageError::new("remove", key, e))
    }

    /// A URL by which anybody can read the object for that long.
    pub(super) async fn url(&self, key: &str, lifetime: Duration) -> Result<String, StorageError> {
        let signed = self.s3.signed_url(http::Method::GET, &self.path(key), lifetime).await;
        signed.map(|url| url.to_string()).map_err(|e| StorageError::new("sign", key, e))
    }

    // The store's clock.

    /// What time it is by the store's clock, as far as we know.
    pub(super) fn now(&self) -> SystemTime {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead >= 0 { SystemTime::now() + by } else { SystemTime::now() - by }
    }

    /// Asks the store what time it is: by putting an object and looking when that was.
    pub(super) async fn read_clock(&self) -> Result<SystemTime, StorageError> {
        let key = format!("{CLOCKS}{}", Uuid::new_v4());
        self.put(&key, PutPayload::new()).await?;
        let found = match self.list(&key).await?.pop() {
            Some(listed) => Some(listed),
            None => self.look(&key).await?,
        };
        self.delete(&key).await?;
        let put = found.map(|found| found.put);
        let put = put.ok_or_else(|| StorageError::new("read", &key, "what was put a moment ago is not there"))?;
        let ahead = match put.duration_since(SystemTime::now()) {
            Ok(ahead) => ahead.as_millis() as i64,
            Err(behind) => -(behind.duration().as_millis() as i64),
        };
        self.ahead.store(ahead, Ordering::Relaxed);
        Ok(put)
    }
}

/// Does something until it is done, or a time has passed, or the store says what will not change.
async fn again<T, F: Future<Output = Result<T, object_store::Error>>>(
    work: impl Fn() -> F,
) -> Result<T, object_store::Error> {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        match work().await {
            Err(object_store::Error::Generic { .. }) if tries < TRIES && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50) * tries).await;
            }
            done => return done,
        }
    }
}

/// Nothing says who we are to a store.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing says who we are to the store: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and no role was found"
)]
struct NoCredentials(#[source] object_store::Error);

/// Says which of the two keys is missing beside the other.
fn require_both_keys(builder: &AmazonS3Builder) -> Result<(), &'static str> {
    let has = |key: AmazonS3ConfigKey| builder.get_config_value(&key).is_some();
    match (has(AmazonS3ConfigKey::AccessKeyId), has(AmazonS3ConfigKey::SecretAccessKey)) {
        (true, false) => Err("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not"),
        (false, true) => Err("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not"),
        _ => Ok(()),
    }
}

/// Where the store is; `None` for AWS. The variables are those that AWS's own programs take, the first first.
fn endpoint(location: &BucketLocation) -> Result<Option<String>, StorageError> {
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let in_environment = || names.iter().find_map(|name| Some((*name, std::env::var(name).ok()?)));
    let found = location.endpoint.clone().map(|endpoint| ("endpoint", endpoint)).or_else(in_environment);
    let Some((name, endpoint)) = found else { return Ok(None) };
    check_endpoint(&endpoint).map_err(|error| StorageError::new("use", name, error))?;
    Ok(Some(endpoint))
}

/// Whether a store at `endpoint` is known to want parts of one size.
fn is_known_for_equal_parts(endpoint: &str) -> bool {
    let host =
        endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).split(['/', ':']).next().unwrap_or_default();
    host.ends_with(EQUAL_PARTS_AT)
}

/// Whether the store refuses parts because they are not all of one size, as R2 does.
fn is_about_equal_parts(error: &str) -> bool {
    error.contains("non-trailing parts must have the same length")
}

fn found<T>(result: Result<T, object_store::Error>) -> Result<Option<T>, object_store::Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_different_sizes_are_told_from_parts_that_others_have_replaced() {
        let said =
            |message: &str| format!("Server returned error response: <Code>InvalidPart</Code><Message>{message}");
        assert!(is_about_equal_parts(&said("All non-trailing parts must have the same length.")));
        assert!(!is_about_equal_parts(&said("One or more of the specified parts could not be found.")));
    }

    #[test]
    fn a_store_that_is_known_for_it_is_given_parts_of_one_size_from_the_start() {
        for (endpoint, is_known) in [
            ("https://0a1b.r2.cloudflarestorage.com", true),
            ("https://0a1b.eu.r2.cloudflarestorage.com:443/", true),
            ("https://s3.example/x.r2.cloudflarestorage.com", false),
            ("http://127.0.0.1:9000", false),
        ] {
            assert_eq!(is_known_for_equal_parts(endpoint), is_known, "{endpoint}");
        }
    }
}
