//! The secrets of a Worker. A record says which secrets its version has, never their values: those the platform keeps, each
//! under an id of its own. To change a secret is to deploy the Worker again with another value, as Cloudflare does.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use crate::catalog::no_such_worker;
use crate::control::Inner;
use crate::error::Code;
use crate::{ControlError, Timestamp, WorkerRecord};

/// What becomes of secrets, by name: another value, or `None` for those that go.
pub(crate) type SecretChanges = BTreeMap<String, Option<String>>;

impl Inner {
    /// Starts the Worker with these changes, and returns the version that serves now.
    ///
    /// # Errors
    /// Nothing is changed.
    pub async fn change_secrets(&self, name: &str, changes: SecretChanges) -> Result<WorkerRecord, ControlError> {
        let _turn = self.lock(name).await;
        let recorded = self.catalog.existing_worker(name).await?;
        let worker = recorded.value.ok_or_else(|| no_such_worker(name))?;
        let slots = self.catalog.application_slots().await?;
        let previous = self.catalog.deployment(worker, &slots).await?;
        let mut next = previous.clone();
        next.worker.version_id = Uuid::new_v4();
        next.worker.deployed_at = Timestamp::now();
        let kept = self.apply(&mut next.worker, changes).await;
        let changed = match kept {
            Ok(()) => {
                let record = self.catalog.write_worker(name, recorded.number + 1, Some(&next.worker));
                self.switch(Some(&previous), &next, record).await
            }
            Err(error) => Err(error),
        };
        let serving = if changed.is_ok() { next.worker } else { previous.worker };
        self.drop_unused_secrets(name, Some(&serving)).await;
        changed.map(|()| serving)
    }

    async fn apply(&self, worker: &mut WorkerRecord, changes: SecretChanges) -> Result<(), ControlError> {
        for (name, value) in changes {
            match value {
                Some(value) => self.set_secret(worker, name, &value).await?,
                None if worker.secrets.remove(&name).is_none() => {
                    return Err(ControlError::new(
                        Code::NoSuchBinding,
                        format!("Worker `{}` has no secret `{name}`", worker.name),
                    )
                    .hint(format!("`cfc secret list --name {}` names those that it has", worker.name)));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Keeps the value, and has the version that is being made name it.
    pub async fn set_secret(&self, worker: &mut WorkerRecord, name: String, value: &str) -> Result<(), ControlError> {
        if name.is_empty() {
            return Err(ControlError::new(Code::Malformed, "a secret needs a name").at("name"));
        }
        if worker.other_bindings().contains(&name) {
            return Err(in_use(&name));
        }
        let kept = self.platform.keep_secret(&worker.name, value).await;
        let id = kept.map_err(|error| {
            let what = format!("cannot keep secret `{name}` of Worker `{}`", worker.name);
            ControlError::new(Code::Bucket, what).because(error)
        })?;
        worker.secrets.insert(name, id);
        Ok(())
    }

    /// Has the platform forget the values that the version that serves does not name. Where it cannot, the next change or
    /// start does.
    pub async fn drop_unused_secrets(&self, worker: &str, serving: Option<&WorkerRecord>) {
        let used = serving.into_iter().flat_map(|serving| serving.secrets.values().copied()).collect();
        if let Err(error) = self.platform.retain_secrets(worker, &used).await {
            tracing::warn!(worker, %error, "values of secrets that are not used any more are left");
        }
    }
}

/// Cloudflare's words.
pub(crate) fn in_use(name: &str) -> ControlError {
    let what = format!("Binding name '{name}' already in use. Please use a different name and try again.");
    ControlError::new(Code::BindingInUse, what)
        .hint(format!("`cfc secret delete {name}` first, or take the other binding out of the wrangler config"))
}

/// The bindings of an upload's metadata without the texts of secrets, which are kept nowhere else than they must.
pub(crate) fn redact(metadata: &mut Value) {
    let bindings = metadata.get_mut("bindings").and_then(Value::as_array_mut);
    for binding in bindings.into_iter().flatten().filter_map(Value::as_object_mut) {
        if binding.get("type").and_then(Value::as_str) == Some("secret_text") {
            binding.remove("text");
        }
    }
}
