//! [`ClientError`]: what the client was asked to do, and why it was not done.

use http::StatusCode;

use crate::error::Code;
use crate::wire::envelope::{ReceivedError, read_failure};

/// A request that did not succeed. The cause is in [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct ClientError {
    /// `deploy Worker …`.
    pub operation: String,
    /// Why.
    #[source]
    pub kind: ClientErrorKind,
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientErrorKind {
    /// Nobody answers.
    #[error("no server answers at {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered and refused.
    #[error("{message}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// The rule, where this version of cfc knows it.
        code: Option<Code>,
        /// The server's words.
        message: String,
        /// Where in the request the cause lies.
        location: Option<String>,
        /// What to do about it, in the server's words.
        hint: Option<String>,
    },
    /// What answers is not a control API of this version.
    #[error("the server's answer is not one of a control API: {0}")]
    Malformed(String),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Broken(#[source] reqwest::Error),
    /// The server ended in the middle of an answer, or another program took its place.
    #[error("the server ended, or was upgraded, before its answer was complete")]
    Ended(#[source] reqwest::Error),
    /// The connection of a command ended before the command did.
    #[error("the connection to the server was lost: {0}")]
    Lost(String),
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match &self.kind {
            ClientErrorKind::Refused { hint, .. } => hint.as_deref(),
            ClientErrorKind::Unreachable { .. } => Some("start one with `cfc serve`"),
            ClientErrorKind::Malformed(_) => Some("the server must be a `cfc serve` of the same version"),
            ClientErrorKind::Ended(_) => Some("its log says why; `cfc serve` starts it"),
            ClientErrorKind::Broken(_) | ClientErrorKind::Lost(_) => None,
        }
    }

    /// Where in the request the cause lies.
    pub fn location(&self) -> Option<&str> {
        match &self.kind {
            ClientErrorKind::Refused { location, .. } => location.as_deref(),
            _ => None,
        }
    }

    /// Which rule refused.
    pub fn code(&self) -> Option<Code> {
        match &self.kind {
            ClientErrorKind::Refused { code, .. } => *code,
            _ => None,
        }
    }

    pub(super) fn broken(operation: String, source: reqwest::Error) -> ClientError {
        let url = source.url().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        let kind = if source.is_connect() {
            ClientErrorKind::Unreachable { url, source }
        } else if source.is_decode() {
            ClientErrorKind::Malformed(source.to_string())
        } else {
            ClientErrorKind::Broken(source)
        };
        ClientError { operation, kind }
    }

    /// A part of an answer that did not come.
    pub(super) fn cut_off(operation: String, source: reqwest::Error) -> ClientError {
        ClientError { operation, kind: ClientErrorKind::Ended(source) }
    }

    pub(super) fn malformed(operation: &str, source: serde_json::Error) -> ClientError {
        ClientError { operation: operation.to_string(), kind: ClientErrorKind::Malformed(source.to_string()) }
    }

    pub(super) async fn refused(operation: &str, response: reqwest::Response) -> ClientError {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let read = serde_json::from_slice(&body).ok().as_ref().and_then(read_failure);
        let kind = match read {
            Some(ReceivedError { number, message, location, hint }) => {
                ClientErrorKind::Refused { status, code: Code::from_number(number), message, location, hint }
            }
            None => ClientErrorKind::Malformed(format!("status {status}")),
        };
        ClientError { operation: operation.to_string(), kind }
    }
}
