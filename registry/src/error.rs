//! Errors: [`StorageError`] for callers of the library, and [`ApiError`] for clients, whose codes, statuses and texts
//! are one table (distribution-spec, "Error Codes").

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::bucket::UnknownFormat;
use crate::{AppendError, CommitError};

/// The store could not do what was asked; never the client's fault.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{subject}`")]
pub struct StorageError {
    /// What was tried: `read`, `write`, `list`.
    pub operation: &'static str,
    /// A path or an object's key.
    pub subject: String,
    /// What the system says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StorageError {
    pub(crate) fn new(
        operation: &'static str,
        subject: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StorageError {
        StorageError { operation, subject: subject.to_string(), source: source.into() }
    }
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $status:literal $code:literal $text:literal,)*) => {
        /// What can go wrong, as the client sees it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Problem { $($(#[$doc])* $name),* }

        impl Problem {
            /// Status, code and text.
            fn row(self) -> (u16, &'static str, &'static str) {
                match self { $(Problem::$name => ($status, $code, $text)),* }
            }
        }
    };
}

problems! {
    BlobUnknown: 404 "BLOB_UNKNOWN" "the repository has no such blob",
    UploadInvalid: 400 "BLOB_UPLOAD_INVALID" "the upload cannot go on like this",
    UploadRange: 416 "BLOB_UPLOAD_INVALID" "the chunk does not begin where the upload ends",
    UploadUnknown: 404 "BLOB_UPLOAD_UNKNOWN" "the repository has no such upload",
    BlobRange: 416 "SIZE_INVALID" "the range is not within the blob",
    DigestInvalid: 400 "DIGEST_INVALID" "the digest is malformed, or not that of the content",
    ManifestBlobUnknown: 400 "MANIFEST_BLOB_UNKNOWN" "the manifest names content that the repository does not have",
    ManifestInvalid: 400 "MANIFEST_INVALID" "the manifest is not valid",
    ManifestTooLarge: 413 "SIZE_INVALID" "the manifest is too large",
    ManifestUnknown: 404 "MANIFEST_UNKNOWN" "the repository has no such manifest",
    TagInvalid: 400 "TAG_INVALID" "the tag is malformed",
    TooManyTags: 414 "TAG_INVALID" "too many tags in one request",
    NameInvalid: 400 "NAME_INVALID" "the name of the repository is malformed",
    NameUnknown: 404 "NAME_UNKNOWN" "there is no such repository",
    SizeInvalid: 400 "SIZE_INVALID" "the length of the body is not the length that was promised",
    PageInvalid: 400 "PAGINATION_NUMBER_INVALID" "`n` is not a number of results",
    TokenRequest: 400 "UNSUPPORTED" "the request for a token is not valid",
    LoanRefused: 400 "UNSUPPORTED" "no such password can be made",
    LoanUnknown: 400 "UNSUPPORTED" "no such password was made",
    Unauthorized: 401 "UNAUTHORIZED" "authentication is required",
    Denied: 403 "DENIED" "access to this resource is denied",
    Quota: 403 "DENIED" "the quota is used up",
    BlobTooLarge: 413 "SIZE_INVALID" "the blob is too large",
    TagImmutable: 403 "DENIED" "the tag keeps pointing where it points",
    Needed: 403 "DENIED" "an immutable tag needs this",
    NotFound: 404 "UNSUPPORTED" "there is nothing at this path",
    MethodNotAllowed: 405 "UNSUPPORTED" "the operation is not supported",
    Busy: 429 "TOOMANYREQUESTS" "another request is writing to this upload",
    TooManyLogins: 429 "TOOMANYREQUESTS" "too many passwords are being checked, try again in a moment",
    ReadOnly: 405 "UNSUPPORTED" "the repository cannot be pushed to",
    UpstreamWrong: 502 "UNKNOWN" "the upstream did not give what was asked for",
    UpstreamAway: 503 "UNKNOWN" "the upstream cannot be reached, and this was not pulled before",
    TooManyRequests: 429 "TOOMANYREQUESTS" "too many requests, try again later",
    Internal: 500 "UNKNOWN" "the registry could not do this; its log says why",
    Full: 507 "UNKNOWN" "the registry's disk is full",
    Unwritable: 503 "UNAVAILABLE" "the registry's disk cannot be written to, clients may only pull; its log says why",
    Overloaded: 503 "UNAVAILABLE" "the registry has too many files open, try again in a moment",
    Outdated: 503 "UNAVAILABLE" "a newer registry shares the store with this one, which only lets clients pull; ask the newer",
    Unreachable: 503 "UNKNOWN" "the store behind the registry does not answer as it should, try again in a moment",
}

/// What a client is told. The operator's cause is logged where it is known, and never sent.
#[derive(Debug)]
pub(crate) struct ApiError {
    problem: Problem,
    details: Vec<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// `detail` says what was wrong with this request in particular.
    pub(crate) fn new(problem: Problem, detail: impl fmt::Display) -> ApiError {
        ApiError { problem, details: vec![Value::String(detail.to_string())], headers: Vec::new() }
    }

    /// The same problem with several things.
    pub(crate) fn several(problem: Problem, details: Vec<Value>) -> ApiError {
        ApiError { problem, details, headers: Vec::new() }
    }

    /// Too many requests came, and the next one may in `wait`.
    pub(crate) fn too_many(wait: Duration) -> ApiError {
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        ApiError::from(Problem::TooManyRequests).with_header(header::RETRY_AFTER, &format!("{seconds}"))
    }

    /// Whether this is what went wrong.
    pub(crate) fn is(&self, problem: Problem) -> bool {
        self.problem == problem
    }

    /// Adds a header to the answer.
    pub(crate) fn with_header(mut self, name: HeaderName, value: &str) -> ApiError {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> ApiError {
        ApiError { problem, details: vec![Value::Null], headers: Vec::new() }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> ApiError {
        tracing::error!(error = %Chain(&error), "storage failed");
        match error {
            error if is_disk_full(&error) => ApiError::from(Problem::Full),
            error if is_read_only(&error) => ApiError::from(Problem::Unwritable),
            error if is_out_of_files(&error) => {
                ApiError::from(Problem::Overloaded).with_header(header::RETRY_AFTER, "2")
            }
            error if error.source.is::<UnknownFormat>() => ApiError::from(Problem::Outdated),
            error if error.source.is::<object_store::Error>() => {
                ApiError::from(Problem::Unreachable).with_header(header::RETRY_AFTER, "2")
            }
            _ => ApiError::from(Problem::Internal),
        }
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> ApiError {
        let problem = match error {
            AppendError::Storage(error) => return error.into(),
            AppendError::Unknown => Problem::UploadUnknown,
            AppendError::Busy => return ApiError::from(Problem::Busy).with_header(header::RETRY_AFTER, "1"),
            AppendError::OutOfOrder { .. } => Problem::UploadRange,
            AppendError::Length { .. } => Problem::SizeInvalid,
            AppendError::TooLarge { .. } => Problem::BlobTooLarge,
            AppendError::UnequalParts | AppendError::Body(_) => Problem::UploadInvalid,
        };
        ApiError::new(problem, error)
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> ApiError {
        match error {
            CommitError::Append(error) => error.into(),
            CommitError::Mismatch { .. } => ApiError::new(Problem::DigestInvalid, error),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, code, text) = self.problem.row();
        write!(f, "{code}: {text}")?;
        for detail in &self.details {
            match detail {
                Value::Null => {}
                Value::String(detail) => write!(f, ": {detail}")?,
                detail => write!(f, ": {detail}")?,
            }
        }
        Ok(())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, text) = self.problem.row();
        let entry = |detail: &Value| match detail {
            Value::Null => json!({ "code": code, "message": text }),
            detail => json!({ "code": code, "message": text, "detail": detail }),
        };
        let body = json!({ "errors": self.details.iter().map(entry).collect::<Vec<_>>() });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = StatusCode::from_u16(status).expect("the table has only valid statuses");
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Whether there is no room left where things are stored.
pub(crate) fn is_disk_full(error: &StorageError) -> bool {
    is_of_system(error, |e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

/// Whether the kernel lets nobody write where things are stored, as after errors of the disk.
pub(crate) fn is_read_only(error: &StorageError) -> bool {
    is_of_system(error, |e| e.kind() == ErrorKind::ReadOnlyFilesystem)
}

/// Whether the process, or the machine, has no descriptors left, which others give back.
fn is_out_of_files(error: &StorageError) -> bool {
    is_of_system(error, |e| matches!(Errno::from_io_error(e), Some(Errno::MFILE | Errno::NFILE)))
}

/// Whether an error of the system is among the causes of which `is_meant` is true.
fn is_of_system(error: &StorageError, is_meant: impl Fn(&std::io::Error) -> bool) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(&is_meant) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error with its causes in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
