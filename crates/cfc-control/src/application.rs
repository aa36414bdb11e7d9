//! [`ApplicationRecord`]: one container application, as it is recorded in the bucket.

use cfc_oci::{Descriptor, Digest, Reference};
use cfc_project::InstanceType;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

/// A container application: which image, how large, how many, and whose Durable Object class starts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplicationRecord {
    /// Follows from the name ([`application_id`]), so two writers cannot make two applications of one name.
    pub id: Uuid,
    /// Unique among the applications.
    pub name: String,
    /// Counts the changes of this application, from 1.
    pub version: u64,
    /// When the first version was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
    /// The Durable Object class that starts the instances; `None` for one that nothing starts yet.
    pub attachment: Option<Attachment>,
    /// What an instance is started from.
    pub image: PinnedImage,
    /// What an instance may use.
    pub size: InstanceSize,
    /// How many instances may be live at once.
    pub max_instances: u32,
    /// Members of Cloudflare's shape that cfc keeps and returns but does not act on (`constraints`, `affinities`…).
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub kept: serde_json::Map<String, serde_json::Value>,
    /// The same for members of its `configuration` (`observability`, `wrangler_ssh`, `labels`…).
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub kept_configuration: serde_json::Map<String, serde_json::Value>,
}

/// The Durable Object class an application's instances belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the Worker.
    pub worker: String,
    /// Name of the class.
    pub class_name: String,
}

impl Attachment {
    /// The Durable Object namespace's id: 32 hexadecimal digits that follow from Worker and class.
    pub fn namespace_id(&self) -> String {
        let digest = Digest::of(format!("durable object namespace {}/{}", self.worker, self.class_name).as_bytes());
        digest.hex()[..32].to_string()
    }
}

/// An image as it was asked for, and what that meant when it was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// As the deployment named it.
    pub reference: Reference,
    /// The manifest it named at that moment; starts use this one.
    pub manifest: Descriptor,
}

/// What one instance may use: an instance type, expanded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSize {
    /// Processors; a sixteenth is the smallest type.
    pub vcpu: f64,
    /// Memory in MiB (2^20 bytes).
    pub memory_mib: u64,
    /// Disk in MB (10^6 bytes).
    pub disk_mb: u64,
}

impl From<&InstanceType> for InstanceSize {
    fn from(instance_type: &InstanceType) -> InstanceSize {
        let InstanceType { vcpu, memory_mib, disk_mb, .. } = *instance_type;
        InstanceSize { vcpu, memory_mib, disk_mb }
    }
}

/// The id of the application called `name`: 16 bytes of a hash, as a version 8 UUID.
pub fn application_id(name: &str) -> Uuid {
    let digest = Digest::of(format!("container application {name}").as_bytes());
    let mut bytes = [0; 16];
    for (byte, digit) in bytes.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        *byte = digit[0].wrapping_mul(31) ^ digit[1];
    }
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
