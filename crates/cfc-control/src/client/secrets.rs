//! The part of [`Client`] that sets secrets.

use std::collections::BTreeMap;

use http::Method;
use serde_json::Value;
use uuid::Uuid;

use super::{Client, ClientError, decode, segment};

impl Client {
    /// The names of a Worker's secrets.
    pub async fn secrets(&self, worker: &str) -> Result<Vec<String>, ClientError> {
        let operation = format!("list the secrets of Worker `{worker}`");
        let result = self.result(&operation, self.request(Method::GET, &path(worker))).await?;
        let views = result.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(views.iter().filter_map(|view| view.get("name").and_then(Value::as_str).map(str::to_string)).collect())
    }

    /// Sets secrets, and removes those of value `None`, in one new version, whose id is returned when it serves.
    pub async fn change_secrets(
        &self,
        worker: &str,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<Uuid, ClientError> {
        let operation = format!("change the secrets of Worker `{worker}`");
        let request = self.request(Method::PATCH, &path(worker)).json(changes);
        decode(&operation, &self.result(&operation, request).await?, "/version_id")
    }
}

fn path(worker: &str) -> String {
    format!("/workers/scripts/{}/secrets", segment(worker))
}
