//! [`Failure`]: what a command says when it cannot do its job.

use std::error::Error;
use std::fmt;

/// An error as a person reads it: what failed, why, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    /// What could not be done, with its subject.
    pub message: String,
    /// Why, from the nearest cause to the farthest.
    pub causes: Vec<String>,
    /// What to do, where that is known.
    pub hint: Option<String>,
    /// What the program exits with: 1, unless a container's command could not be executed.
    pub exit_code: u8,
}

/// What a command exits with that cannot do its job.
const FAILED: u8 = 1;

impl Failure {
    /// A failure without a deeper cause.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), causes: Vec::new(), hint: None, exit_code: FAILED }
    }

    /// A failure of `message`, because of `error` and everything behind it.
    pub fn because(message: impl Into<String>, error: &dyn Error) -> Failure {
        Failure { message: message.into(), causes: chain(error), hint: None, exit_code: FAILED }
    }

    /// The same failure, telling what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure, with another exit code than 1 where there is one.
    pub fn exits_with(self, code: Option<u8>) -> Failure {
        Failure { exit_code: code.unwrap_or(self.exit_code), ..self }
    }

    /// The same failure, telling what to do where that is known.
    pub fn maybe_hint(mut self, hint: Option<String>) -> Failure {
        self.hint = hint.or(self.hint);
        self
    }
}

/// The texts of `error` and its sources; a level that only repeats the one above is left out.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.last().is_some_and(|above| above.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut texts = chain(&error);
        let message = texts.remove(0);
        Failure { message, causes: texts, hint: None, exit_code: FAILED }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {}", cause.replace('\n', "\n    "))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}
