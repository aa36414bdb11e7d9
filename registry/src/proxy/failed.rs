//! [`Failed`]: why something was not brought here, and what the client is told of it.

use http::{StatusCode, header};

use super::client::FetchError;
use crate::StorageError;
use crate::error::{ApiError, Chain, Problem, is_disk_full};

/// Why something was not fetched, for each of those who waited.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    NotThere,
    /// The upstream does not give it to us.
    Denied(String),
    /// The upstream cannot be reached, or has a problem of its own.
    Away(String),
    /// It gave something else than it promised, or points where we do not go.
    Wrong(String),
    /// There is no room to keep it.
    NoRoom(String),
    /// Too much is fetched already.
    Busy,
    /// Our own fault, which the log has.
    Storage,
}

impl Failed {
    /// What it is counted as.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Failed::NotThere => "not_there",
            Failed::Denied(_) => "denied",
            Failed::Away(_) => "away",
            Failed::Wrong(_) => "wrong",
            Failed::NoRoom(_) => "no_room",
            Failed::Busy => "busy",
            Failed::Storage => "failed",
        }
    }
}

impl From<StorageError> for Failed {
    fn from(error: StorageError) -> Failed {
        if is_disk_full(&error) {
            return Failed::NoRoom(Chain(&error).to_string());
        }
        tracing::error!(error = %Chain(&error), "storage failed");
        Failed::Storage
    }
}

/// Of what keeps something.
impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Failed {
        match error.is(Problem::Quota) || error.is(Problem::BlobTooLarge) || error.is(Problem::Full) {
            true => Failed::NoRoom(error.to_string()),
            false => Failed::Storage,
        }
    }
}

impl From<FetchError> for Failed {
    fn from(error: FetchError) -> Failed {
        match error {
            FetchError::Status(StatusCode::NOT_FOUND) => Failed::NotThere,
            FetchError::Status(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => Failed::Denied(format!(
                "the upstream answered {status}: it wants another login, or has no such repository"
            )),
            FetchError::Elsewhere(StatusCode::NOT_FOUND) => Failed::NotThere,
            FetchError::Elsewhere(status) => Failed::Away(format!("where it redirects to answered {status}")),
            FetchError::Status(status) => Failed::Away(format!("it answered {status}")),
            FetchError::Unreachable(why) => Failed::Away(why),
            FetchError::Refused(why) => Failed::Wrong(why),
        }
    }
}

/// What the client is told; the log is told by who knows the upstream.
impl From<Failed> for ApiError {
    fn from(failed: Failed) -> ApiError {
        match failed {
            Failed::NotThere => Problem::NotFound.into(),
            // A 401 would have the client prove itself to us, which would not help.
            Failed::Denied(why) => ApiError::new(Problem::Denied, why),
            Failed::Away(why) => ApiError::new(Problem::UpstreamAway, why).with_header(header::RETRY_AFTER, "5"),
            Failed::Wrong(why) => ApiError::new(Problem::UpstreamWrong, why),
            Failed::NoRoom(why) => ApiError::new(Problem::Full, why),
            Failed::Busy => {
                let why = "too much is fetched from the upstream already";
                ApiError::new(Problem::TooManyRequests, why).with_header(header::RETRY_AFTER, "5")
            }
            Failed::Storage => Problem::Internal.into(),
        }
    }
}
