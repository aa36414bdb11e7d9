//! `# key=value` lines at the top of the file.

use super::lines::Lines;
use crate::ProblemKind;

/// The `# key=value` lines at the top of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=…`: the frontend image the author asked for.
    pub syntax: Option<String>,
    /// `# escape=…`: a backslash, or a backquote.
    pub escape: char,
    /// `# check=…`: options of the linter.
    pub check: Option<String>,
}

impl Default for Directives {
    fn default() -> Directives {
        Directives { syntax: None, escape: '\\', check: None }
    }
}

/// Reads directives line by line until the first line that is none.
#[derive(Default)]
pub(super) struct DirectiveParser {
    is_done: bool,
    seen: Vec<String>,
}

/// Why a directive does not count.
pub(super) struct BadDirective {
    pub(super) message: String,
    pub(super) hint: String,
}

impl BadDirective {
    pub(super) const KIND: ProblemKind = ProblemKind::BadDirective;
}

impl DirectiveParser {
    /// The key, in lower case, and the value of a line (leading blanks removed) that is a directive.
    pub(super) fn read<'a>(&mut self, line: &'a str) -> Result<Option<(String, &'a str)>, BadDirective> {
        if self.is_done {
            return Ok(None);
        }
        let Some((key, value)) = key_and_value(line) else {
            self.is_done = true;
            return Ok(None);
        };
        let key = key.to_ascii_lowercase();
        if !matches!(key.as_str(), "syntax" | "escape" | "check") {
            self.is_done = true;
            return Ok(None);
        }
        if self.seen.contains(&key) {
            return Err(BadDirective {
                message: format!("only one {key} parser directive can be used"),
                hint: format!("remove this `# {key}=` line"),
            });
        }
        self.seen.push(key.clone());
        Ok(Some((key, value)))
    }
}

/// The escape character that `# escape=` names.
pub(super) fn escape_character(value: &str) -> Result<char, BadDirective> {
    match value {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        _ => Err(BadDirective {
            message: format!("invalid escape token `{value}`: expected a backslash or a backquote"),
            hint: "write `# escape=\\`, or `` # escape=` ``".to_owned(),
        }),
    }
}

/// `syntax` and `check`, which, other than `escape`, may follow a `#!` line.
pub(super) fn syntax_and_check(text: &[u8]) -> (Option<String>, Option<String>) {
    let (mut syntax, mut check) = (None, None);
    let mut parser = DirectiveParser::default();
    let mut lines = Lines::new(text).peekable();
    lines.next_if(|line| line.bytes.starts_with(b"#!"));
    for line in lines {
        let line = String::from_utf8_lossy(line.content()).into_owned();
        match parser.read(line.trim_start()) {
            Ok(Some((key, value))) if key == "syntax" => syntax = value.split(' ').next().map(str::to_owned),
            Ok(Some((key, value))) if key == "check" => check = Some(value.to_owned()),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    (syntax, check)
}

/// `#`, blanks, a key of letters and digits, `=`, a value; blanks around each.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\n' | '\u{c}' | '\r');
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim_matches(is_blank), value.trim_matches(is_blank));
    let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(|c| c.is_ascii_alphanumeric());
    (is_key && !value.is_empty()).then_some((key, value))
}
