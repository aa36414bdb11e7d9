//! [`Container`]: one entry of `containers[]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cfc_oci::Reference;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::InstanceType;

/// One entry of `containers[]`, with wrangler's defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The application's name: `<worker>-<class>` in lower case unless the config names it.
    pub name: String,
    /// The Durable Object class that owns the instances.
    pub class_name: String,
    /// Where the image comes from.
    pub image: ImageSource,
    /// Build arguments of the Dockerfile.
    pub image_vars: BTreeMap<String, String>,
    /// How many instances may run at once.
    pub max_instances: u32,
    /// The size of each instance.
    pub instance_type: InstanceType,
    /// How a new version reaches running instances.
    pub rollout: Rollout,
    /// `default`, `moon` or `regional`.
    pub scheduling_policy: String,
    /// Where instances may run; recorded, without effect on one machine.
    pub constraints: Constraints,
    /// What cfc records and gives to the control API as it is: `ssh`, `authorized_keys`, `trusted_user_ca_keys`,
    /// `affinities`, `unsafe`. Keys are those of the config.
    pub extra: BTreeMap<String, Value>,
}

/// Where a container's image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// Built from a Dockerfile.
    Dockerfile {
        /// The file, absolute.
        path: PathBuf,
        /// The build context, absolute.
        context: PathBuf,
    },
    /// An image that exists.
    Reference(Reference),
}

/// How a new version reaches running instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Percentages of the instances, ascending, the last one 100.
    pub step_percentages: Vec<u32>,
    /// Whether the config gave one number instead of a list: each step is then that large.
    pub uniform: bool,
    /// Who advances it.
    pub kind: RolloutKind,
    /// Seconds that a running instance may go on after it was chosen.
    pub active_grace_period_seconds: u64,
}

/// Who advances a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// The platform, step after step.
    #[default]
    FullAuto,
    /// A person.
    FullManual,
    /// Nobody: running instances keep their version.
    None,
}

/// Where instances may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Regions, upper case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Cities, lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cities: Vec<String>,
    /// Tiers; empty means no constraint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<i64>,
    /// `eu` or `fedramp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jurisdiction: Option<String>,
}
