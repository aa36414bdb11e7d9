//! `manifests/<tag or digest>`: pull, push, delete.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cfc_oci::{Algorithm, Descriptor, Digest, Hasher, RepositoryName, Tag};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderName, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

use super::{Call, empty, is_unchanged, set, set_digest};
use crate::error::{ApiError, Problem};
use crate::manifest::ManifestFacts;
use crate::metadata::{Deletion, IsImmutable, Publication};
use crate::registry::Inner;
use crate::route::ManifestName;
use crate::webhook::Target;
use crate::{HookEvent, StorageError};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// Tags that one push may set.
const MAX_TAGS: usize = 100;
const CHECKS_IN_FLIGHT: usize = 16;

pub(super) async fn get(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: &ManifestName,
) -> Result<Response, ApiError> {
    let found = call.registry.manifest(name, reference).await?;
    let (descriptor, bytes) = found.ok_or_else(|| unknown(reference))?;
    let mut response = if is_unchanged(call, &descriptor.digest) {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        content(call, &descriptor, bytes)
    };
    set_digest(&mut response, &descriptor.digest);
    set(&mut response, header::ETAG, &format!("\"{}\"", descriptor.digest));
    Ok(response)
}

fn content(call: &Call<'_>, descriptor: &Descriptor, bytes: Bytes) -> Response {
    let mut response = Response::new(if call.is_head() { Body::empty() } else { Body::from(bytes) });
    set(&mut response, header::CONTENT_TYPE, &descriptor.media_type);
    set(&mut response, header::CONTENT_LENGTH, &descriptor.size.to_string());
    response
}

/// Stores a manifest, then makes it findable: as a referrer of its subject, and by its tags.
pub(super) async fn put(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    reference: &ManifestName,
) -> Result<Response, ApiError> {
    let tags = tags(call, reference)?;
    let bytes = read(call, body).await?;
    let content_type = call.header(header::CONTENT_TYPE).map(str::to_string);
    let algorithm = match reference {
        ManifestName::Digest(digest) => digest.algorithm(),
        _ => Algorithm::Sha256,
    };
    let (facts, digest, bytes) = understand(content_type, algorithm, bytes).await?;
    if let ManifestName::Digest(expected) = reference
        && *expected != digest
    {
        let detail = format!("expected {expected}, the {} bytes received hash to {digest}", bytes.len());
        return Err(ApiError::new(Problem::DigestInvalid, detail));
    }
    // From here on nothing of this goes, whatever is collected meanwhile.
    let needed = facts.blobs.iter().chain(&facts.optional).chain(&facts.manifests).chain([&digest]);
    let _hold = call.registry.holds.hold(needed.cloned());
    let missing = claim_content(call.registry, name, &facts).await?;
    if !missing.is_empty() && !call.registry.options.accept_sparse {
        return Err(ApiError::several(Problem::ManifestBlobUnknown, missing));
    }
    require_changeable(call, name, &digest, &tags).await?;
    call.registry.admit_manifest(name, &digest, bytes.len() as u64).await?;
    let is_immutable = |tag: &Tag| call.registry.options.is_immutable(name, tag);
    let publication = Publication { facts: &facts, digest: &digest, bytes: &bytes, tags: &tags };
    if let Some(tag) = call.registry.metadata.publish(name, publication, &is_immutable).await? {
        return Err(ApiError::new(Problem::TagImmutable, tag));
    }
    if !call.registry.hooks.is_empty() {
        let target = Target::manifest(name, &facts.media_type, &digest, bytes.len() as u64);
        let tagged: Vec<Target> = tags.iter().map(|tag| target.tagged(tag)).collect();
        call.tell(HookEvent::Push, if tagged.is_empty() { vec![target] } else { tagged });
    }
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, header::LOCATION, &format!("/v2/{name}/manifests/{digest}"));
    set_digest(&mut response, &digest);
    if let Some(subject) = &facts.subject {
        set(&mut response, OCI_SUBJECT, &subject.to_string());
    }
    if matches!(reference, ManifestName::Digest(_)) {
        tags.iter().for_each(|tag| set(&mut response, OCI_TAG, tag.as_str()));
    }
    Ok(response)
}

/// Deletes a tag and nothing else, or a manifest with all its tags.
pub(super) async fn delete(
    call: &Call<'_>,
    name: &RepositoryName,
    reference: &ManifestName,
) -> Result<Response, ApiError> {
    let metadata = &call.registry.metadata;
    let is_immutable = |tag: &Tag| call.registry.options.is_immutable(name, tag);
    let can_be_immutable = call.registry.options.can_have_immutable_tags(name);
    let if_any: Option<IsImmutable<'_>> = if can_be_immutable { Some(&is_immutable) } else { None };
    let deleted = match reference {
        ManifestName::Tag(tag) if is_immutable(tag) => return Err(ApiError::new(Problem::TagImmutable, tag)),
        ManifestName::Tag(tag) => metadata.delete_tag(name, tag).await?,
        ManifestName::Digest(digest) => match metadata.delete_manifest(name, digest, if_any).await? {
            Deletion::Done => true,
            Deletion::NotThere => false,
            Deletion::Kept(tag) => return Err(ApiError::new(Problem::TagImmutable, tag)),
            Deletion::Needed(tag) => return Err(super::needed(&tag, digest)),
        },
        ManifestName::Impossible(_) => false,
    };
    if !deleted {
        return Err(unknown(reference));
    }
    let mut target = Target { repository: name.to_string(), ..Target::default() };
    match reference {
        ManifestName::Tag(tag) => target = target.tagged(tag),
        ManifestName::Digest(digest) => target.digest = Some(digest.clone()),
        ManifestName::Impossible(_) => {}
    }
    call.tell(HookEvent::Delete, vec![target]);
    Ok(empty(StatusCode::ACCEPTED))
}

/// The tags that a push sets: its reference, or those of `?tag=` beside a digest.
fn tags(call: &Call<'_>, reference: &ManifestName) -> Result<Vec<Tag>, ApiError> {
    let parse = |text: &str| text.parse::<Tag>().map_err(|error| ApiError::new(Problem::TagInvalid, error));
    match reference {
        ManifestName::Tag(tag) => Ok(vec![tag.clone()]),
        ManifestName::Impossible(text) => Err(ApiError::new(Problem::TagInvalid, text)),
        ManifestName::Digest(_) => {
            let tags = call.query.all("tag").map(parse).collect::<Result<Vec<_>, _>>()?;
            if tags.len() > MAX_TAGS {
                return Err(ApiError::new(Problem::TooManyTags, format!("at most {MAX_TAGS} are set at once")));
            }
            Ok(tags)
        }
    }
}

async fn read(call: &Call<'_>, body: &mut Body) -> Result<Bytes, ApiError> {
    let limit = call.registry.options.max_manifest_bytes;
    let too_large = || ApiError::new(Problem::ManifestTooLarge, format!("at most {limit} bytes are accepted"));
    if call.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let patience = call.registry.options.limits.idle;
    let read = tokio::time::timeout(patience, Limited::new(body, limit).collect()).await;
    let late = || format!("the body did not come within {} seconds", patience.as_secs());
    match read.map_err(|_| ApiError::new(Problem::ManifestInvalid, late()))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ApiError::new(Problem::ManifestInvalid, format!("the body ended early: {error}"))),
    }
}

/// Parses and hashes, which takes milliseconds for the largest manifests, off the async threads.
async fn understand(
    content_type: Option<String>,
    algorithm: Algorithm,
    bytes: Bytes,
) -> Result<(ManifestFacts, Digest, Bytes), ApiError> {
    let work = move || {
        let facts = ManifestFacts::parse(content_type.as_deref(), &bytes)?;
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        Ok((facts, hasher.finish(), bytes))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::from(StorageError::new("read", "manifest", error)))?
}

/// Keeps everything the manifest names, its subject excepted, from a collection that began before there was the manifest
/// and goes on after this request. Gives all that must be here and is missing.
async fn claim_content(
    registry: &Inner,
    name: &RepositoryName,
    facts: &ManifestFacts,
) -> Result<Vec<serde_json::Value>, ApiError> {
    let metadata = &registry.metadata;
    let blob = |digest: Digest| async move {
        let is_here = metadata.claim_blob(name, &digest).await?;
        Ok::<_, StorageError>((digest, is_here))
    };
    let manifest = |digest: Digest| async move {
        let is_here = metadata.claim_manifest(name, &digest).await? || metadata.claim_blob(name, &digest).await?;
        Ok::<_, StorageError>((digest, is_here))
    };
    let blobs = futures::stream::iter(facts.blobs.clone()).map(blob).buffered(CHECKS_IN_FLIGHT);
    let manifests = futures::stream::iter(facts.manifests.clone()).map(manifest).buffered(CHECKS_IN_FLIGHT);
    let found: Vec<(Digest, bool)> = blobs.chain(manifests).try_collect().await?;
    let optional = futures::stream::iter(facts.optional.clone()).map(blob).buffered(CHECKS_IN_FLIGHT);
    optional.try_for_each(|_| async { Ok(()) }).await?;
    let missing = found.iter().filter(|(_, is_here)| !is_here).map(|(digest, _)| json!({ "digest": digest }));
    Ok(missing.collect())
}

/// Refuses before anything is stored to point a tag elsewhere that must not. Another push may be faster: the tag is put
/// under the same condition.
async fn require_changeable(
    call: &Call<'_>,
    name: &RepositoryName,
    digest: &Digest,
    tags: &[Tag],
) -> Result<(), ApiError> {
    for tag in tags.iter().filter(|tag| call.registry.options.is_immutable(name, tag)) {
        let found = call.registry.metadata.tag(name, tag).await?;
        if found.is_some_and(|found| found.digest != *digest) {
            return Err(ApiError::new(Problem::TagImmutable, tag));
        }
    }
    Ok(())
}

fn unknown(reference: &ManifestName) -> ApiError {
    match reference {
        ManifestName::Tag(tag) => ApiError::new(Problem::ManifestUnknown, tag),
        ManifestName::Digest(digest) => ApiError::new(Problem::ManifestUnknown, digest),
        ManifestName::Impossible(text) => ApiError::new(Problem::ManifestUnknown, text),
    }
}
