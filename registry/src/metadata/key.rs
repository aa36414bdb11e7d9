//! Where each object is. No component of a repository's name begins with `_`, so names cannot collide with what is
//! below them.
//!
//! ```text
//! registry/catalog/<name>/_repository                                  empty: the repository has a manifest
//! registry/repositories/<name>/_tags/<tag>                             JSON: descriptor of the manifest
//! registry/repositories/<name>/_manifests/<alg>/<hex>                  media type, line feed, the exact bytes
//! registry/repositories/<name>/_tagged/<alg>/<hex>/<tag>               empty: the tag once pointed at the manifest
//! registry/repositories/<name>/_referrers/<alg>/<hex>/<alg>/<hex>      JSON: descriptor of a referrer of the first
//! registry/links/<alg>/<hex>/<name>/_link                              empty: the repository holds the blob
//! registry/deleting/<name>/_manifests/<alg>/<hex>/<id>                 a manifest that somebody is deleting
//! registry/quarantine/<name>/_manifests/<alg>/<hex>                    a manifest whose bytes turned out to be others
//! registry/_referrers-listed                                           empty: all manifests with a subject are listed
//! ```

use cfc_oci::{Digest, RepositoryName, Tag};
use uuid::Uuid;

pub(super) const CATALOG: &str = "registry/catalog";
pub(super) const REPOSITORIES: &str = "registry/repositories";
pub(super) const LINKS: &str = "registry/links";
pub(super) const DELETING: &str = "registry/deleting";
pub(super) const REFERRERS_LISTED: &str = "registry/_referrers-listed";

pub(super) fn repository(name: &RepositoryName) -> String {
    format!("{CATALOG}/{name}/_repository")
}

pub(super) fn parse_repository(key: &str) -> Option<RepositoryName> {
    key.strip_prefix(CATALOG)?.strip_prefix('/')?.strip_suffix("/_repository")?.parse().ok()
}

pub(super) fn tags(name: &RepositoryName) -> String {
    format!("{REPOSITORIES}/{name}/_tags")
}

pub(super) fn manifests(name: &RepositoryName) -> String {
    format!("{REPOSITORIES}/{name}/_manifests")
}

pub(super) fn manifest(name: &RepositoryName, digest: &Digest) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/{}", pair(digest))
}

pub(super) fn tagged(name: &RepositoryName, digest: &Digest) -> String {
    format!("{REPOSITORIES}/{name}/_tagged/{}", pair(digest))
}

pub(super) fn tagged_by(name: &RepositoryName, digest: &Digest, tag: &Tag) -> String {
    format!("{REPOSITORIES}/{name}/_tagged/{}/{tag}", pair(digest))
}

pub(super) fn referrers(name: &RepositoryName, subject: &Digest) -> String {
    format!("{REPOSITORIES}/{name}/_referrers/{}", pair(subject))
}

pub(super) fn referrer(name: &RepositoryName, subject: &Digest, digest: &Digest) -> String {
    format!("{REPOSITORIES}/{name}/_referrers/{}/{}", pair(subject), pair(digest))
}

pub(crate) fn links(digest: &Digest) -> String {
    format!("{LINKS}/{}", pair(digest))
}

pub(crate) fn link(name: &RepositoryName, digest: &Digest) -> String {
    format!("{LINKS}/{}/{name}/_link", pair(digest))
}

/// Where a manifest is while somebody deletes it.
pub(super) fn aside(name: &RepositoryName, digest: &Digest, id: Uuid) -> String {
    format!("{}/{id}", all_aside(name, digest))
}

pub(super) fn all_aside(name: &RepositoryName, digest: &Digest) -> String {
    format!("{DELETING}/{name}/_manifests/{}", pair(digest))
}

/// Which manifest of which repository is at a key below [`DELETING`].
pub(super) fn parse_aside(key: &str) -> Option<(RepositoryName, Digest)> {
    let (manifest, _) = key.rsplit_once('/')?;
    parse_manifest_below(DELETING, manifest)
}

/// Where a manifest goes whose bytes turned out to be others.
pub(super) fn quarantined(name: &RepositoryName, digest: &Digest) -> String {
    format!("registry/quarantine/{name}/_manifests/{}", pair(digest))
}

/// Whether the object at a key goes by itself when nobody needs it: links and manifests.
pub(crate) fn is_kept(key: &str) -> bool {
    let is_below = |directory: &str| key.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    is_below(LINKS) || (is_below(REPOSITORIES) && key.contains("/_manifests/"))
}

/// Which blob a link is of, and which repository holds it.
pub(crate) fn parse_link(key: &str) -> Option<(RepositoryName, Digest)> {
    let (algorithm, rest) = key.strip_prefix(LINKS)?.strip_prefix('/')?.split_once('/')?;
    let (hex, rest) = rest.split_once('/')?;
    let name = rest.strip_suffix("/_link")?.parse().ok()?;
    Some((name, format!("{algorithm}:{hex}").parse().ok()?))
}

/// Which manifest of which repository is at a key below [`REPOSITORIES`].
pub(super) fn parse_manifest(key: &str) -> Option<(RepositoryName, Digest)> {
    parse_manifest_below(REPOSITORIES, key)
}

fn parse_manifest_below(directory: &str, key: &str) -> Option<(RepositoryName, Digest)> {
    let (name, pair) = key.strip_prefix(directory)?.strip_prefix('/')?.split_once("/_manifests/")?;
    Some((name.parse().ok()?, parse_pair(pair)?))
}

/// Which tag of which repository is at a key below [`REPOSITORIES`].
pub(super) fn parse_tag(key: &str) -> Option<(RepositoryName, Tag)> {
    let (name, tag) = key.strip_prefix(REPOSITORIES)?.strip_prefix('/')?.split_once("/_tags/")?;
    Some((name.parse().ok()?, tag.parse().ok()?))
}

/// Which tag is noted to point at which manifest, by a key below [`REPOSITORIES`].
pub(super) fn parse_note(key: &str) -> Option<(RepositoryName, Digest, Tag)> {
    let (name, rest) = key.strip_prefix(REPOSITORIES)?.strip_prefix('/')?.split_once("/_tagged/")?;
    let (digest, tag) = rest.rsplit_once('/')?;
    Some((name.parse().ok()?, parse_pair(digest)?, tag.parse().ok()?))
}

/// Which manifest is listed as a referrer of which subject, by a key below [`REPOSITORIES`].
pub(super) fn parse_referrer(key: &str) -> Option<(RepositoryName, Digest, Digest)> {
    let (name, rest) = key.strip_prefix(REPOSITORIES)?.strip_prefix('/')?.split_once("/_referrers/")?;
    let (at, _) = rest.match_indices('/').nth(1)?;
    Some((name.parse().ok()?, parse_pair(&rest[..at])?, parse_pair(&rest[at + 1..])?))
}

fn parse_pair(pair: &str) -> Option<Digest> {
    let (algorithm, hex) = pair.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn pair(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().as_str(), digest.hex())
}
