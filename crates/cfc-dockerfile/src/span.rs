//! Where in the file something was written.

use std::fmt;

/// Lines of the file, 1-based, both inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first line.
    pub start_line: u32,
    /// The last line, at least `start_line`.
    pub end_line: u32,
}

impl Span {
    /// The lines `start_line` to `end_line`.
    pub fn new(start_line: u32, end_line: u32) -> Span {
        Span { start_line, end_line: end_line.max(start_line) }
    }

    /// One line.
    pub fn line(line: u32) -> Span {
        Span { start_line: line, end_line: line }
    }
}

/// `line 3` or `lines 3-5`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start_line == self.end_line {
            write!(f, "line {}", self.start_line)
        } else {
            write!(f, "lines {}-{}", self.start_line, self.end_line)
        }
    }
}

/// A value with the place and the text it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// What was said.
    pub value: T,
    /// Where it was said, heredoc bodies included.
    pub span: Span,
    /// How it was said: the instruction's text with continuation lines joined and comments left out, without
    /// heredoc bodies.
    pub original: String,
    /// The comment lines directly before it, without `#`.
    pub comments: Vec<String>,
}
