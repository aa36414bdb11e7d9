//! [`Client`]: the control API from the other side, for the `cfc` commands.

mod error;
mod exec;
mod instances;
mod request;
mod secrets;

use bytes::Bytes;
use cfc_oci::Digest;
use futures::{Stream, StreamExt};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use error::{ClientError, ClientErrorKind};
pub use exec::{ExecConnection, ExecReceiver, ExecSender};
pub use request::{ApplicationRequest, DeployRequest, Deployed};

use crate::{ApplicationRecord, Deleted, InstanceView, LogRequest};

/// Talks to the control API of one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// `<server>/client/v4/accounts/<account>`
    base: String,
    token: String,
}

/// An application and its instances.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct ApplicationStatus {
    /// What is recorded.
    pub record: ApplicationRecord,
    /// What runs.
    pub instances: Vec<InstanceView>,
    /// What keeps its containers apart from the machine, in words for a person.
    #[serde(default)]
    pub isolation: String,
}

impl ApplicationStatus {
    /// Digest of the image that the next instance starts from.
    pub fn digest(&self) -> &Digest {
        &self.record.image.manifest.digest
    }
}

impl Client {
    /// A client of the server at `control_url`, for example `http://127.0.0.1:8790`. Connects at the first request.
    pub fn new(control_url: &str, token: &str, account_id: &str) -> Result<Client, ClientError> {
        // reqwest wants TLS to be decided before it makes a client, also for one that speaks plain HTTP.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else was faster: as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let builder = reqwest::Client::builder().connect_timeout(std::time::Duration::from_secs(10));
        let builder = if is_loopback(control_url) { builder.no_proxy() } else { builder };
        let operation = || format!("talk to the control API at {control_url}");
        let http = builder.build().map_err(|source| ClientError::broken(operation(), source))?;
        let base = format!("{}/client/v4/accounts/{account_id}", control_url.trim_end_matches('/'));
        Ok(Client { http, base, token: token.to_string() })
    }

    /// Deploys a Worker with its applications, and returns when the new version serves.
    pub async fn deploy(&self, request: &DeployRequest) -> Result<Deployed, ClientError> {
        let operation = format!("deploy Worker `{}`", request.name);
        let path = format!("/workers/scripts/{}", segment(&request.name));
        let form = request.form().map_err(|source| ClientError::broken(operation.clone(), source))?;
        let result = self.result(&operation, self.request(Method::PUT, &path).multipart(form)).await?;
        decode(&operation, &result, "/cfc")
    }

    /// The container applications in the order of their names.
    pub async fn applications(&self) -> Result<Vec<ApplicationStatus>, ClientError> {
        let operation = "list the container applications";
        let result = self.result(operation, self.request(Method::GET, "/containers/dash/applications")).await?;
        let views = result.as_array().map(Vec::as_slice).unwrap_or_default();
        views.iter().map(|view| decode(operation, view, "/cfc")).collect()
    }

    /// The application with this name or id.
    pub async fn application(&self, application: &str) -> Result<ApplicationStatus, ClientError> {
        let operation = format!("look at container application `{application}`");
        let path = format!("/containers/applications/{}", segment(application));
        decode(&operation, &self.result(&operation, self.request(Method::GET, &path)).await?, "/cfc")
    }

    /// The instances of the application with this name or id.
    pub async fn instances(&self, application: &str) -> Result<Vec<InstanceView>, ClientError> {
        let operation = format!("list the instances of container application `{application}`");
        let path = format!("/containers/dash/applications/{}/instances", segment(application));
        let result = self.result(&operation, self.request(Method::GET, &path)).await?;
        let views = result.get("instances").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        views.iter().map(|view| decode(&operation, view, "/cfc")).collect()
    }

    /// What the application's instances wrote; with `follow` a stream that goes on until the server ends it.
    pub async fn logs(
        &self,
        application: &str,
        request: &LogRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let operation = format!("read the log of container application `{application}`");
        let path = format!("/containers/applications/{}/logs", segment(application));
        self.lines(operation, &path, request).await
    }

    /// What a Worker has printed; with `follow` a stream that goes on until the Worker is deleted or the server ends it.
    pub async fn worker_logs(
        &self,
        name: &str,
        request: &LogRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let operation = format!("read the log of Worker `{name}`");
        self.lines(operation, &format!("/workers/scripts/{}/logs", segment(name)), request).await
    }

    async fn lines(
        &self,
        operation: String,
        path: &str,
        request: &LogRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let mut query = vec![("follow", request.follow.to_string())];
        query.extend(request.instance.iter().map(|instance| ("instance", instance.clone())));
        query.extend(request.tail_lines.iter().map(|lines| ("tail", lines.to_string())));
        query.extend(request.since.iter().map(|since| ("since_ms", since.as_millis().to_string())));
        query.extend(request.stream.iter().map(|stream| ("stream", stream.clone())));
        query.push(("timestamps", request.timestamps.to_string()));
        let query: Vec<_> = query.iter().map(|(key, value)| format!("{key}={}", segment(value))).collect();
        let path = format!("{path}?{}", query.join("&"));
        let response = self.send(&operation, self.request(Method::GET, &path)).await?;
        Ok(response
            .bytes_stream()
            .map(move |part| part.map_err(|error| ClientError::cut_off(operation.clone(), error))))
    }

    /// The Workers' names and URLs.
    pub async fn workers(&self) -> Result<Vec<(String, String)>, ClientError> {
        let result = self.result("list the Workers", self.request(Method::GET, "/workers/scripts")).await?;
        let views = result.as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |view: &Value, pointer: &str| view.pointer(pointer).and_then(Value::as_str).map(str::to_string);
        Ok(views.iter().filter_map(|view| Some((text(view, "/id")?, text(view, "/cfc/url")?))).collect())
    }

    /// Deletes a Worker with its applications and its state.
    pub async fn delete_worker(&self, name: &str) -> Result<Deleted, ClientError> {
        let operation = format!("delete Worker `{name}`");
        let path = format!("/workers/scripts/{}", segment(name));
        decode(&operation, &self.result(&operation, self.request(Method::DELETE, &path)).await?, "/cfc")
    }

    /// Deletes the application with this name or id.
    pub async fn delete_application(&self, application: &str) -> Result<(), ClientError> {
        let operation = format!("delete container application `{application}`");
        let path = format!("/containers/applications/{}", segment(application));
        self.result(&operation, self.request(Method::DELETE, &path)).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// The response, when it is a success.
    async fn send(&self, operation: &str, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let response = request.send().await.map_err(|source| ClientError::broken(operation.to_string(), source))?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(ClientError::refused(operation, response).await),
        }
    }

    /// The `result` of the envelope.
    async fn result(&self, operation: &str, request: reqwest::RequestBuilder) -> Result<Value, ClientError> {
        let response = self.send(operation, request).await?;
        let mut body: Value =
            response.json().await.map_err(|source| ClientError::broken(operation.to_string(), source))?;
        Ok(body.get_mut("result").map_or(json!(null), Value::take))
    }
}

/// Reads what stands at `pointer` of a result.
fn decode<T: DeserializeOwned>(operation: &str, result: &Value, pointer: &str) -> Result<T, ClientError> {
    let value = result.pointer(pointer).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|source| ClientError::malformed(operation, source))
}

/// `text` as one segment of a path or one value of a query: everything but the unreserved characters is escaped.
fn segment(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Whether a proxy of the environment must not see the request.
fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|prefix| host.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("a/../b c?"), "a%2F..%2Fb%20c%3F");
    }
}
