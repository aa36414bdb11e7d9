//! [`Project`]: what a wrangler config means.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Container;

/// What a wrangler config means once its environment is chosen and it was found valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// The config file, absolute.
    pub config_path: PathBuf,
    /// The directory that relative paths of the config start from.
    pub directory: PathBuf,
    /// The chosen environment, `None` for the top level.
    pub environment: Option<String>,
    /// The Worker's name; `<name>-<env>` in an environment that does not name itself.
    pub name: String,
    /// The Worker's entry file, absolute.
    pub main: PathBuf,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// workerd's flags, in order.
    pub compatibility_flags: Vec<String>,
    /// Variables that the Worker sees in `env`.
    pub vars: BTreeMap<String, Value>,
    /// The containers, in the order of the config.
    pub containers: Vec<Container>,
    /// The Durable Object bindings, in the order of the config.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// The migrations as they were written, in order.
    pub migrations: Vec<Value>,
    /// What was valid but will not do what its author may expect, one sentence each; the caller prints them.
    pub warnings: Vec<String>,
    /// The whole effective config, environment applied: wrangler's own keys and values.
    pub raw: Value,
}

/// One entry of `durable_objects.bindings[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableObjectBinding {
    /// The name in `env`.
    pub name: String,
    /// The class.
    pub class_name: String,
    /// The Worker that has the class, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_name: Option<String>,
}
