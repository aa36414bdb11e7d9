//! Docker's JSON, as far as workerd and Docker's own client send and read it, and the answers that carry it.

mod event;
mod inspect;
mod list;
mod stats;
mod top;

pub(crate) use event::event;
pub(crate) use inspect::{instance, sidecar, stillborn};
pub(crate) use list::{FilterProblem, Filters, entry};
pub(crate) use stats::{Sample, no_stats, stats};
pub(crate) use top::top;

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::Response;
use cfc_runtime::{ExitReport, Phase};
use serde::Deserialize;
use serde_json::{Value, json};

/// The label under which an instance keeps the image name that it was created with.
pub(crate) const IMAGE_LABEL: &str = "dev.cfc.image";
/// The port that a sidecar offers.
pub(crate) const SIDECAR_PORT: &str = "39001/tcp";

/// The newest version of the API that a client may speak.
pub(crate) const API_VERSION: &str = "1.43";

/// The body of `POST /containers/create`. workerd writes every scalar it knows; zero, false and empty mean unset.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Create {
    pub image: String,
    pub cmd: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, String>>,
    pub user: String,
    pub working_dir: String,
    pub host_config: HostConfig,
}

/// The part of [`Create`] that Docker calls the host's.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    binds: Option<Vec<Value>>,
    mounts: Option<Vec<Value>>,
    cap_add: Option<Vec<String>>,
    devices: Option<Vec<Value>>,
}

impl Create {
    /// What it asks for that an instance cannot have yet.
    pub fn unsupported(&self) -> Option<&'static str> {
        let has = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let has_words = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let host = &self.host_config;
        [
            (has(&host.binds) || has(&host.mounts), "volumes and mounts (`HostConfig.Mounts`, `HostConfig.Binds`)"),
            (has_words(&host.cap_add), "additional capabilities (`HostConfig.CapAdd`)"),
            (has(&host.devices), "devices (`HostConfig.Devices`)"),
            (has_words(&self.entrypoint), "another ENTRYPOINT than the image's (`Entrypoint`)"),
            (!self.user.is_empty(), "another user than the image's (`User`)"),
            (!self.working_dir.is_empty(), "another directory than the image's (`WorkingDir`)"),
        ]
        .into_iter()
        .find_map(|(is_wanted, feature)| is_wanted.then_some(feature))
    }
}

/// An answer with a JSON body.
pub(crate) fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Docker's form of an error.
pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    answer(status, &json!({ "message": message.into() }))
}

pub(crate) fn no_such_container(name: &str) -> Response {
    error(StatusCode::NOT_FOUND, format!("No such container: {name}"))
}

pub(crate) fn not_implemented(feature: &str) -> Response {
    error(StatusCode::NOT_IMPLEMENTED, format!("cfc does not have {feature} yet"))
}

pub(crate) fn version() -> Value {
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": API_VERSION,
        "MinAPIVersion": "1.24",
        "Os": "linux",
        "Arch": architecture(),
        "Components": [{ "Name": "cfc", "Version": env!("CARGO_PKG_VERSION") }],
    })
}

pub(crate) fn info(live_instances: usize) -> Value {
    json!({
        "Name": "cfc",
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "ContainersRunning": live_instances,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"],
    })
}

/// The bridge network. There is none: workerd takes the gateway as the address for its own listener, and the loopback
/// is where the in-process sidecar reaches it.
pub(crate) fn bridge() -> Value {
    json!({
        "Name": "bridge",
        "Driver": "bridge",
        "IPAM": { "Driver": "default", "Config": [{ "Subnet": "127.0.0.0/8", "Gateway": "127.0.0.1" }] },
    })
}

/// What Docker calls an instance that does this.
fn status(phase: &Phase) -> &'static str {
    match phase {
        Phase::Created | Phase::Starting => "created",
        Phase::Running { .. } | Phase::Ready { .. } | Phase::Stopping { .. } => "running",
        Phase::Stopped(_) => "exited",
        Phase::Removed(_) => "dead",
    }
}

pub(crate) fn exit(report: &ExitReport) -> Value {
    match &report.error {
        // Docker says it in `State.Error` and `OOMKilled` alone: to whoever waits, the process ended by itself.
        Some(error) if !report.oom_killed => json!({ "StatusCode": report.code, "Error": { "Message": error } }),
        _ => json!({ "StatusCode": report.code }),
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
