//! [`Failure`]: what went wrong, before it is known with which instruction.

use std::error::Error;

use cfc_plan::{BuildError, FailedInstruction, Node, Plan};
use tonic::{Code, Status};

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What went wrong, and what to do about it.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) output: Vec<String>,
    pub(crate) source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), ..Failure::default() }
    }

    pub(crate) fn because(message: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { source: Some(cause.into()), ..Failure::new(message) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// As a failure of `node`, or of no instruction in particular.
    pub(crate) fn of(self, plan: &Plan, node: Option<&Node>) -> BuildError {
        let instruction = node.map(|node| {
            let text = node.display.clone();
            Box::new(FailedInstruction { line: node.span.start_line, text })
        });
        BuildError {
            instruction,
            output: self.output,
            hint: self.hint,
            source: self.source,
            ..BuildError::new(&plan.dockerfile_path, self.message)
        }
    }
}

impl From<cfc_store::StoreError> for Failure {
    fn from(error: cfc_store::StoreError) -> Failure {
        Failure::because(error.subject.clone(), error.kind)
    }
}

/// What the daemon at `address` answered to `what`.
pub(crate) fn refused(address: &str, what: &str, status: &Status) -> Failure {
    let text = status.message();
    if is_lost(status) {
        return Failure::new(format!("the connection to the BuildKit daemon at `{address}` was lost: {text}"))
            .hint("look whether the daemon still runs, and into its log; what it finished is used by the next build");
    }
    if is_full(text) {
        return Failure::new(format!("the disk of the BuildKit daemon at `{address}` is full: {text}"))
            .hint("make room there: `buildctl prune`, or `docker builder prune` for the one in Docker's engine");
    }
    if text.contains("is not allowed by build daemon configuration") {
        return Failure::new(format!("the BuildKit daemon at `{address}` does not allow it: {text}"))
            .hint("whoever runs it says so: `buildkitd --allow-insecure-entitlement …`, or `builder.entitlements` in Docker's daemon.json");
    }
    if let Some((_, kind)) = text.split_once("unknown cache exporter: ") {
        let kind = kind.trim_matches('"');
        return Failure::new(format!("the BuildKit daemon at `{address}` exports no build cache of type `{kind}`"))
            .hint("leave out that --cache-to, use a newer daemon, or one outside of Docker's engine; older engines can do `type=inline` only");
    }
    if status.code() == Code::Unimplemented {
        return Failure::new(format!("what answers at `{address}` does not know how to {what}: {text}"))
            .hint("is it a BuildKit daemon, or Docker's engine behind `docker://`?");
    }
    Failure::new(format!("the BuildKit daemon at `{address}` cannot {what}: {text}"))
}

fn is_lost(status: &Status) -> bool {
    let of_transport = |error: &(dyn Error + 'static)| {
        let mut error = Some(error);
        while let Some(cause) = error {
            if cause.is::<hyper::Error>() || cause.is::<std::io::Error>() {
                return true;
            }
            error = cause.source();
        }
        false
    };
    status.code() == Code::Unavailable || status.source().is_some_and(of_transport)
}

fn is_full(text: &str) -> bool {
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_daemon_and_a_lost_one_are_told_apart() {
        let told = |status: Status| refused("unix:///x", "build", &status).message;
        let full = told(Status::unknown("failed to copy: write /var/lib/x: no space left on device"));
        assert!(full.starts_with("the disk of the BuildKit daemon at `unix:///x` is full: "), "{full}");
        let lost = told(Status::unavailable("transport is closing"));
        assert!(lost.starts_with("the connection to the BuildKit daemon at `unix:///x` was lost: "), "{lost}");
        let other = told(Status::unknown("it does not want to"));
        assert_eq!(other, "the BuildKit daemon at `unix:///x` cannot build: it does not want to");
    }
}
