//! One container in full, as `GET /containers/<name>/json` tells it.

use cfc_oci::ContainerConfig;
use cfc_runtime::{ExitReport, InstanceView, Phase, rfc3339};
use serde_json::{Value, json};

use super::{IMAGE_LABEL, SIDECAR_PORT, status};
use crate::container::id_of;
use crate::worker::object_id;

/// Docker's word for a time that was not yet.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// An instance. The values of its variables may be secrets and are not told.
pub(crate) fn instance(view: &InstanceView, image: Option<&ContainerConfig>) -> Value {
    let exit = view.phase.exit().cloned().unwrap_or_default();
    whole(view, image, status(&view.phase), &exit)
}

/// A container that could not start, while it counts as running and after.
pub(crate) fn stillborn(view: &InstanceView, seems_to_run: bool, reason: &str) -> Value {
    let status = if seems_to_run { "running" } else { "exited" };
    let exit = ExitReport { code: 125, error: Some(reason.to_string()), ..ExitReport::default() };
    whole(view, None, status, &exit)
}

/// A sidecar; it runs when it has a port.
pub(crate) fn sidecar(name: &str, image: &str, port: Option<u16>) -> Value {
    let status = if port.is_some() { "running" } else { "created" };
    let ports = match port {
        Some(port) => json!({ SIDECAR_PORT: [{ "HostIp": "127.0.0.1", "HostPort": port.to_string() }] }),
        None => json!({}),
    };
    json!({
        "Id": id_of(name),
        "Name": format!("/{name}"),
        "Image": image,
        "State": state(status, 0, &ExitReport::default()),
        "Config": { "Image": image },
        "NetworkSettings": { "Ports": ports },
    })
}

fn whole(view: &InstanceView, image: Option<&ContainerConfig>, status: &str, exit: &ExitReport) -> Value {
    let name = &view.spec.name;
    let image_name = view.spec.labels.get(IMAGE_LABEL).map_or("", String::as_str);
    let words = image.map(|image| view.spec.command_in(image)).unwrap_or_default();
    let limits = view.instance_type;
    let memory_bytes = limits.map_or(0, |limits| limits.memory_mib << 20);
    let mut state = state(status, view.phase.pid().unwrap_or(0), exit);
    state["StartedAt"] = json!(view.started.map_or(NEVER.to_string(), rfc3339));
    state["FinishedAt"] = json!(match view.phase {
        Phase::Stopped(_) => rfc3339(view.since),
        _ => NEVER.to_string(),
    });
    json!({
        "Id": id_of(name),
        "Name": format!("/{name}"),
        "Created": rfc3339(view.created),
        "Path": words.first().map_or("", String::as_str),
        "Args": words.get(1..).unwrap_or_default(),
        "State": state,
        "Image": view.spec.image.digest.to_string(),
        "RestartCount": view.launches.saturating_sub(1),
        "Driver": "overlay2",
        "Platform": "linux",
        "Mounts": [],
        "Config": {
            "Hostname": object_id(name).chars().take(12).collect::<String>(),
            "Image": image_name,
            "User": image.map_or("", |image| image.user.as_str()),
            "WorkingDir": image.map_or("", |image| image.working_dir.as_str()),
            "Entrypoint": image.and_then(|image| image.entrypoint.clone()),
            "Cmd": view.spec.command.clone().or_else(|| image.and_then(|image| image.cmd.clone())),
            "StopSignal": image.and_then(|image| image.stop_signal.clone()).unwrap_or_default(),
            "Labels": view.spec.labels,
            "Tty": false,
            "OpenStdin": false,
            "AttachStdin": false,
            "AttachStdout": false,
            "AttachStderr": false,
        },
        "HostConfig": {
            "NetworkMode": "none",
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "NanoCpus": limits.map_or(0, |limits| limits.micro_cpus * 1_000),
            "Privileged": false,
            "ReadonlyRootfs": false,
            "AutoRemove": false,
            "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
            "LogConfig": { "Type": "json-file", "Config": {} },
        },
        "NetworkSettings": { "Ports": {}, "Networks": {} },
    })
}

fn state(status: &str, pid: i32, exit: &ExitReport) -> Value {
    json!({
        "Status": status,
        "Running": status == "running",
        "Paused": false,
        "Restarting": false,
        "OOMKilled": exit.oom_killed,
        "Dead": status == "dead",
        "Pid": pid,
        "ExitCode": exit.code,
        "Error": exit.error.as_deref().unwrap_or_default(),
    })
}
