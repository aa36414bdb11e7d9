//! [`ManifestFacts`]: what the registry must know of a manifest's bytes. Everything else in them is the client's, and
//! is kept as it came.

use std::collections::BTreeMap;

use cfc_oci::{Descriptor, Digest, media_type};
use serde::Deserialize;

use crate::error::{ApiError, Problem};

/// Nesting beyond this is not a manifest but an attack on somebody's parser.
const MAX_DEPTH: usize = 64;

/// What the registry must know of a manifest.
#[derive(Debug, PartialEq)]
pub(crate) struct ManifestFacts {
    /// Without parameters.
    pub media_type: String,
    /// Config and layers that must be here; layers that may not be distributed are left out.
    pub blobs: Vec<Digest>,
    /// Layers that may not be distributed. They need not be here, and stay if they are.
    pub optional: Vec<Digest>,
    /// The manifests of an index.
    pub manifests: Vec<Digest>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// The type this manifest has in a list of referrers.
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    #[serde(rename = "size")]
    _size: u64,
}

impl ManifestFacts {
    /// Reads `bytes`, which were pushed with this `Content-Type`.
    pub(crate) fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<ManifestFacts, ApiError> {
        if depth(bytes) > MAX_DEPTH {
            return Err(invalid(format!("the JSON is nested deeper than {MAX_DEPTH} levels")));
        }
        // serde would also take a struct from an array.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(invalid("expected a JSON object".to_string()));
        }
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if raw.schema_version != 2 {
            return Err(invalid(format!("expected `schemaVersion` 2, found {}", raw.schema_version)));
        }
        let media_type = media_type_of(content_type, &raw)?;
        if media_type::is_index(&media_type) { index(media_type, raw) } else { image(media_type, raw) }
    }

    /// This manifest in a list of referrers.
    pub(crate) fn referrer(&self, digest: Digest, size: u64) -> Descriptor {
        let mut descriptor = Descriptor::new(&self.media_type, digest, size);
        descriptor.artifact_type = self.artifact_type.clone();
        descriptor.annotations = self.annotations.clone();
        descriptor
    }
}

/// The media type on which header, body and shape agree.
fn media_type_of(content_type: Option<&str>, raw: &RawManifest) -> Result<String, ApiError> {
    let in_header = content_type.and_then(|value| value.split(';').next()).map(str::trim).filter(|t| !t.is_empty());
    let in_body = raw.media_type.as_deref().filter(|t| !t.is_empty());
    if let (Some(in_header), Some(in_body)) = (in_header, in_body)
        && in_header != in_body
    {
        return Err(invalid(format!("`Content-Type` is `{in_header}`, but `mediaType` is `{in_body}`")));
    }
    let by_shape = if raw.manifests.is_some() { media_type::INDEX } else { media_type::MANIFEST };
    let media_type = in_header.or(in_body).unwrap_or(by_shape);
    if media_type::is_manifest(media_type) || media_type::is_index(media_type) {
        Ok(media_type.to_string())
    } else {
        Err(invalid(format!("`{media_type}` is not a type of manifest that this registry stores")))
    }
}

fn image(media_type: String, raw: RawManifest) -> Result<ManifestFacts, ApiError> {
    if raw.manifests.is_some() {
        return Err(invalid("an image manifest cannot have `manifests`".to_string()));
    }
    let config = raw.config.ok_or_else(|| invalid("`config` is missing".to_string()))?;
    let (mut blobs, mut optional) = (vec![parse_digest(&config)?], Vec::new());
    for layer in raw.layers.iter().flatten() {
        let wanted = if is_distributable(&layer.media_type) { &mut blobs } else { &mut optional };
        wanted.push(parse_digest(layer)?);
    }
    blobs.sort();
    blobs.dedup();
    Ok(ManifestFacts {
        media_type,
        blobs,
        optional,
        manifests: Vec::new(),
        subject: raw.subject.as_ref().map(parse_digest).transpose()?,
        artifact_type: Some(raw.artifact_type.filter(|t| !t.is_empty()).unwrap_or(config.media_type)),
        annotations: raw.annotations.unwrap_or_default(),
    })
}

fn index(media_type: String, raw: RawManifest) -> Result<ManifestFacts, ApiError> {
    if raw.layers.is_some() || raw.config.is_some() {
        return Err(invalid("an index cannot have `config` or `layers`".to_string()));
    }
    let manifests = raw.manifests.iter().flatten().map(parse_digest).collect::<Result<Vec<_>, _>>()?;
    let mut manifests = manifests;
    manifests.sort();
    manifests.dedup();
    Ok(ManifestFacts {
        media_type,
        blobs: Vec::new(),
        optional: Vec::new(),
        manifests,
        subject: raw.subject.as_ref().map(parse_digest).transpose()?,
        artifact_type: raw.artifact_type.filter(|t| !t.is_empty()),
        annotations: raw.annotations.unwrap_or_default(),
    })
}

/// Layers that may only be fetched from their owner are not pushed.
fn is_distributable(media_type: &str) -> bool {
    !media_type.contains(".nondistributable.") && !media_type.contains(".rootfs.foreign.")
}

fn parse_digest(descriptor: &RawDescriptor) -> Result<Digest, ApiError> {
    descriptor.digest.parse().map_err(|error| ApiError::new(Problem::ManifestInvalid, error))
}

fn invalid(message: String) -> ApiError {
    ApiError::new(Problem::ManifestInvalid, message)
}

/// How deep the brackets nest, strings left out.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(content_type: Option<&str>, json: &str) -> Result<ManifestFacts, String> {
        let json = json.replace("DIGEST", DIGEST);
        ManifestFacts::parse(content_type, json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let facts = check(
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"DIGEST","size":0},"layers":[],"extra":{"x":[1]}}"#,
        );
        let facts = facts.expect("valid");
        assert_eq!(facts.blobs.len(), 1);
        assert_eq!(facts.media_type, media_type::MANIFEST);
        assert_eq!(facts.artifact_type.as_deref(), Some("c"));
    }

    #[test]
    fn a_layer_that_may_not_be_distributed_is_not_asked_for() {
        let facts = check(
            None,
            r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"DIGEST","size":0},"layers":[{
               "mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"DIGEST","size":1}]}"#,
        );
        let facts = facts.expect("valid");
        assert_eq!((facts.blobs.len(), facts.optional.len()), (1, 1));
    }

    #[test]
    fn bad_manifests_are_refused_with_the_reason() {
        let deep = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for (json, reason) in [
            ("", "expected a JSON object"),
            ("{", "EOF"),
            ("[2]", "expected a JSON object"),
            (r#"{"schemaVersion":1}"#, "expected `schemaVersion` 2"),
            (r#"{"schemaVersion":2}"#, "`config` is missing"),
            (r#"{"schemaVersion":2,"schemaVersion":2}"#, "duplicate field"),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "an index cannot have"),
            (r#"{"schemaVersion":2,"mediaType":"text/html","manifests":[]}"#, "`text/html` is not a type"),
            (r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:zz","size":0}}"#, "malformed digest"),
            (r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"DIGEST","size":-1}}"#, "invalid value"),
            (&deep, "nested deeper"),
        ] {
            let error = check(None, json).expect_err(reason);
            assert!(error.contains(reason), "{error} does not contain {reason}");
        }
    }

    #[test]
    fn header_and_body_must_agree() {
        let error =
            check(Some(media_type::MANIFEST), &format!(r#"{{"schemaVersion":2,"mediaType":"{}"}}"#, media_type::INDEX));
        assert!(error.expect_err("disagree").contains("`Content-Type` is"));
    }
}
