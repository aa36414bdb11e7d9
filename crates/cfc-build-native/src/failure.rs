//! [`Failure`]: what went wrong inside one instruction, before it is known which.

use std::error::Error;
use std::io;
use std::path::Path;

use cfc_plan::{BuildError, FailedInstruction, Node, Plan};

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// An instruction's failure; [`Failure::of_node`] and [`Failure::of_plan`] make it the build's.
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

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// As a failure of `node`.
    pub(crate) fn of_node(self, plan: &Plan, node: &Node) -> BuildError {
        let instruction = FailedInstruction { line: node.span.start_line, text: node.display.clone() };
        BuildError { instruction: Some(Box::new(instruction)), ..self.of_plan(plan) }
    }

    /// As a failure of no instruction in particular.
    pub(crate) fn of_plan(self, plan: &Plan) -> BuildError {
        BuildError {
            output: self.output,
            hint: self.hint,
            source: self.source,
            ..BuildError::new(&plan.dockerfile_path, self.message)
        }
    }
}

impl From<cfc_store::StoreError> for Failure {
    fn from(error: cfc_store::StoreError) -> Failure {
        let mut failure = Failure::new(error.subject.clone());
        failure.source = Some(Box::new(error.kind));
        failure
    }
}

/// A step of a build, where a test may let it die or fail.
pub(crate) fn fail_at(name: &'static str) -> Result<()> {
    cfc_sandbox::fail_point(name).on("go on at", Path::new(name))
}

/// Names what was attempted when an operation on a path failed.
pub(crate) trait OnPath<T> {
    /// `verb` and the path: "cannot read `/x`".
    fn on(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> OnPath<T> for std::result::Result<T, E> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            let mut failure = Failure::new(format!("cannot {verb} `{}`", path.display()));
            failure.source = Some(Box::new(error.into()));
            failure
        })
    }
}
