//! Asking a registry that runs to look after itself.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{Listing, Loan, LoanRecord, LoanRequest, Retired};

/// How a registry is to collect garbage.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectionRequest {
    /// It only says what it would remove.
    pub is_dry_run: bool,
    /// It says what each thing is that goes.
    pub is_listed: bool,
}

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be reached.
    #[error("it cannot be reached")]
    Connect(#[source] std::io::Error),
    /// It did not answer in HTTP.
    #[error("its answer cannot be read")]
    Http(#[from] hyper::Error),
    /// It refused.
    #[error("it answered {status}: {}", reason(body))]
    Refused {
        /// Its status.
        status: http::StatusCode,
        /// What it says.
        body: String,
    },
    /// It answered something else.
    #[error("it answered something else than was asked for")]
    Answer(#[from] serde_json::Error),
}

/// Has the registry that serves its operator on `socket` collect garbage by its own rules, and waits until it has.
pub async fn ask_to_collect(socket: &Path, request: CollectionRequest) -> Result<Listing, AskError> {
    let CollectionRequest { is_dry_run, is_listed } = request;
    ask(socket, Method::PUT, &format!("/v2/gc/layers?dry-run={is_dry_run}&list={is_listed}")).await
}

/// Has the registry that serves its operator on `socket` remove the tags that its rules do not keep.
pub async fn ask_to_retain(socket: &Path) -> Result<Vec<Retired>, AskError> {
    ask(socket, Method::PUT, crate::api::RETENTION).await
}

/// Has the registry that serves its operator on `socket` say which tags its rules do not keep.
pub async fn ask_what_to_retain(socket: &Path) -> Result<Vec<Retired>, AskError> {
    ask(socket, Method::GET, crate::api::RETENTION).await
}

/// Has the registry that serves its operator on `socket` make a password that expires.
pub async fn ask_for_loan(socket: &Path, request: &LoanRequest) -> Result<Loan, AskError> {
    let body = serde_json::to_vec(request).expect("texts and numbers are JSON");
    ask_with(socket, Method::POST, crate::api::LOANS, body).await
}

/// Has the registry that serves its operator on `socket` say which passwords it has made that have not expired.
pub async fn ask_for_loans(socket: &Path) -> Result<Vec<LoanRecord>, AskError> {
    ask(socket, Method::GET, crate::api::LOANS).await
}

/// Has the registry that serves its operator on `socket` take back the password with this id. What is no id is refused
/// there.
pub async fn ask_to_revoke(socket: &Path, id: &str) -> Result<LoanRecord, AskError> {
    let id: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
    ask(socket, Method::DELETE, &format!("{}?id={id}", crate::api::LOANS)).await
}

/// What the registry says of an error in its own words; else all that it says.
fn reason(body: &str) -> String {
    let parsed = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
    let error = &parsed["errors"][0];
    let told = [&error["detail"], &error["message"]].into_iter().find_map(|text| text.as_str());
    told.unwrap_or(body).to_string()
}

async fn ask<Answer: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<Answer, AskError> {
    ask_with(socket, method, path, Vec::new()).await
}

async fn ask_with<Answer: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Answer, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(AskError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_LENGTH, body.len());
    let request = request.body(Full::new(Bytes::from(body))).expect("a valid request");
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection ends by itself once its sender is gone.
    tokio::spawn(connection);
    let (status, body) = answer.await?;
    if !status.is_success() {
        return Err(AskError::Refused { status, body: String::from_utf8_lossy(&body).into_owned() });
    }
    Ok(serde_json::from_slice(&body)?)
}
