//! [`Contacts`]: how asking an upstream went, for the metrics.

use std::collections::BTreeMap;
use std::sync::Mutex;

use http::StatusCode;

use super::client::{FetchError, is_unknown};
use super::lock;

/// Why asking an upstream fails, as [`Failed`](super::Failed) has it.
const REASONS: [&str; 3] = ["away", "denied", "wrong"];

/// What came of asking one upstream.
#[derive(Default)]
pub(super) struct Contacts(Mutex<UpstreamState>);

/// How it is with one upstream, as far as we know.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamState {
    /// Whether the last question was answered; `None` before the first.
    pub is_up: Option<bool>,
    /// When one was answered last, in seconds since 1970.
    pub answered_at: Option<u64>,
    /// How often it failed, by reason.
    pub failures: BTreeMap<&'static str, u64>,
}

impl Default for UpstreamState {
    fn default() -> UpstreamState {
        UpstreamState { is_up: None, answered_at: None, failures: REASONS.map(|reason| (reason, 0)).into() }
    }
}

impl Contacts {
    /// Notes how a question ended. That something is not there is an answer.
    pub(super) fn note<T>(&self, answer: &Result<T, FetchError>) {
        match answer.as_ref().err().and_then(reason) {
            None => self.answered(),
            Some(reason) => self.failed(reason),
        }
    }

    /// Notes that a question failed, for one of [`REASONS`].
    pub(super) fn failed(&self, reason: &'static str) {
        let mut state = lock(&self.0);
        state.is_up = Some(false);
        *state.failures.entry(reason).or_default() += 1;
    }

    fn answered(&self) {
        let mut state = lock(&self.0);
        state.is_up = Some(true);
        state.answered_at = Some(crate::token::now());
    }

    pub(super) fn state(&self) -> UpstreamState {
        lock(&self.0).clone()
    }
}

fn reason(error: &FetchError) -> Option<&'static str> {
    match error {
        FetchError::Status(StatusCode::NOT_FOUND) | FetchError::Elsewhere(StatusCode::NOT_FOUND) => None,
        FetchError::Status(status) if is_unknown(*status) => None,
        FetchError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Some("denied"),
        FetchError::Status(_) | FetchError::Elsewhere(_) | FetchError::Unreachable(_) => Some("away"),
        FetchError::Refused(_) => Some("wrong"),
    }
}
