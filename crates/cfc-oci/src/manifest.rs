//! [`Manifest`] and [`Index`]: what an image is made of (image-spec, "Image Manifest" and "Image Index").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Descriptor, Platform, media_type};

/// An image manifest: one config and the layers above each other, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`media_type::MANIFEST`] or Docker's twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of an artifact that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Layers, lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An OCI manifest of an image.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(media_type::MANIFEST.to_string()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The bytes that are hashed and stored: compact JSON in the order of the specification.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys")
    }
}

/// An image index: the same image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`media_type::INDEX`] or Docker's twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of an artifact that is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests, in order of preference.
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An OCI index.
    pub fn new(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: Some(media_type::INDEX.to_string()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The manifest that runs on `platform`: the one that is nearest to it, the first of several.
    pub fn for_platform(&self, platform: &Platform) -> Option<&Descriptor> {
        let distance = |manifest: &&Descriptor| manifest.platform.as_ref()?.distance_from(platform);
        let fitting = self.manifests.iter().filter_map(|manifest| Some((distance(&manifest)?, manifest)));
        fitting.min_by_key(|(distance, _)| *distance).map(|(_, manifest)| manifest)
    }

    /// The bytes that are hashed and stored: compact JSON in the order of the specification.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an index has only string keys")
    }
}

/// What a reference may lead to.
#[expect(clippy::large_enum_variant, reason = "one lives for the length of a function, never many")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestOrIndex {
    /// One image.
    Manifest(Manifest),
    /// One image for several platforms.
    Index(Index),
}

impl ManifestOrIndex {
    /// Parses `bytes`, which were served or stored as `media_type`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<ManifestOrIndex, ManifestError> {
        let json = |source| ManifestError::Json { media_type: media_type.to_string(), source };
        refuse_ambiguity(media_type, bytes)?;
        if media_type::is_manifest(media_type) {
            Ok(ManifestOrIndex::Manifest(serde_json::from_slice(bytes).map_err(json)?))
        } else if media_type::is_index(media_type) {
            Ok(ManifestOrIndex::Index(serde_json::from_slice(bytes).map_err(json)?))
        } else {
            Err(ManifestError::MediaType(media_type.to_string()))
        }
    }
}

/// Bytes that are a manifest to one reader and an index to another would let two machines run different images under one
/// digest (CVE-2021-41190).
fn refuse_ambiguity(media_type: &str, bytes: &[u8]) -> Result<(), ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    // What is no JSON object at all is reported by whoever parses all of it.
    let Ok(shape) = serde_json::from_slice::<Shape>(bytes) else { return Ok(()) };
    let is_index = media_type::is_index(media_type);
    let says_other = shape.media_type.as_deref().is_some_and(|said| match is_index {
        true => media_type::is_manifest(said),
        false => media_type::is_index(said),
    });
    let has_others_fields =
        if is_index { shape.layers.is_some() || shape.config.is_some() } else { shape.manifests.is_some() };
    match says_other || has_others_fields {
        true => Err(ManifestError::Ambiguous(media_type.to_string())),
        false => Ok(()),
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not a type that cfc reads.
    #[error("unsupported manifest media type `{0}`")]
    MediaType(String),
    /// A manifest and an index in one.
    #[error("it is called `{0}`, and holds what the other of manifest and index has")]
    Ambiguous(String),
    /// Not the JSON that the type promises.
    #[error("malformed manifest of type `{media_type}`")]
    Json {
        /// The type that was promised.
        media_type: String,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
}
