//! [`Stillborn`]: a container that was asked to start and could not, and how workerd is told.
//!
//! workerd keeps to itself what Docker says when a start fails: its user sees "Container failed to start". To let the
//! reason through, such a container counts as started at first, and its reason is given where workerd passes texts
//! on: in the answers to `CONNECT` and to `wait`.
//!
//! The order matters to the `Container` class of `@cloudflare/containers`. It takes a first `CONNECT` that fails with
//! "the container is not listening" on a running container as a sign of life; when the second one fails on a container
//! that has ended meanwhile, it gives up at once, with the error it got. So the container ends at the second
//! `CONNECT`. When that error says "there is no container instance that can be provided to this durable object", the
//! class answers its client with its own 503. A caller that never connects hears of the end a second after the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cfc_runtime::{RuntimeError, RuntimeErrorKind};
use tokio::sync::watch;

/// How long a container that could not start counts as running when nobody connects to it.
const PRETENCE: Duration = Duration::from_secs(1);
/// The time in which workerd takes note of the end before it gets the answer to its second `CONNECT`. Where it takes
/// longer, the class tries a third time, 300 ms later.
const NOTICE: Duration = Duration::from_millis(20);

const NOT_LISTENING: &str = "the container is not listening";
const NO_INSTANCE: &str = "there is no container instance that can be provided to this durable object";

/// One container that could not start.
#[derive(Clone, Debug)]
pub(crate) struct Stillborn {
    reason: String,
    connects: Arc<AtomicU32>,
    has_ended: watch::Sender<bool>,
}

impl Stillborn {
    /// The container whose start failed with `error`. Must be called within a tokio runtime.
    pub fn new(error: &RuntimeError) -> Stillborn {
        let stillborn =
            Stillborn { reason: reason(error), connects: Arc::default(), has_ended: watch::channel(false).0 };
        let ending = stillborn.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PRETENCE).await;
            ending.end();
        });
        stillborn
    }

    /// Why it could not start, in the words by which the class recognises it.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether it still counts as running.
    pub fn seems_to_run(&self) -> bool {
        !*self.has_ended.borrow()
    }

    /// Takes note of a `CONNECT`, and returns when it may be answered.
    pub async fn connect(&self) {
        if self.connects.fetch_add(1, Ordering::Relaxed) > 0 {
            self.end();
            tokio::time::sleep(NOTICE).await;
        }
    }

    /// Returns when it counts as ended.
    pub async fn ended(&self) {
        // An error means that nobody is left to end it.
        let _ = self.has_ended.subscribe().wait_for(|has_ended| *has_ended).await;
    }

    /// Lets it count as ended.
    pub fn end(&self) {
        self.has_ended.send_replace(true);
    }
}

fn reason(error: &RuntimeError) -> String {
    match &error.kind {
        RuntimeErrorKind::Refused(refusal) if refusal.is_temporary() => {
            format!("{NOT_LISTENING}: {NO_INSTANCE}: {refusal}")
        }
        kind => match kind.hint() {
            Some(hint) => format!("{NOT_LISTENING}: it could not be started: {kind} (hint: {hint})"),
            None => format!("{NOT_LISTENING}: it could not be started: {kind}"),
        },
    }
}
