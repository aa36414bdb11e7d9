//! What is wrong with a file, as data that a caller can print.

use std::fmt;

use crate::Span;

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The lines of the instruction at fault.
    pub span: Span,
    /// What is wrong, lower case, without the place.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What sort of fault it is.
    pub kind: ProblemKind,
}

/// The sorts of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text does not have the shape that the instruction asks for.
    Syntax,
    /// No instruction has this name.
    UnknownInstruction,
    /// The instruction has no such flag.
    UnknownFlag,
    /// A flag is given twice, or its value does not fit.
    BadFlag,
    /// A parser directive (`# escape=…`) is repeated or has a value that does not fit.
    BadDirective,
    /// The instruction may not stand where it stands.
    Misplaced,
    /// The file has no instruction, or no stage.
    Empty,
    /// The instruction's bytes are not UTF-8.
    Encoding,
    /// Understood, but this version does not do it.
    Unsupported,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(kind: ProblemKind, span: Span, message: impl Into<String>) -> Problem {
        Problem { span, message: message.into(), hint: None, kind }
    }

    /// The same problem with advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.span, self.message)
    }
}

impl std::error::Error for Problem {}
