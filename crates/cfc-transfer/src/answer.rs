//! What a registry's answers say, in bounded memory.

use std::error::Error;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::TransferErrorKind;

/// Of an error's answer nobody reads more.
const MAX_ERROR_BYTES: usize = 16 << 10;
const MAX_ERROR_CHARACTERS: usize = 400;

#[derive(Deserialize)]
struct Errors {
    errors: Vec<RegistryError>,
}

#[derive(Deserialize)]
struct RegistryError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The body, or an error when it is larger than `max` bytes.
pub(crate) async fn read_bounded(mut response: Response, max: usize) -> Result<Vec<u8>, TransferErrorKind> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + chunk.len() > max {
            let text = format!("the answer of {} is larger than {max} bytes", response.url());
            return Err(TransferErrorKind::Malformed(text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The error for an answer that is none of the expected ones.
pub(crate) async fn describe_answer(method: &str, response: Response) -> TransferErrorKind {
    let status = response.status();
    let address = without_query(&response);
    TransferErrorKind::Answer {
        status: status.as_u16(),
        method: method.to_string(),
        address,
        answer: error_text(response).await,
    }
}

/// What the answer says in words: `NAME_UNKNOWN: repository name not known to registry`.
pub(crate) async fn error_text(response: Response) -> String {
    let status = response.status();
    let bytes = read_some(response).await;
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors }) => errors.iter().map(RegistryError::to_text).collect::<Vec<_>>().join("; "),
        Err(_) => String::from_utf8_lossy(&bytes).trim().to_string(),
    };
    // It goes to a terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARACTERS).collect();
    match text.is_empty() {
        true => status.canonical_reason().unwrap_or("no reason given").to_string(),
        false => text,
    }
}

impl RegistryError {
    fn to_text(&self) -> String {
        match self.message.is_empty() {
            true => self.code.clone(),
            false => format!("{}: {}", self.code, self.message),
        }
    }
}

async fn read_some(mut response: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() >= MAX_ERROR_BYTES {
            bytes.truncate(MAX_ERROR_BYTES);
            break;
        }
    }
    bytes
}

/// The address, without what may be a signature.
fn without_query(response: &Response) -> String {
    let mut url = response.url().clone();
    url.set_query(None);
    url.to_string()
}

/// The error of a request that got no answer.
pub(crate) fn unreachable(error: reqwest::Error) -> TransferErrorKind {
    let address = error.url().map_or("it".to_string(), |url| {
        let mut url = url.clone();
        url.set_query(None);
        url.to_string()
    });
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    TransferErrorKind::Unreachable { address, cause: cause.to_string() }
}

/// Whether the same request may succeed later.
pub(crate) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}
