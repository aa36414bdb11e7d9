//! What wrangler asks about the account.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use cfc_project::InstanceType;
use serde::Deserialize;
use serde_json::json;

use super::Answer;
use crate::error::Code;
use crate::wire::envelope::{list, success};
use crate::{Control, ControlError, RegistryGrant};

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

/// What wrangler asks a password for the registry with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedCredentials {
    #[serde(default = "usual_minutes")]
    expiration_minutes: u64,
    permissions: Vec<String>,
    /// Pushing to Cloudflare's own images; there are none here.
    #[serde(default, rename = "library_push")]
    _library_push: bool,
}

fn usual_minutes() -> u64 {
    15
}

/// A password that is good for longer is none to hand out.
const MAX_CREDENTIAL_MINUTES: u64 = 24 * 60;

impl WantedCredentials {
    fn read(body: &[u8]) -> Result<RegistryGrant, ControlError> {
        let malformed = |what: String| ControlError::new(Code::Malformed, what);
        let wanted: WantedCredentials = serde_json::from_slice(body)
            .map_err(|error| malformed("cannot read which credentials are wanted".to_string()).because(error))?;
        let minutes = wanted.expiration_minutes;
        if !(1..=MAX_CREDENTIAL_MINUTES).contains(&minutes) {
            let what = format!("`expiration_minutes` is {minutes}, expected 1 to {MAX_CREDENTIAL_MINUTES}");
            return Err(malformed(what));
        }
        let lifetime = Duration::from_secs(minutes * 60);
        let mut grant = RegistryGrant { pull: false, push: false, lifetime };
        for permission in &wanted.permissions {
            match permission.as_str() {
                "pull" => grant.pull = true,
                "push" => grant.push = true,
                "library_push" => {}
                other => return Err(malformed(format!("there is no permission `{other}`, expected `pull` or `push`"))),
            }
        }
        match grant.pull || grant.push {
            true => Ok(grant),
            false => Err(malformed("`permissions` is empty, expected `pull` or `push`".to_string())),
        }
    }
}

/// `POST containers/registries/:domain/credentials`: a password that expires. wrangler gives it the name `v1` whatever
/// the answer says.
pub(crate) async fn credentials(
    State(control): State<Control>,
    Path((_, domain)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let options = &control.inner.options;
    let grant = WantedCredentials::read(&body)?;
    let password = match &options.registry_passwords {
        Some(make) => make(grant).await.map_err(|error| {
            ControlError::new(Code::Bucket, "cannot make a password for the registry").because(error)
        })?,
        None => uuid::Uuid::new_v4().simple().to_string(),
    };
    Ok(success(json!({
        "account_id": options.account_id,
        "registry_host": if domain.is_empty() { &options.registry_host } else { &domain },
        "username": "v1",
        "password": password,
    })))
}

/// `GET containers/registries`: cfc keeps no credentials of other registries here.
pub(crate) async fn registries() -> Answer {
    Ok(list(Vec::new()))
}

/// `GET workers/tails/by-consumer/:name`: no Worker here can be the tail of another.
pub(crate) async fn tails() -> Answer {
    Ok(list(Vec::new()))
}

/// `GET storage/kv/namespaces`: where wrangler looks for the files of a site that it deletes. Namespaces of Workers are
/// their own here.
pub(crate) async fn kv_namespaces() -> Answer {
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
