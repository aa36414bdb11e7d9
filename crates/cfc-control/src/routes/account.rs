//! What wrangler asks about the account.

use axum::extract::{Path, State};
use cfc_project::InstanceType;
use serde_json::json;

use super::Answer;
use crate::Control;
use crate::wire::envelope::{list, success};

/// `GET containers/me`. The limits are those of the largest instance type; the machine's own are enforced at starts.
pub(crate) async fn me(State(control): State<Control>) -> Answer {
    let largest = InstanceType::named("standard-4").unwrap_or_default();
    let account_id = &control.inner.options.account_id;
    Ok(success(json!({
        "external_account_id": account_id,
        "legacy_identity": "",
        "limits": {
            "account_id": account_id,
            "vcpu_per_deployment": largest.vcpu,
            "memory_per_deployment": format!("{}MiB", largest.memory_mib),
            "memory_mib_per_deployment": largest.memory_mib,
            "disk_per_deployment": format!("{}MB", largest.disk_mb),
            "disk_mb_per_deployment": largest.disk_mb,
            "total_vcpu": 1500,
            "total_memory": "6291456MiB",
            "total_memory_mib": 6_291_456,
            "total_disk_mb": 30_000_000,
            "node_group": "metal",
            "network_modes": ["private"],
            "ipv4s": 0,
        },
        "locations": [{"name": "local", "location": "this machine", "region": "local", "limits": {}}],
        "defaults": {},
    })))
}

/// `POST containers/registries/:domain/credentials`.
pub(crate) async fn credentials(State(control): State<Control>, Path((_, domain)): Path<(String, String)>) -> Answer {
    let options = &control.inner.options;
    let any = || uuid::Uuid::new_v4().simple().to_string();
    Ok(success(json!({
        "account_id": options.account_id,
        "registry_host": if domain.is_empty() { &options.registry_host } else { &domain },
        "username": "v1",
        "password": options.registry_password.clone().unwrap_or_else(any),
    })))
}

/// `GET containers/registries`: cfc keeps no credentials of other registries here.
pub(crate) async fn registries() -> Answer {
    Ok(list(Vec::new()))
}

/// `GET workers/subdomain`.
pub(crate) async fn subdomain() -> Answer {
    Ok(success(json!({"subdomain": "localhost"})))
}

/// `GET accounts`.
pub(crate) async fn accounts(State(control): State<Control>) -> Answer {
    Ok(list(vec![json!({"id": control.inner.options.account_id, "name": "cfc"})]))
}

/// `GET memberships`.
pub(crate) async fn memberships(State(control): State<Control>) -> Answer {
    let account_id = &control.inner.options.account_id;
    Ok(list(vec![json!({"id": account_id, "account": {"id": account_id, "name": "cfc"}})]))
}

/// `GET user/tokens/verify`: whoever gets here has the token.
pub(crate) async fn verify() -> Answer {
    Ok(success(json!({"id": "cfc", "status": "active"})))
}
