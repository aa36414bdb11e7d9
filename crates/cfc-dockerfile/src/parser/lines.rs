//! The file as numbered lines.

use crate::{Problem, ProblemKind, Span};

/// Longer lines are refused, as BuildKit does. Bytes, without the end of line.
const MAX_LINE_SIZE: usize = 65_535;

/// One line of the file.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    /// 1-based.
    pub(super) number: u32,
    /// With its end of line.
    pub(super) bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// Without its end of line.
    pub(super) fn content(&self) -> &'a [u8] {
        let mut content = self.bytes;
        while let [rest @ .., b'\n' | b'\r'] = content {
            content = rest;
        }
        content
    }

    /// Whether its first visible character is `#`.
    pub(super) fn is_comment(&self) -> bool {
        String::from_utf8_lossy(self.content()).trim_start().starts_with('#')
    }
}

/// Gives one line after the other.
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    number: u32,
}

impl<'a> Lines<'a> {
    /// The lines of `text`, without a byte order mark.
    pub(super) fn new(text: &'a [u8]) -> Lines<'a> {
        Lines { rest: text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text), number: 0 }
    }

    /// The number of the line given last; 0 before the first.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// How many lines follow until one for which `is_wanted` holds; `None` when none does.
    pub(super) fn distance_to(&self, is_wanted: impl Fn(&Line) -> bool) -> Option<usize> {
        Lines { rest: self.rest, number: self.number }.position(|line| is_wanted(&line))
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let length = self.rest.iter().position(|&b| b == b'\n').map_or(self.rest.len(), |end| end + 1);
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.number += 1;
        Some(Line { number: self.number, bytes })
    }
}

/// The problems of lines that are too long.
pub(super) fn too_long(text: &[u8]) -> Vec<Problem> {
    let length = |line: &Line| line.bytes.strip_suffix(b"\n").unwrap_or(line.bytes).len();
    let too_long = Lines::new(text).filter(|line| length(line) > MAX_LINE_SIZE);
    let problem = |line: Line| {
        let message = format!("dockerfile line greater than max allowed size of {MAX_LINE_SIZE}");
        Problem::new(ProblemKind::Syntax, Span::line(line.number), message)
            .with_hint("split the line, or put its text into a file of the build context")
    };
    too_long.map(problem).collect()
}
