//! OCI nouns as values that cannot be invalid.
//!
//! Owns the grammar and the JSON of digests, references, descriptors, manifests, indexes, image configs,
//! platforms and signals. Never does I/O. Every other crate may use it.

pub mod base64;
pub mod media_type;

mod config;
mod descriptor;
mod digest;
mod manifest;
mod platform;
mod reference;
mod signal;
mod text;

pub use config::{ContainerConfig, Empty, Healthcheck, History, ImageConfig, RootFs};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{Index, Manifest, ManifestError, ManifestOrIndex};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, ReferenceErrorKind, RepositoryName, Tag};
pub use signal::parse_signal;
pub use text::rfc3339;
