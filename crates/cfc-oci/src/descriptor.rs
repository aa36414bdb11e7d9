//! [`Descriptor`]: what a piece of content is, how large, and where else to find it (image-spec, "Descriptor").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform, media_type};

/// Names content by media type, digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content as stored (compressed, for a compressed layer).
    pub digest: Digest,
    /// Size of the content as stored, in bytes.
    pub size: u64,
    /// Other places the content may be fetched from; never followed by cfc.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The content itself, base64, when it is embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The platform of a manifest inside an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of an artifact inside an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with only the three required fields.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_string(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
        }
    }

    /// As an OCI manifest names a layer: Docker's types have twins there, for the same bytes.
    pub fn in_oci_terms(self) -> Descriptor {
        let media_type = match self.media_type.as_str() {
            media_type::DOCKER_LAYER_GZIP => media_type::LAYER_GZIP,
            media_type::DOCKER_LAYER => media_type::LAYER,
            other => other,
        };
        Descriptor { media_type: media_type.to_string(), ..self }
    }
}
