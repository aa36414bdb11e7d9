//! [`Route`]: which resource a path below `/v2/` names. Names of repositories contain slashes and may contain words
//! of the API (`a/blobs/uploads`), so a path is read from its end.

use cfc_oci::{Digest, RepositoryName, Tag};
use uuid::Uuid;

use crate::error::{ApiError, Problem};
use crate::query::decode;

/// A resource.
#[derive(Debug, PartialEq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/gc/layers`, as wrangler asks for it
    Collection,
    /// `/v2/<name>/…`
    Repository(RepositoryName, Resource),
}

/// A resource of a repository.
#[derive(Debug, PartialEq)]
pub(crate) enum Resource {
    /// `tags/list`
    Tags,
    /// `manifests/<tag or digest>`
    Manifest(ManifestName),
    /// `blobs/<digest>`
    Blob(Digest),
    /// `blobs/uploads/`
    Uploads,
    /// `blobs/uploads/<id>`
    Upload(Uuid),
    /// `referrers/<digest>`
    Referrers(Digest),
}

/// What follows `manifests/`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ManifestName {
    Tag(Tag),
    Digest(Digest),
    /// Neither a tag nor a digest. Nothing has such a name, so it can be looked for, but not written.
    Impossible(String),
}

impl Route {
    /// Reads the path of a request, percent-encoded as it came.
    pub(crate) fn parse(path: &str) -> Result<Route, ApiError> {
        let path = path.strip_prefix("/v2").ok_or(Problem::NotFound)?;
        if path.is_empty() || path == "/" {
            return Ok(Route::Base);
        }
        let path = path.strip_prefix('/').ok_or(Problem::NotFound)?;
        let segments = path.split('/').map(decode).collect::<Option<Vec<String>>>();
        let segments = segments.ok_or_else(|| ApiError::new(Problem::NameInvalid, "the path is not valid UTF-8"))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["_catalog"] | ["_catalog", ""] => Ok(Route::Catalog),
            ["gc", "layers"] => Ok(Route::Collection),
            [name @ .., "tags", "list"] => repository(name, || Ok(Resource::Tags)),
            [name @ .., "manifests", reference] => {
                repository(name, || Ok(Resource::Manifest(manifest_name(reference)?)))
            }
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                repository(name, || Ok(Resource::Uploads))
            }
            [name @ .., "blobs", "uploads", id] => repository(name, || {
                Ok(Resource::Upload(id.parse().map_err(|_| ApiError::from(Problem::UploadUnknown))?))
            }),
            [name @ .., "blobs", digest] => repository(name, || Ok(Resource::Blob(parse_digest(digest)?))),
            [name @ .., "referrers", digest] => repository(name, || Ok(Resource::Referrers(parse_digest(digest)?))),
            _ => Err(Problem::NotFound.into()),
        }
    }
}

fn repository(name: &[&str], resource: impl FnOnce() -> Result<Resource, ApiError>) -> Result<Route, ApiError> {
    // A segment that was decoded to one with a slash must not become two.
    let is_split = name.iter().any(|segment| segment.contains('/'));
    let name = name.join("/").parse::<RepositoryName>().map_err(|error| ApiError::new(Problem::NameInvalid, error));
    match name {
        Ok(name) if !is_split => Ok(Route::Repository(name, resource()?)),
        Ok(_) => Err(Problem::NameInvalid.into()),
        Err(error) => Err(error),
    }
}

/// A tag cannot contain a colon, a digest must.
fn manifest_name(text: &str) -> Result<ManifestName, ApiError> {
    if text.contains(':') {
        return Ok(ManifestName::Digest(parse_digest(text)?));
    }
    Ok(text.parse().map_or_else(|_| ManifestName::Impossible(text.to_string()), ManifestName::Tag))
}

pub(crate) fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error| ApiError::new(Problem::DigestInvalid, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(path: &str, expected: &str) {
        let path = path.replace("DIGEST", DIGEST);
        let found = match Route::parse(&path) {
            Ok(Route::Base) => "base".to_string(),
            Ok(Route::Catalog) => "catalog".to_string(),
            Ok(Route::Collection) => "collection".to_string(),
            Ok(Route::Repository(name, resource)) => {
                let resource = match resource {
                    Resource::Tags => "tags",
                    Resource::Manifest(ManifestName::Tag(_)) => "tag",
                    Resource::Manifest(ManifestName::Digest(_)) => "manifest",
                    Resource::Manifest(ManifestName::Impossible(_)) => "impossible",
                    Resource::Blob(_) => "blob",
                    Resource::Uploads => "uploads",
                    Resource::Upload(_) => "upload",
                    Resource::Referrers(_) => "referrers",
                };
                format!("{name} {resource}")
            }
            Err(error) => error.to_string().split(':').next().unwrap_or_default().to_string(),
        };
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths_are_read_from_the_end() {
        check("/v2/", "base");
        check("/v2", "base");
        check("/v2/_catalog", "catalog");
        check("/v2/a/tags/list", "a tags");
        check("/v2/a/b/c/manifests/latest", "a/b/c tag");
        check("/v2/a/manifests/DIGEST", "a manifest");
        check(
            "/v2/a/manifests/sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "a manifest",
        );
        check("/v2/a/blobs/DIGEST", "a blob");
        check("/v2/a/blobs/uploads/", "a uploads");
        check("/v2/a/blobs/uploads", "a uploads");
        check("/v2/a/blobs/uploads/67e55044-10b1-426f-9247-bb680e5fe0c8", "a upload");
        check("/v2/a/referrers/DIGEST", "a referrers");
    }

    #[test]
    fn names_may_contain_words_of_the_api() {
        check("/v2/blobs/uploads/blobs/uploads/", "blobs/uploads uploads");
        check("/v2/a/manifests/tags/list", "a/manifests tags");
        check("/v2/a/tags/list/manifests/x", "a/tags/list tag");
        check("/v2/uploads/blobs/DIGEST", "uploads blob");
        check("/v2/manifests/manifests/manifests", "manifests tag");
    }

    #[test]
    fn malformed_paths_are_client_errors() {
        check("/v2/..%2f..%2fetc/tags/list", "NAME_INVALID");
        check("/v2/a%2fb/tags/list", "NAME_INVALID");
        check("/v2/../tags/list", "NAME_INVALID");
        check("/v2//a/tags/list", "NAME_INVALID");
        check("/v2/A/tags/list", "NAME_INVALID");
        check("/v2/a%00/tags/list", "NAME_INVALID");
        check("/v2/%ff/tags/list", "NAME_INVALID");
        check(&format!("/v2/{}/tags/list", "a".repeat(4096)), "NAME_INVALID");
        check("/v2/tags/list", "NAME_INVALID");
        check("/v2/a/blobs/sha256:zz", "DIGEST_INVALID");
        check("/v2/a/blobs/sha256:..%2f..%2fetc", "DIGEST_INVALID");
        check("/v2/a/manifests/sha256:baddigeststring", "DIGEST_INVALID");
        check("/v2/a/manifests/.x", "a impossible");
        check("/v2/a/blobs/uploads/..", "BLOB_UPLOAD_UNKNOWN");
        check("/v2/a", "UNSUPPORTED");
        check("/v2/a/b/c", "UNSUPPORTED");
        check("/v2x", "UNSUPPORTED");
    }
}
